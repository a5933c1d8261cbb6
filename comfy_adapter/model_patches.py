"""What the nodes leave on a cloned model: replaced layers, a config, one wrapper."""

import comfy.model_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..vcut_core.cross_attention import CrossAttentionConfig
from ..vcut_core.feature_slicing import SlicingConfig
from ..vcut_core.guidance import GuidanceConfig
from .host_model import own_object, planned_object
from .layers import HostCrossAttention, find_cross_attentions
from .pruning import PrunedCrossAttention, follow_pruned
from .sampling_run import KEY, PatchedLayers, sample_with_vcut
from .slicing import follow_slicing

CONNECT_SVD = "Connect MODEL from the Image Only checkpoint loader (img2vid model)."


def require_svd(model, node_name: str, advice: str = CONNECT_SVD) -> None:
    """Raise ValueError unless ``model`` (ModelPatcher) is a Stable Video Diffusion model."""
    base = getattr(model, "model", None)
    if not isinstance(base, comfy.model_base.SVD_img2vid):
        kind = type(getattr(base, "model_config", base)).__name__  # SD15, SDXL, ...
        raise ValueError(
            f"{node_name}: expected a Stable Video Diffusion model, got {kind}. {advice}"
        )


def patch_cross_attentions(model, config: CrossAttentionConfig, node_id: str | None = None):
    """Return a clone of ``model`` whose cross-attentions follow ``config``.

    A config that an earlier node left is replaced, not added to. A layer that another pack put in
    place stays; the run's summary counts it.
    Raises ValueError when the config needs weights that the model was loaded without.
    """
    modes = {"spatial": config.spatial, "temporal": config.temporal}
    clone = model.clone()
    wanted = 0
    displaced = clone.object_patches_backup
    for path, kind in find_cross_attentions(clone.model.diffusion_model, displaced):
        current = _without_stand_in(clone, path)
        if isinstance(current, PrunedCrossAttention):
            current.require_weights_for(modes[kind])
        if modes[kind] == "keep":
            continue
        wanted += 1
        is_removed = modes[kind] == "remove"
        if type(current) is CrossAttention or (
            is_removed and type(current) is PrunedCrossAttention
        ):
            clone.add_object_patch(path, HostCrossAttention(current, kind, is_removed))
    return with_config(clone, "cross_attention", PatchedLayers(config, wanted), node_id)


def _without_stand_in(clone, path: str) -> torch.nn.Module | None:
    """Take an earlier node's stand-in out of ``clone``; return the layer that it stood in for."""
    current = planned_object(clone, path)
    if type(current) is not HostCrossAttention:
        return current
    if current.original is own_object(clone, path):
        clone.object_patches.pop(path, None)
    else:  # another pack's own patch stood here first
        clone.add_object_patch(path, current.original)
    return current.original


def schedule_guidance(model, config: GuidanceConfig, node_id: str | None = None):
    """Return a clone of ``model`` whose guidance ends where ``config`` says."""
    return with_config(model.clone(), "guidance", config, node_id)


def slice_features(model, config: SlicingConfig, node_id: str | None = None):
    """Return a clone of ``model`` that runs its layers in slices as ``config`` says."""
    clone = with_config(model.clone(), "slicing", config, node_id)
    follow_slicing(clone)
    return clone


def _rebind(old, new) -> None:
    """ON_CLONE callback: a clone onto another model object gets stand-ins for its own layers.

    Newer hosts clone so for several GPUs and for hooks; the copied patches would otherwise compute
    with the first model's weights, on its device.
    """
    follow_slicing(new)
    if new.model is old.model:
        return
    follow_pruned(old, new)
    for path, layer in list(new.object_patches.items()):
        if type(layer) is HostCrossAttention and layer.original is own_object(old, path):
            original = comfy.utils.get_attr(new.model, path)
            if type(original) is HostCrossAttention:  # a VCUT clone is loaded on that model now
                original = original.original
            new.add_object_patch(path, HostCrossAttention(original, layer.kind, layer.is_removed))


def with_config(clone, name: str, config, node_id: str | None):
    """Store ``config`` on ``clone`` and make sure that our two hooks are there once."""
    options = clone.model_options.setdefault("transformer_options", {})
    vcut = dict(options.get(KEY, {}))  # the dict may be shared with the model cloned from
    vcut[name] = config
    vcut["node_ids"] = {**vcut.get("node_ids", {}), name: node_id}
    options[KEY] = vcut
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with_vcut)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _rebind)
    return clone
