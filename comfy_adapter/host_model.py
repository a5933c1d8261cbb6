"""What the host knows of a patcher's model, whichever clone of it is loaded now."""

from collections.abc import Mapping
from typing import Any

import comfy.model_base
import comfy.model_management
import torch

UNET = "diffusion_model"  # its path in the host's model
CONNECT_SVD = "Connect MODEL from the Image Only checkpoint loader (img2vid model)."


def require_svd(model, node_name: str, advice: str = CONNECT_SVD) -> None:
    """Raise ValueError unless ``model`` (ModelPatcher) is a Stable Video Diffusion model."""
    base = getattr(model, "model", None)
    if not isinstance(base, comfy.model_base.SVD_img2vid):
        kind = type(getattr(base, "model_config", base)).__name__  # SD15, SDXL, ...
        raise ValueError(
            f"{node_name}: expected a Stable Video Diffusion model, got {kind}. {advice}"
        )


def computing_dtype(patcher) -> torch.dtype:
    """Return the dtype that activations have, which need not be that of the weights."""
    base = patcher.model
    # Of the patcher: a clone may name another, which stands on the model once that is loaded.
    named = patcher.get_model_object("manual_cast_dtype")
    return named or base.get_dtype() or next(base.diffusion_model.parameters()).dtype


def own_object(patcher, path: str) -> Any:
    """Return what the model was loaded with at ``path``, without any clone's object patches.

    A run leaves its clone's object patches on the model, which all clones share. What they replaced
    is in a backup, which all clones share too.
    """
    return _object_at(patcher, path, {})


def planned_object(patcher, path: str) -> Any:
    """Return what is at ``path`` when this clone runs; None where it has no such object."""
    return _object_at(patcher, path, patcher.object_patches)


def _object_at(patcher, path: str, patches: Mapping):
    found, reached, backup = patcher.model, "", patcher.object_patches_backup
    for name in path.split("."):
        reached = f"{reached}.{name}".lstrip(".")
        if reached in patches:
            found = patches[reached]
        elif hasattr(found, name):
            found = backup.get(reached, getattr(found, name))
        else:
            return None
    return found


def memory_for_activations(patcher) -> int:
    """Return the bytes that a run of this model may use beside all of its weights."""
    management, device = comfy.model_management, patcher.load_device
    if management.is_device_cpu(device):
        return management.get_free_memory(device)
    # Newer hosts page weights in and out as layers are called (a dynamic patcher), and call free
    # what any such weights take now, this model's too.
    free = getattr(patcher, "get_free_memory", management.get_free_memory)(device)
    free -= patcher.model_size() - (0 if _is_paged(patcher) else patcher.loaded_size())
    for loaded in management.current_loaded_models:  # the host makes room by unloading the others
        other = loaded.model
        is_other = other is not None and other.model is not patcher.model
        if is_other and loaded.device == device and not _is_paged(other):
            free += loaded.model_loaded_memory()
    return max(0, free - management.extra_reserved_memory())


def _is_paged(patcher) -> bool:
    return getattr(patcher, "is_dynamic", lambda: False)()
