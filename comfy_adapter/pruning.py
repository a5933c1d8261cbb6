"""A patcher whose model was loaded without the weights that cannot change the picture."""

import functools
import logging

from ..vcut_core.cross_attention import CrossAttentionConfig
from .pruned_layers import LOADER, STOCK_LOADER, PrunedCrossAttention, PrunedLinear, prune
from .unet_structure import transformer_blocks

logger = logging.getLogger(__name__)

PRUNED_MODES = ("cached", "remove")


def require_weights(patcher, config) -> None:
    """Raise ValueError when ``config`` needs weights that the model was loaded without."""
    pruned = getattr(patcher, "pruned_temporal", None)
    if pruned is None or not isinstance(config, CrossAttentionConfig):
        return
    for axis in ("spatial", "temporal"):
        if config.mode(axis) == "keep":
            raise ValueError(
                f"expected a model with all its weights for {axis} keep, got one from "
                f"{LOADER}. Use {STOCK_LOADER} for keep"
            )
    if config.temporal == "cached" and pruned == "remove":
        raise ValueError(
            f"expected a model with temporal cross-attention for temporal cached, got one "
            f"that {LOADER} has loaded without. Set temporal to cached there"
        )


def adopt_pruned(patcher, temporal: str) -> None:
    """Prune the model of a patcher that is just loaded and make the patcher account for it.

    Raises ValueError for a ``temporal`` that needs the weights.
    """
    if temporal not in PRUNED_MODES:
        raise ValueError(
            f"{LOADER}: expected temporal to be one of {', '.join(PRUNED_MODES)}, got {temporal}. "
            f"Use {STOCK_LOADER} for it."
        )
    size_before = patcher.model_size()
    prune(patcher.model.diffusion_model, temporal)
    patcher.size = 0  # makes the host measure anew
    freed = size_before - patcher.model_size()
    patcher.model.model_loaded_weight_memory = max(0, patcher.loaded_size() - freed)
    patcher.model.state_dict_for_saving = _refuse_saving  # this model object is nobody else's yet
    patcher.__class__ = _pruned_class(type(patcher), temporal)


def _refuse_saving(*_args, **_kwargs):
    raise RuntimeError(
        f"{LOADER}: expected a whole model to save, got one without the weights that VCUT does not "
        f"need. Use {STOCK_LOADER} for saving."
    )


def follow_pruned(old, new) -> None:
    """Prune the model of ``new``, a clone of ``old`` onto another model, as that of ``old`` is."""
    temporal = getattr(old, "pruned_temporal", None)
    if not temporal:
        return
    blocks = transformer_blocks(new.model.diffusion_model)
    if not all(isinstance(b.attn2, PrunedCrossAttention) for *_, b in blocks):
        if hasattr(new, "pruned_temporal"):
            new.__class__ = type(new).__base__  # adopt_pruned adds ours again
        adopt_pruned(new, temporal)
    elif not hasattr(new, "pruned_temporal"):  # a newer host's delegate, made a second time
        new.__class__ = _pruned_class(type(new), temporal)


@functools.cache
def _pruned_class(base: type, temporal: str) -> type:
    """Return ``base``, a ModelPatcher class, with patches for pruned weights left out."""

    class PrunedModelPatcher(base):
        pruned_temporal = temporal

        def add_patches(self, patches, *args, **kwargs):
            kept, dropped = self._without_pruned(patches)
            if dropped:
                logger.info(
                    "VCUT: %d weight patches left out: they are for weights that cannot change "
                    "the picture",
                    len(dropped),
                )
            # The host warns of every key that does not come back.
            return [*super().add_patches(kept, *args, **kwargs), *dropped]

        def add_hook_patches(self, hook, patches, *args, **kwargs):
            kept, _ = self._without_pruned(patches)
            return super().add_hook_patches(hook, kept, *args, **kwargs)

        def _without_pruned(self, patches: dict) -> tuple[dict, list]:
            dropped = [key for key in patches if self._is_pruned(key)]
            return {k: patch for k, patch in patches.items() if k not in dropped}, dropped

        def _is_pruned(self, key: str | tuple) -> bool:
            name = key if isinstance(key, str) else key[0]
            try:
                return isinstance(self.model.get_submodule(name.rpartition(".")[0]), PrunedLinear)
            except AttributeError:
                return False

    return PrunedModelPatcher
