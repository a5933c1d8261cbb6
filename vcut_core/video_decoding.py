"""Decoding a video's latent as one video, in slices: the whole time axis, on little memory.

SVD's decoder works over time, so a chunk of the frames gives another picture. Its layers are
independent either over frames or over rows: what works on space runs over frames, what works on
time over rows with the statistics of its group norms taken first. What waits between two stages
lies where there is room, frame by frame.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .slices import slice_bounds, slices_of
from .temporal_residual import GroupStatistics, NormThenConv, temporal_residual

MAX_SLICES = 64
AUTOMATIC = 0

# What is alive at once in a stage, in its largest activation; counted on the meta device at SVD's
# size. Frames: an input with its norm and SiLU, the convolution's output and what comes after.
FRAME_FACTOR = 3.5
# Rows: the slice, its norm in float32, the convolution's output, another copy of the slice.
TIME_FACTOR = 5.1
MARGIN = 1.1  # for a frame on its way, and for what kernels take for themselves


@dataclass(frozen=True)
class FrameStage:
    """Layers that treat each frame on its own.

    compute: (N, C, H, W) -> (N, C', H', W'). size: elements of the largest activation for a pixel
    of the latent. rest_size: the same of what it gives.
    """

    compute: Callable[[Tensor], Tensor]
    size: float
    rest_size: float

    @property
    def work(self) -> float:
        """Elements at once for a pixel of the latent."""
        return FRAME_FACTOR * self.size


@dataclass(frozen=True)
class TimeStage:
    """A residual block over time.

    norms: (norm and convolution) twice, given a tensor for device and dtype. mix: blends its input
    with its output, each (1, C, T, H', W). size: elements of an activation for a latent's pixel.
    """

    norms: Callable[[Tensor], tuple[NormThenConv, NormThenConv]]
    mix: Callable[[Tensor, Tensor], Tensor]
    size: float

    @property
    def work(self) -> float:
        """Elements at once for a pixel of the latent."""
        return TIME_FACTOR * self.size


@dataclass(frozen=True)
class TimeConvStage:
    """The last convolution over time: (1, C, T, H, W) -> (1, C', T, H, W), of few channels."""

    compute: Callable[[Tensor], Tensor]
    work: float = 0.0


Stage = FrameStage | TimeStage | TimeConvStage


def slices_in(stage: Stage, stages: Sequence[Stage], slices: int) -> int:
    """Return how many slices a stage is cut into when the largest one is cut into ``slices``."""
    return slices_of(slices, stage.work / max(stage.work for stage in stages))


@dataclass(frozen=True)
class DecodeMemory:
    """What decoding takes.

    stages: of the decoder. frames, pixels: of the latent. itemsize: bytes of a number.
    """

    stages: Sequence[Stage]
    frames: int
    pixels: int
    itemsize: int

    def working_bytes(self, slices: int) -> int:
        """Return the bytes that are computed with at once."""
        return math.ceil(max(self._working_bytes(stage, slices) for stage in self.stages))

    def _working_bytes(self, stage: Stage, slices: int) -> float:
        count = slices_in(stage, self.stages, slices)
        at_once = self.frames / count
        if isinstance(stage, FrameStage):
            at_once = math.ceil(self.frames / min(count, self.frames))
        return stage.work * self.pixels * self.itemsize * at_once

    @property
    def resting_bytes(self) -> int:
        """The most bytes that wait between two stages."""
        sizes = (s.rest_size for s in self.stages if isinstance(s, FrameStage))
        return math.ceil(max(sizes) * self.pixels * self.frames * self.itemsize)

    def required_bytes(self, slices: int, resting: int) -> int:
        """Return the bytes, with a margin, where so many activations wait beside the work."""
        return math.ceil(MARGIN * (self.working_bytes(slices) + resting * self.resting_bytes))

    def choose(self, free_bytes: float) -> int:
        """Return the fewest slices with which everything fits, or else what is computed with."""
        for resting in (2, 1, 0):
            for slices in range(1, MAX_SLICES + 1):
                # The whole decode keeps nothing waiting.
                if self.required_bytes(slices, resting if slices > 1 else 0) <= free_bytes:
                    return slices
        return MAX_SLICES

    def keeps_hidden(self, slices: int, free_bytes: float) -> bool:
        """Return whether what lies between two convolutions over time may wait too."""
        return self.required_bytes(slices, 2) <= free_bytes


def decode_video(
    latent: Tensor,
    stages: Sequence[Stage],
    slices: int,
    device: torch.device,
    rest: Callable[[int, Tensor], Tensor],
    note: Callable[[int], None] = lambda stage: None,
    keeps_hidden: bool = False,
) -> Tensor:
    """Return the decoded frames (T, C, H, W) of a latent (T, 4, h, w), one video.

    slices: of the largest stage; smaller ones are cut into fewer. device: where it is computed.
    rest: returns a computed frame, given its number, where it is to wait; the frame of that number
    before it is no longer read. note: called with a stage's number before each of its slices of
    frames; it may raise to stop. keeps_hidden: whether there is room to keep what lies between two
    convolutions over time; it is computed twice without.
    """
    frames = list(latent)
    statistics = None
    for number, (stage, following) in enumerate(zip(stages, [*stages[1:], None], strict=True)):
        note(number)
        if isinstance(stage, TimeConvStage):
            whole = torch.stack(frames, 1)[None].to(device)
            frames = list(stage.compute(whole)[0].unbind(1))
            continue
        count = slices_in(stage, stages, slices)
        if isinstance(stage, TimeStage):
            rows = _FrameRows(frames, device)
            first, second = stage.norms(rows.read(0, 1))
            keep = rows.like if keeps_hidden else None
            temporal_residual(rows, first, second, None, stage.mix, count, keep, statistics)
            statistics = None
            continue
        statistics = None
        for start, stop in slice_bounds(len(frames), count):
            note(number)
            output = stage.compute(torch.stack(frames[start:stop]).to(device))
            if isinstance(following, TimeStage):
                statistics = statistics or GroupStatistics(following.norms(output)[0].groups)
                _add_frames(statistics, output)
            frames[start:stop] = [rest(start + k, frame) for k, frame in enumerate(output)]
            del output
    return torch.stack([frame.to(device) for frame in frames])


def _add_frames(statistics: GroupStatistics, frames: Tensor) -> None:
    for frame in frames:  # one by one: they are added up in float32
        statistics.add(frame[None])


class _FrameRows:
    """Rows of frames (C, H, W) that lie anywhere, read as (1, C, T, H', W) on a device."""

    def __init__(self, frames: list[Tensor], device: torch.device) -> None:
        self.frames, self.device = frames, device

    @property
    def height(self) -> int:
        """How many rows there are."""
        return self.frames[0].shape[1]

    def like(self, piece: Tensor) -> "_FrameRows":
        """Return room for as many rows of the dtype of ``piece``."""
        room = [torch.empty_like(frame, dtype=piece.dtype) for frame in self.frames]
        return _FrameRows(room, self.device)

    def statistics(self, groups: int, slices: int) -> GroupStatistics:
        """Return what adds the rows up as they come: reading them once more would take long."""
        return GroupStatistics(groups)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows."""
        pieces = [frame[:, start:stop].to(self.device) for frame in self.frames]
        return torch.stack(pieces, 1)[None]

    def write(self, start: int, stop: int, piece: Tensor) -> None:
        """Put rows back where their frames lie."""
        for frame, own in zip(self.frames, piece[0].unbind(1), strict=True):
            frame[:, start:stop].copy_(own)
