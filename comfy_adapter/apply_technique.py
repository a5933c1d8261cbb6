"""Puts a technique on a cloned model: its frozen settings, one wrapper and one callback."""

from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..vcut_core.feature_slicing import FeatureSlicing, SlicingConfig
from ..vcut_core.techniques import technique_for
from .memory_estimate import estimate_for_clone
from .pruning import follow_pruned, require_weights
from .sampling_run import sample_with_vcut
from .settings import KEY, VCUTSettings, settings_of


def with_technique(model, config, node_id: str | None = None):
    """Return a clone of ``model`` that samples with the technique that ``config`` belongs to.

    A config that an earlier node left for the same technique is replaced.
    Raises ValueError when the config needs weights that the model was loaded without.
    """
    require_weights(model, config)
    return add_technique(model.clone(), config, node_id)


def add_technique(patcher, config, node_id: str | None):
    """Store ``config`` on ``patcher`` itself and make sure that our two hooks are there once."""
    key = technique_for(config).key
    options = patcher.model_options.setdefault("transformer_options", {})
    old = options.get(KEY, VCUTSettings())
    options[KEY] = VCUTSettings({**old.configs, key: config}, {**old.node_ids, key: node_id})
    patcher.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with_vcut)
    patcher.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow)
    _follow_slicing(patcher)
    return patcher


def _follow(old, new) -> None:
    """ON_CLONE callback: let a clone answer for its memory, and prune the model it owns."""
    _follow_slicing(new)
    if new.model is not old.model:
        follow_pruned(old, new)


def _follow_slicing(patcher) -> None:
    settings = settings_of(patcher.model_options)
    config: SlicingConfig | None = settings.configs.get(FeatureSlicing.key) if settings else None
    if config is not None:
        patcher.memory_required = estimate_for_clone(patcher, config)
