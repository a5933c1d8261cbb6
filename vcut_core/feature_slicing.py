"""Runs independent rows slice by slice, so that intermediate results exist for one slice only.

Frames are independent in spatial layers, pixels in temporal ones. A temporal residual block is
neither: its group norms span all frames and pixels, so their statistics are taken first.
Must not know of ComfyUI, nor where the layers are.
Source: after Zhan et al., "Fast and Memory-Efficient Video Diffusion Using Streamlined Inference",
NeurIPS 2024 (feature slicer, operator grouping). Differs from source: exact.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

AUTOMATIC = 0
MAX_SLICES = 64
SCOPES = ("blocks", "feed_forward", "everything")
FEED_FORWARD_PARTS = 2  # a block's slice runs its feed-forward, which takes most, in two


@dataclass(frozen=True)
class SlicingConfig:
    """The user's choice.

    slices: 0 chooses the fewest that fit when a run starts, 1 is off.
    scope: ``feed_forward`` slices the feed-forward layers, ``blocks`` whole transformer blocks,
        ``everything`` the residual blocks too.
    Raises ValueError when the number is out of range or the word unknown.
    """

    slices: int = AUTOMATIC
    scope: Literal["blocks", "feed_forward", "everything"] = "blocks"

    def __post_init__(self) -> None:
        if not AUTOMATIC <= self.slices <= MAX_SLICES:
            raise ValueError(
                f"expected slices from {AUTOMATIC} (automatic) to {MAX_SLICES}, got {self.slices}"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"expected scope to be one of {', '.join(SCOPES)}, got {self.scope}")


def slices_of(slices: int, relative_size: float) -> int:
    """Return how many slices a layer is cut into whose size is this part of the largest's."""
    return max(1, min(slices, math.ceil(slices * relative_size)))


def slice_bounds(length: int, slices: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of ``slices`` slices of ``length`` rows, as equal as they can be.

    There are never more slices than rows.
    """
    slices = max(1, min(slices, length))
    for index in range(slices):
        yield index * length // slices, (index + 1) * length // slices


def map_slices(function: Callable[[int, int], Tensor], length: int, slices: int) -> Tensor:
    """Return ``function(start, stop)`` of every slice of ``length`` rows, in one tensor.

    function: returns (stop - start, ...); the first slice decides dtype, device and shape.
    """
    output = None
    for start, stop in slice_bounds(length, slices):
        piece = function(start, stop)
        if output is None:
            if stop == length:
                return piece
            output = piece.new_empty((length, *piece.shape[1:]))
        output[start:stop] = piece
        del piece  # before the next one is made
    return output


class GroupStatistics:
    """Mean and variance of each sample's channel groups, gathered over slices.

    In float32, or what x has beyond it. Slices are merged by their own means and squared
    deviations, which cancels nothing.
    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self._count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None  # sum of squared deviations from the mean

    def add(self, x: Tensor) -> None:
        """Take in a slice x (B, C, ...)."""
        grouped = x.unflatten(1, (self.groups, -1)).to(_precise(x))
        dims = tuple(range(2, grouped.ndim))
        count = grouped.shape[2:].numel()
        variance, mean = torch.var_mean(grouped, dim=dims, correction=0)
        if self._mean is None:
            self._count, self._mean, self._squares = count, mean, variance * count
            return
        total = self._count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + variance * count + delta**2 * (self._count * count / total)
        self._count = total

    def affine(self, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), each (B, C): a group norm is ``x * scale + shift``."""
        per_group = weight.shape[0] // self.groups
        deviation = torch.rsqrt(self._squares / self._count + eps)
        scale = deviation.repeat_interleave(per_group, dim=1) * weight.to(deviation.dtype)
        return scale, bias.to(scale.dtype) - self._mean.repeat_interleave(per_group, dim=1) * scale


@dataclass(frozen=True)
class NormThenConv:
    """A group norm, SiLU and a convolution over time alone.

    weight, bias: (C,) of the norm. conv: (B, C, T, H, W) -> (B, C, T, H, W).
    """

    weight: Tensor
    bias: Tensor
    eps: float
    groups: int
    conv: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
        """Return the three of a slice x (B, C, T, H', W), normalised by ``affine``."""
        scale, shift = (value[:, :, None, None, None] for value in affine)
        normalised = (x * scale).add_(shift)  # in their dtype
        return self.conv(nn.functional.silu(normalised, inplace=True).to(x.dtype))

    def affine(self, statistics: GroupStatistics) -> tuple[Tensor, Tensor]:
        """Return the scale and shift that this norm makes of ``statistics``."""
        return statistics.affine(self.weight, self.bias, self.eps)


def temporal_residual_in_place(
    x: Tensor,
    first: NormThenConv,
    second: NormThenConv,
    embedding: Tensor | None,
    mix: Callable[[Tensor, Tensor], Tensor],
    slices: int,
) -> Tensor:
    """Run a temporal residual block over slices of the picture's height, writing into x.

    x: (B, T, C, H, W), contiguous. embedding: (B, C, T), added between the two, or None.
    mix: blends the block's input with its output, each (B, C, T, H', W).
    """
    height = x.shape[3]
    hidden = None
    statistics = GroupStatistics(first.groups)
    for start, stop in slice_bounds(height, slices):
        statistics.add(_rows(x, start, stop))
    affine = first.affine(statistics)
    statistics = GroupStatistics(second.groups)
    for start, stop in slice_bounds(height, slices):
        piece = first.apply(_rows(x, start, stop), affine)
        if embedding is not None:
            piece += embedding[..., None, None]
        statistics.add(piece)
        if hidden is None:
            hidden = torch.empty_like(x, dtype=piece.dtype)
        _rows(hidden, start, stop).copy_(piece)
        del piece
    affine = second.affine(statistics)
    for start, stop in slice_bounds(height, slices):
        rows = _rows(x, start, stop)
        piece = second.apply(_rows(hidden, start, stop), affine).add_(rows)
        rows.copy_(mix(rows, piece))
        del piece
    return x


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Return a slice of x (B, T, C, H, W) as the view (B, C, T, H', W)."""
    return x[:, :, :, start:stop].transpose(1, 2)
