"""Writes a short animation where ComfyUI's page can show it."""

import logging
import os
from collections.abc import Iterable
from uuid import uuid4

import folder_paths
import torch

logger = logging.getLogger(__name__)


def save_animation(frames: Iterable[torch.Tensor], fps: float) -> dict[str, str] | None:
    """Write frames (H, W, 3), uint8, as an animated WebP into ComfyUI's folder of temporary files.

    Returns what ComfyUI's address ``/view`` asks for, None where it could not be written.
    """
    try:
        from PIL import Image

        first, *others = (Image.fromarray(frame.numpy()) for frame in frames)
        folder, name = folder_paths.get_temp_directory(), f"vcut_{uuid4().hex}.webp"
        os.makedirs(folder, exist_ok=True)
        first.save(
            os.path.join(folder, name),
            save_all=True,
            append_images=others,
            duration=round(1000 / fps),  # milliseconds of a frame
            loop=0,
            quality=90,
            method=2,  # of 0 to 6: slower ones save little
        )
    except Exception:  # a preview that cannot be made must not cost the user the result
        logger.warning("VCUT: could not write the preview of the videos", exc_info=True)
        return None
    return {"filename": name, "subfolder": "", "type": "temp"}
