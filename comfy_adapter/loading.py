"""Loads an SVD checkpoint for VCUT Load SVD Checkpoint."""

import comfy.model_management
import comfy.sd
import folder_paths

from ..vcut_core.cross_attention import CrossAttentionConfig
from .apply_technique import add_technique
from .host_model import require_svd
from .pruned_layers import LOADER
from .pruning import adopt_pruned

CHOOSE_SVD = "Choose svd.safetensors or svd_xt.safetensors in the node."


def checkpoint_names() -> list[str]:
    """Return the checkpoints that ComfyUI lists."""
    return folder_paths.get_filename_list("checkpoints")


def load_pruned(ckpt_name: str, config: CrossAttentionConfig, node_id: str | None = None):
    """Return (MODEL, CLIP_VISION, VAE) of an SVD checkpoint, the model pruned for ``config``.

    ckpt_name: as ComfyUI lists it under checkpoints.
    Raises ValueError when the file is missing, damaged or no SVD checkpoint.
    """
    path = folder_paths.get_full_path("checkpoints", ckpt_name)
    if path is None:
        raise ValueError(f"{LOADER}: expected a checkpoint, found no {ckpt_name}. Choose another.")
    try:
        model, _clip, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=False, output_clipvision=True
        )
    except (comfy.model_management.OOM_EXCEPTION, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{LOADER}: expected an SVD checkpoint, could not read {ckpt_name} "
            f"({_first_line(error)}). Download it again or choose another."
        ) from error
    require_svd(model, LOADER, CHOOSE_SVD)
    return prune_model(model, config, node_id), clip_vision, vae


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prune_model(model, config: CrossAttentionConfig, node_id: str | None = None):
    """Return ``model`` itself, nobody else's yet, pruned for ``config`` and following it."""
    adopt_pruned(model, config.temporal)
    return add_technique(model, config, node_id)
