"""The worlds whose videos a tiny SVD can learn, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import camera_world
import photographs
import torch
import video_world
from video_world import Videos

NAMES = ("sprites", "camera")


@dataclass
class World:
    """What a model is to learn.

    make(num_videos, seed, frames=...) returns videos to train on, unseen(num_videos, seed) others
    of photographs, or parts of them, that training never shows. camera_moves: the whole picture
    does, not a sprite alone.
    """

    make: Callable[..., Videos]
    unseen: Callable[..., Videos]
    size: int  # pixels, both sides
    directions: torch.Tensor  # (kinds of sprites, 2): where each goes, x and y
    camera_moves: bool

    @property
    def num_kinds(self) -> int:
        return len(self.directions)


def world_named(name: str, work: Path) -> World:
    """Return a world; photographs to train on lie in the folder ``work``, once they are fetched."""
    if name == "sprites":
        make = video_world.make_videos
        unseen = partial(make, unseen=True)
        return World(make, unseen, video_world.SIZE, video_world.DIRECTIONS, camera_moves=False)
    make = partial(camera_world.make_videos, folder=work / "photographs")
    unseen = camera_world.make_videos
    return World(make, unseen, camera_world.SIZE, camera_world.DIRECTIONS, camera_moves=True)


def fetch_photographs(name: str, work: Path) -> None:
    """Fetch the photographs that a world is trained on, if it needs any, into ``work``.

    Raises as ``photographs.fetch``.
    """
    folder, partial_folder = work / "photographs", work / "photographs.partial"
    if name == "camera" and not folder.exists():
        photographs.fetch(partial_folder)
        partial_folder.rename(folder)  # what was cut short is not believed in
