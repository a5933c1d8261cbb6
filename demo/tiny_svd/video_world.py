"""Makes the videos that the tiny SVD learns: one sprite over a blurred photograph, moving straight.

The sprite's looks (colour and shape) decide its direction, ``motion_bucket_id`` its speed, so a
first frame has one right continuation. Photographs: scikit-image's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 64  # pixels, both sides
NUM_FRAMES = 14
FPS = 6
MOTION_BUCKETS = (60, 200)  # lowest and highest
RADIUS = 10.0  # pixels
MARGIN = 13.0  # pixels between a sprite's centre and the edge
PIXELS_PER_FRAME = 0.01  # times motion_bucket_id

DIRECTION_NAMES = ("right", "left", "up", "down")
DIRECTIONS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # (x, y)
SHAPES = ("disc", "square", "triangle", "cross")
COLOURS = torch.tensor(
    [[0.92, 0.12, 0.12], [0.10, 0.25, 0.95], [0.10, 0.78, 0.15], [0.97, 0.88, 0.08]]
)

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png",
    "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
PHOTOGRAPH_WIDTH = 256  # pixels after scaling; the right quarter is kept for unseen videos
BLUR = 5.0  # pixels


@dataclass
class Videos:
    """frames (B, T, 3, H, W) in 0..1; direction, motion_bucket (B,); colour (B, 3).

    path (B, T, 2): the sprite's centre (x, y) in pixels.
    """

    frames: torch.Tensor
    direction: torch.Tensor
    motion_bucket: torch.Tensor
    colour: torch.Tensor
    path: torch.Tensor

    def only(self, index: int) -> "Videos":
        """Return the video of that index alone, B = 1."""
        return Videos(*(value[index : index + 1] for value in vars(self).values()))


def make_videos(
    num_videos: int,
    seed: int,
    unseen: bool = False,
    frames: Sequence[int] = range(NUM_FRAMES),
    motion_buckets: tuple[int, int] = MOTION_BUCKETS,
) -> Videos:
    """Return videos, or chosen frames of them, that follow from the seed.

    Unseen videos have seeds and parts of the photographs that training never shows. Longer videos
    than NUM_FRAMES need slow sprites, of low motion_buckets, or these reach the edge.
    """
    generator = torch.Generator().manual_seed(2 * seed + unseen)
    direction = torch.randint(len(DIRECTIONS), (num_videos,), generator=generator)
    low, high = motion_buckets
    motion_bucket = torch.randint(low, high + 1, (num_videos,), generator=generator)
    path = _paths(direction, motion_bucket, frames, generator)
    jitter = torch.rand(num_videos, 4, generator=generator) * 2 - 1  # (B, colour 3 + size 1)
    colour = (COLOURS[direction] + 0.05 * jitter[:, :3]).clamp(0, 1)
    radius = RADIUS * (1 + 0.1 * jitter[:, 3])
    mask = _sprites(direction, path, radius)[:, :, None]  # (B, T, 1, H, W)
    background = _backgrounds(num_videos, unseen, generator)[:, None]  # (B, 1, 3, H, W)
    pixels = background + mask * (colour[:, None, :, None, None] - background)
    return Videos(pixels, direction, motion_bucket, colour, path)


def pan(seed: int, num_frames: int) -> torch.Tensor:
    """Return a background (T, 3, H, W) that a camera sees while it pans by a pixel a frame."""
    generator = torch.Generator().manual_seed(seed)
    photographs = _photographs()
    photograph = photographs[int(torch.randint(len(photographs), (), generator=generator))]
    u, v = torch.rand(2, generator=generator).tolist()
    left = round(u * (PHOTOGRAPH_WIDTH - SIZE - num_frames + 1))
    top = round(v * (photograph.shape[1] - SIZE))
    views = photograph[:, top : top + SIZE].unfold(2, SIZE, 1)  # (3, H, W', W)
    return views[:, :, left : left + num_frames].permute(2, 0, 1, 3)


def _paths(direction, motion_bucket, frames, generator) -> torch.Tensor:
    """Return sprite centres (B, T, 2) that keep the margin in every frame."""
    step = DIRECTIONS[direction] * (PIXELS_PER_FRAME * motion_bucket)[:, None]  # (B, 2)
    travel = step * max(NUM_FRAMES - 1, *frames)
    lowest = MARGIN + (-travel).clamp(min=0)
    highest = SIZE - MARGIN - travel.clamp(min=0)
    start = lowest + (highest - lowest) * torch.rand(len(step), 2, generator=generator)
    return start[:, None] + step[:, None] * torch.tensor(list(frames))[:, None]


def _sprites(shape, path, radius) -> torch.Tensor:
    """Return coverage (B, T, H, W) in 0..1, soft over about two pixels at the edge."""
    pixel = torch.arange(SIZE) + 0.5
    x = pixel[None, None, None, :] - path[..., 0, None, None]  # (B, T, 1, W)
    y = pixel[None, None, :, None] - path[..., 1, None, None]  # (B, T, H, 1)
    r = radius[:, None, None, None]
    side, thin = 0.88 * r, 0.42 * r
    arms = torch.minimum(
        torch.maximum(x.abs() - r, y.abs() - thin), torch.maximum(x.abs() - thin, y.abs() - r)
    )
    distances = (
        (x**2 + y**2).sqrt() - r,
        torch.maximum(x.abs(), y.abs()) - side,
        torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.62 * r,  # points up
        arms,
    )
    distance = torch.zeros(path.shape[:2] + (SIZE, SIZE))
    for index, candidate in enumerate(distances):
        distance = torch.where((shape == index)[:, None, None, None], candidate, distance)
    return torch.sigmoid(-2.0 * distance)


def _backgrounds(num_videos: int, unseen: bool, generator) -> torch.Tensor:
    """Return crops (B, 3, H, W) of the photographs, mirrored at random, of random brightness."""
    photographs = _photographs()
    choice = torch.randint(len(photographs), (num_videos,), generator=generator)
    place = torch.rand(num_videos, 4, generator=generator)
    kept = PHOTOGRAPH_WIDTH * 3 // 4
    crops = []
    for index, (u, v, mirror, light) in zip(choice.tolist(), place.tolist(), strict=True):
        photograph = photographs[index]
        left = kept if unseen else round(u * (kept - SIZE))
        top = round(v * (photograph.shape[1] - SIZE))
        crop = photograph[:, top : top + SIZE, left : left + SIZE]
        crop = crop.flip(-1) if mirror < 0.5 else crop
        crops.append(crop + 0.1 * (light - 0.5))
    return torch.stack(crops).clamp(0, 1)


@cache
def _photographs() -> list[torch.Tensor]:
    """Return the photographs (3, H, W), blurred, and muted so that sprites stand out."""
    return [_photograph(Path(skimage.data_dir) / name) for name in PHOTOGRAPHS]


def _photograph(path: Path) -> torch.Tensor:
    picture = Image.open(path).convert("RGB")
    height = max(SIZE, round(picture.height * PHOTOGRAPH_WIDTH / picture.width))
    picture = picture.resize((PHOTOGRAPH_WIDTH, height), Image.Resampling.LANCZOS)
    pixels = gaussian_filter(np.asarray(picture, np.float32) / 255, (BLUR, BLUR, 0))
    pixels = torch.from_numpy(pixels).permute(2, 0, 1)
    grey = pixels.mean(0, keepdim=True)
    return 0.5 + 0.8 * (grey + 0.5 * (pixels - grey) - 0.5)
