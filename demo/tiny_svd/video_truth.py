"""Compares videos with the truth that a world knows: their pixels, their sprite's way and size."""

import torch
from video_world import DIRECTIONS, Videos

UNSEEN_SEED = 7  # of the first frames that a model is judged by
LATE = slice(6, 14)  # frames 7 to 14
COLOUR_REACH = 0.35  # distance in RGB at which a pixel no longer counts as the sprite's
LEAST_TRAVEL = 0.25  # of the true way; less does not count as moving
LEAST_MASS = 0.25  # of the true sprite; less does not count as a sprite
LEAST_ZOOM = 0.25  # of the true log of the sprite's size; less does not count as a zoom


def psnr(truth: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Return dB over all but the first dimension, for pixels in 0..1."""
    return -10 * torch.log10((truth - video).square().flatten(1).mean(1).clamp(min=1e-10))


def centroids(videos: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centre (B, T, 2) and mass (B, T) of the pixels that look like the sprite's colour."""
    distance = (videos - colour[:, None, :, None, None]).norm(dim=2)  # (B, T, H, W)
    weight = (1 - distance / COLOUR_REACH).clamp(min=0)
    mass = weight.sum((2, 3))
    pixel = torch.arange(videos.shape[-1]) + 0.5
    x, y = (weight.sum(2) * pixel).sum(2), (weight.sum(3) * pixel).sum(2)
    return torch.stack([x, y], 2) / mass[..., None].clamp(min=1e-6), mass


def zooms_right(truth: Videos, videos: torch.Tensor) -> torch.Tensor:
    """Return (B,) whether the sprite grew where it truly grows, and shrank where it shrinks.

    videos (B, T, 3, H, W) in 0..1. By its mass in the last three frames against that in frame 1.
    """

    def growth(frames: torch.Tensor) -> torch.Tensor:
        mass = centroids(frames, truth.colour)[1].clamp(min=1e-6)
        return (mass[:, -3:].mean(1) / mass[:, 0]).log()

    true_growth = growth(truth.frames)
    return growth(videos) * true_growth.sign() > LEAST_ZOOM * true_growth.abs()


def directions_right(
    truth: Videos, videos: torch.Tensor, directions: torch.Tensor = DIRECTIONS
) -> torch.Tensor:
    """Return (B,) whether the sprite is there to the end and went the way its looks tell.

    The way is from the centroid in frame 1 to the mean centroid of the last three frames.
    directions (kinds, 2): (0, 0) for kinds that go nowhere, whose answer says nothing.
    """
    true_centre, true_mass = centroids(truth.frames, truth.colour)
    centre, mass = centroids(videos, truth.colour)
    travel = centre[:, -3:].mean(1) - centre[:, 0]
    true_length = (true_centre[:, -3:].mean(1) - true_centre[:, 0]).norm(dim=1)
    along = travel @ directions.T  # (B, kinds)
    is_there = mass[:, -3:].mean(1) > LEAST_MASS * true_mass[:, -3:].mean(1)
    has_moved = along.amax(1) > LEAST_TRAVEL * true_length
    return is_there & has_moved & (along.argmax(1) == truth.direction)
