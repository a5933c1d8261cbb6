"""Makes videos of whole photographs that a camera pans over or zooms into, a sprite in front.

The sprite's looks (colour and shape) decide whether it goes right, left, up or down with the camera
half behind it, or stays while the camera zooms in or out; ``motion_bucket_id`` decides how fast.
The first frame does not tell how the camera shakes and drifts, how the sprite turns and hops.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from photographs import photographs
from video_world import MOTION_BUCKETS, NUM_FRAMES, Videos

SIZE = 96  # pixels, both sides
RADIUS = 13.0  # pixels
MARGIN = 19.0  # pixels between a sprite's centre and the edge

SPRITE_STEP = 0.01  # pixels a frame for each unit of motion_bucket_id
BACKGROUND_STEP = -0.006  # the same, seen on the screen: the camera follows the sprite
HILL_STEP = -0.010  # the nearer layer
ZOOM_STEP = 0.00015  # log of the scale a frame for each unit
HILL_ZOOM = 1.5  # the nearer layer zooms, drifts and shakes so much faster

DRIFT = 4.0  # pixels over a video at most, on each axis
SHAKE = 0.7  # pixels at most
HOP = 4.0  # pixels at most
TURN = 0.08  # radians a frame at most

KIND_NAMES = ("right", "left", "up", "down", "in", "out")
DIRECTIONS = torch.tensor(
    [[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
)
ZOOMS = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
COLOURS = torch.tensor(
    [
        [0.92, 0.12, 0.12],  # disc
        [0.10, 0.25, 0.95],  # square
        [0.10, 0.78, 0.15],  # triangle
        [0.97, 0.88, 0.08],  # cross
        [0.98, 0.98, 0.98],  # ring
        [0.85, 0.10, 0.80],  # diamond
    ]
)


def make_videos(
    num_videos: int,
    seed: int,
    folder: Path | None = None,
    frames: Sequence[int] = range(NUM_FRAMES),
    chance: int = 0,
) -> Videos:
    """Return videos, or chosen frames of them, that follow from the seed.

    Their ``direction`` is an index of KIND_NAMES. folder: of photographs; those to be judged by if
    None. chance: another number gives other continuations of the same first frames. Raises
    FileNotFoundError for a folder without any photograph.
    """
    told = torch.Generator().manual_seed(2 * seed + (folder is None))
    left_open = torch.Generator().manual_seed(7_919 * seed + chance)
    kind = torch.randint(len(KIND_NAMES), (num_videos,), generator=told)
    bucket = torch.randint(MOTION_BUCKETS[0], MOTION_BUCKETS[1] + 1, (num_videos,), generator=told)
    time = torch.tensor(list(frames), dtype=torch.float32)
    jitter = torch.rand(num_videos, 4, generator=told) * 2 - 1  # (B, colour 3 + size 1)
    colour = (COLOURS[kind] + 0.05 * jitter[:, :3]).clamp(0, 1)
    start = _starts(kind, bucket, told)
    camera = _camera(num_videos, time, left_open)  # (B, T, 2) pixels
    zoom_step = (ZOOMS[kind] * ZOOM_STEP * bucket)[:, None]  # (B, 1)
    log_zoom = zoom_step * time  # (B, T)
    # A photograph that shrinks begins large enough to fill the screen to the end.
    first_scale = (zoom_step * (NUM_FRAMES - 1)).clamp(max=0).exp()
    way = (DIRECTIONS[kind] * bucket[:, None])[:, None] * time[:, None]  # (B, T, 2) times a step
    path = start[:, None] + SPRITE_STEP * way + camera + _hops(kind, time, left_open)
    centre = torch.tensor(SIZE / 2)
    path = centre + (path - centre) * log_zoom.exp()[..., None]
    radius = RADIUS * (1 + 0.1 * jitter[:, 3:]) * log_zoom.exp()  # (B, T)
    turned = (torch.rand(num_videos, 1, generator=left_open) * 2 - 1) * TURN * time  # (B, T)
    pixels = _views(log_zoom, BACKGROUND_STEP * way + camera, first_scale, folder, told)
    near_zoom, near_shift = HILL_ZOOM * log_zoom, HILL_STEP * way + HILL_ZOOM * camera
    near = _views(near_zoom, near_shift, first_scale**HILL_ZOOM, folder, told)
    hill = _hills(near_zoom, near_shift, told)
    pixels = pixels + hill * (0.55 * near + 0.05 - pixels)
    pixels = pixels + _sprites(kind, path, radius, turned) * (
        colour[:, None, :, None, None] - pixels
    )
    return Videos(pixels.clamp(0, 1), kind, bucket, colour, path)


def _starts(kind, bucket, generator) -> torch.Tensor:
    """Return first centres (B, 2) whose sprites keep the margin to the last frame."""
    travel = SPRITE_STEP * DIRECTIONS[kind] * bucket[:, None] * (NUM_FRAMES - 1)
    shrink = (ZOOMS[kind].clamp(min=0) * ZOOM_STEP * bucket * (NUM_FRAMES - 1)).exp()[:, None]
    room = (SIZE / 2 - MARGIN) / shrink  # a zoom moves a sprite away from the middle
    lowest = SIZE / 2 - room + (-travel).clamp(min=0)
    highest = SIZE / 2 + room - travel.clamp(min=0)
    return lowest + (highest - lowest) * torch.rand(len(kind), 2, generator=generator)


def _camera(num_videos: int, time, generator) -> torch.Tensor:
    """Return how far drift and shake move the picture, (B, T, 2) pixels, none in frame 0."""
    chance = torch.rand(num_videos, 2, 4, generator=generator)
    drift, size, phase, pace = (2 * chance - 1)[:, None].unbind(3)  # (B, 1, 2) each
    steps = time[None, :, None]
    phase, pace = math.pi * phase, 0.8 + 0.3 * pace
    shake = SHAKE * size * ((pace * steps + phase).sin() - phase.sin())
    return DRIFT * drift * steps / (NUM_FRAMES - 1) + shake


def _hops(kind, time, generator) -> torch.Tensor:
    """Return how far sprites that go sideways hop up, (B, T, 2) pixels."""
    chance = torch.rand(len(kind), 2, generator=generator)
    height = HOP * chance[:, :1] * (DIRECTIONS[kind][:, :1] != 0)
    hop = -height * ((0.25 + 0.25 * chance[:, 1:]) * time).sin().abs()  # (B, T)
    return torch.stack([torch.zeros_like(hop), hop], 2)


def _grid(log_zoom, shift) -> torch.Tensor:
    """Return where each pixel of the screen looks, (B, T, H, W, 2) in pixels from the middle."""
    pixel = torch.arange(SIZE) + 0.5 - SIZE / 2
    screen = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), 2)  # (H, W, 2)
    moved = screen - shift[:, :, None, None]
    return moved * (-log_zoom).exp()[..., None, None, None]


def _views(log_zoom, shift, first_scale, folder: Path | None, generator) -> torch.Tensor:
    """Return what a camera sees of photographs chosen at random, (B, T, 3, H, W)."""
    choices = photographs(folder)
    grid = _grid(log_zoom, shift)
    chosen = torch.randint(len(choices), (len(grid),), generator=generator).tolist()
    place = torch.rand(len(grid), 5, generator=generator).tolist()
    views = []
    drawn = zip(chosen, grid, first_scale, place, strict=True)
    for index, coordinates, first, (u, v, mirror, scale, light) in drawn:
        photograph = choices[index]
        photograph = photograph.flip(-1) if mirror < 0.5 else photograph
        sides = torch.tensor([photograph.shape[2], photograph.shape[1]], dtype=torch.float32)
        scale = first * (1.15 + 0.25 * scale)  # pixels of the photograph for one of the screen
        room = (sides - SIZE * scale - 40).clamp(min=0)
        centre = sides / 2 + room * (torch.tensor([u, v]) - 0.5)
        where = 2 * (coordinates * scale + centre) / sides - 1
        seen = F.grid_sample(
            photograph.expand(len(where), -1, -1, -1), where,
            padding_mode="reflection", align_corners=False,
        )  # fmt: skip
        views.append(seen + 0.1 * (light - 0.5))
    return torch.stack(views)


def _hills(log_zoom, shift, generator) -> torch.Tensor:
    """Return the nearer layer's coverage (B, T, 1, H, W): hills along the lower edge, or none."""
    chance = torch.rand(len(log_zoom), 5, generator=generator)[:, None, None, None]
    shown, level, height, phase, pace = chance.unbind(4)  # (B, 1, 1, 1)
    x, y = _grid(log_zoom, shift).unbind(4)
    edge = SIZE * (0.18 + 0.2 * level) + 6 * height * ((0.05 + 0.06 * pace) * x + 6.3 * phase).sin()
    below = torch.sigmoid(1.5 * (y - edge))
    return (below * (shown < 0.6))[:, :, None]


def _sprites(kind, path, radius, turned) -> torch.Tensor:
    """Return coverage (B, T, 1, H, W) in 0..1, soft over about two pixels at the edge."""
    pixel = torch.arange(SIZE) + 0.5
    across = pixel[None, None, None, :] - path[..., 0, None, None]  # (B, T, 1, W)
    down = pixel[None, None, :, None] - path[..., 1, None, None]  # (B, T, H, 1)
    cos, sin = turned.cos()[..., None, None], turned.sin()[..., None, None]
    x, y = cos * across + sin * down, cos * down - sin * across  # (B, T, H, W)
    r = radius[..., None, None]
    length, thin = (x**2 + y**2).sqrt(), 0.42 * r
    far, near = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    distances = torch.stack(
        [
            length - r,
            far - 0.88 * r,
            torch.maximum(0.866 * x.abs() - 0.5 * y, y) - 0.62 * r,  # points up
            torch.maximum(far - r, near - thin),
            (length - 0.7 * r).abs() - 0.3 * r,
            (x.abs() + y.abs()) - 1.15 * r,
        ]
    )  # (kinds, B, T, H, W)
    return torch.sigmoid(-2.0 * distances[kind, torch.arange(len(kind))])[:, :, None]
