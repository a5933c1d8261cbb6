"""Continuing a video from its own last frames, and joining the two.

New frames are denoised while they see clean earlier ones, as in Ca2-VDM (Gao et al., arXiv
2411.16375): the overlap stands first in the new latent and the sampler's mask holds it in place.
"""

import torch
from torch import Tensor

KEPT = 0.0  # in a mask: what the sampler holds in place
NEW = 1.0  # what it denoises


def latent_to_continue(samples: Tensor, overlap: int, video_frames: int) -> tuple[Tensor, Tensor]:
    """Return a latent (video_frames, C, h, w) that begins with the end of a video, and its mask.

    samples: the video so far, (T, C, h, w). The mask (video_frames, 1, h, w) is 0 over the overlap.
    Raises ValueError where there are not so many frames, or none would be new.
    """
    if overlap < 1 or overlap >= video_frames:
        raise ValueError(
            f"expected an overlap from 1 to {video_frames - 1}, below video_frames, got {overlap}. "
            "Lower it, or make more frames"
        )
    if overlap > len(samples):
        count = f"{len(samples)} frame{'' if len(samples) == 1 else 's'}"
        raise ValueError(
            f"expected a video of at least {overlap} frames, as many as the overlap, got {count}. "
            "Lower the overlap, or connect the whole video so far"
        )
    latent = samples.new_zeros(video_frames, *samples.shape[1:])
    latent[:overlap] = samples[-overlap:]
    mask = samples.new_full((video_frames, 1, *samples.shape[2:]), NEW)
    mask[:overlap] = KEPT
    return latent, mask


def kept_frames(mask: Tensor) -> int:
    """Return how many frames at the beginning of a mask are held in place."""
    is_kept = (mask == KEPT).flatten(1).all(1).tolist()
    return next((k for k, kept in enumerate(is_kept) if not kept), len(is_kept))


def join_videos(samples: Tensor, continuation: Tensor, overlap: int) -> Tensor:
    """Return a video followed by the new frames of its continuation, (T + F - overlap, C, h, w).

    samples: the video so far, (T, C, h, w), which comes out as it is. continuation: (F, C, h, w),
    whose first frames are the overlap. Raises ValueError where the two do not belong together.
    """
    if samples.shape[1:] != continuation.shape[1:]:
        shapes = [tuple(video.shape[1:]) for video in (samples, continuation)]
        raise ValueError(
            f"expected two latents of one size, got (channels, height, width) {shapes[0]} and "
            f"{shapes[1]}. Connect a video and its own continuation"
        )
    if not 1 <= overlap < len(continuation):
        raise ValueError(
            f"expected an overlap from 1 to {len(continuation) - 1}, below the frames of the "
            f"continuation, got {overlap}. Set the overlap of VCUT Continue Video"
        )
    return torch.cat([samples, continuation[overlap:].to(samples)])
