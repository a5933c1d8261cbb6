"""What the nodes leave on a cloned model: replaced layers, a config, one wrapper."""

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...vcut_core.cross_attention import CrossAttentionConfig
from ...vcut_core.guidance import GuidanceConfig
from .layers import HostCrossAttention, find_cross_attentions
from .pruning import PrunedCrossAttention, adopt_pruned, follow_pruned
from .sampling_run import KEY, PatchedLayers, sample_with_vcut

CONNECT_SVD = "Connect MODEL from Image Only Checkpoint Loader (img2vid model)."
CHOOSE_SVD = "Choose svd.safetensors or svd_xt.safetensors in the node."


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
    for path, kind in find_cross_attentions(clone.model.diffusion_model):
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
    return _with_config(clone, "cross_attention", PatchedLayers(config, wanted), node_id)


def _without_stand_in(clone, path: str) -> torch.nn.Module:
    """Take an earlier node's stand-in out of ``clone``; return the layer that it stood in for."""
    current = clone.get_model_object(path)
    if type(current) is not HostCrossAttention:
        return current
    if current.original is _unpatched(clone, path):
        clone.object_patches.pop(path, None)
    else:  # another pack's own patch stood here first
        clone.add_object_patch(path, current.original)
    return current.original


def checkpoint_names() -> list[str]:
    """Return the checkpoints that ComfyUI lists."""
    return folder_paths.get_filename_list("checkpoints")


def load_pruned(
    ckpt_name: str, config: CrossAttentionConfig, node_name: str, node_id: str | None = None
):
    """Return (MODEL, CLIP_VISION, VAE) of an SVD checkpoint, the model pruned for ``config``.

    ckpt_name: as ComfyUI lists it under checkpoints.
    Raises ValueError when the file is missing, damaged or no SVD checkpoint.
    """
    path = folder_paths.get_full_path("checkpoints", ckpt_name)
    if path is None:
        raise ValueError(
            f"{node_name}: expected a checkpoint, found no {ckpt_name}. Choose another."
        )
    try:
        model, _clip, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=False, output_clipvision=True
        )
    except (comfy.model_management.OOM_EXCEPTION, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{node_name}: expected an SVD checkpoint, could not read {ckpt_name} "
            f"({_first_line(error)}). Download it again or choose another."
        ) from error
    require_svd(model, node_name, CHOOSE_SVD)
    return prune_model(model, config, node_id), clip_vision, vae


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prune_model(model, config: CrossAttentionConfig, node_id: str | None = None):
    """Return ``model`` itself, nobody else's yet, pruned for ``config`` and following it."""
    adopt_pruned(model, config.temporal)
    count = len(find_cross_attentions(model.model.diffusion_model))
    return _with_config(model, "cross_attention", PatchedLayers(config, count), node_id)


def schedule_guidance(model, config: GuidanceConfig, node_id: str | None = None):
    """Return a clone of ``model`` whose guidance ends where ``config`` says."""
    return _with_config(model.clone(), "guidance", config, node_id)


def _unpatched(model, path: str) -> torch.nn.Module:
    """Return what ComfyUI would restore at ``path``, whichever clone is loaded now."""
    if path in model.object_patches_backup:
        return model.object_patches_backup[path]
    return comfy.utils.get_attr(model.model, path)


def _rebind(old, new) -> None:
    """ON_CLONE callback: a clone onto another model object gets stand-ins for its own layers.

    Newer hosts clone so for several GPUs and for hooks; the copied patches would otherwise compute
    with the first model's weights, on its device.
    """
    if new.model is old.model:
        return
    follow_pruned(old, new)
    for path, layer in list(new.object_patches.items()):
        if type(layer) is HostCrossAttention and layer.original is _unpatched(old, path):
            original = comfy.utils.get_attr(new.model, path)
            if type(original) is HostCrossAttention:  # copied while a patch was live
                original = original.original
            new.add_object_patch(path, HostCrossAttention(original, layer.kind, layer.is_removed))


def _with_config(clone, name: str, config, node_id: str | None):
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
