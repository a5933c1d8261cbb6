"""Measures how far apart two videos are. Videos are arrays (T, H, W, 3), uint8.

Import it after ``launch.make_pack_importable``: the measures are those of VCUT Compare Videos.
"""

import numpy as np
import torch
from vcut.nodes import video_comparison


def psnr(reference: np.ndarray, video: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over the whole video; inf when equal."""
    return video_comparison.psnr(as_floats(reference), as_floats(video))


def ssim(reference: np.ndarray, video: np.ndarray) -> float:
    """Return the structural similarity, mean over frames; 1 when equal."""
    pairs = zip(as_floats(reference), as_floats(video), strict=True)
    return float(np.mean([video_comparison.ssim(a, b) for a, b in pairs]))


def as_floats(pixels: np.ndarray) -> torch.Tensor:
    """Return uint8 pixels of any shape as float32 in 0..1."""
    return torch.from_numpy(pixels).float() / 255
