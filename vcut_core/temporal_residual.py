"""A temporal residual block over slices of the picture's height, exact.

Its group norms span all frames and pixels, so their statistics are taken first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .slices import slice_bounds


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
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, variance * count
            return
        total = self._count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + variance * count + delta**2 * (self._count * count / total)
        self._count = total

    def affine(self, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), each (B, C): a group norm is ``x * scale + shift``."""
        assert self._mean is not None and self._squares is not None, "no slice was added"
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


class Rows(Protocol):
    """Rows of the picture of all frames, (B, C, T, H, W), wherever they lie."""

    @property
    def height(self) -> int:
        """How many rows there are."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows (B, C, T, stop - start, W) where they are computed with."""
        ...

    def write(self, start: int, stop: int, piece: Tensor) -> None:
        """Put computed rows in their place."""
        ...


class TensorRows:
    """Rows of one tensor x (B, T, C, H, W); read as views of it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @property
    def height(self) -> int:
        """How many rows there are."""
        return self.x.shape[3]

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows as a view (B, C, T, stop - start, W)."""
        return self.x[:, :, :, start:stop].transpose(1, 2)

    def write(self, start: int, stop: int, piece: Tensor) -> None:
        """Copy rows into x."""
        self.read(start, stop).copy_(piece)


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
    temporal_residual(
        TensorRows(x), first, second, embedding, mix, slices,
        lambda piece: TensorRows(torch.empty_like(x, dtype=piece.dtype)),
    )  # fmt: skip
    return x


def temporal_residual(
    rows: Rows,
    first: NormThenConv,
    second: NormThenConv,
    embedding: Tensor | None,
    mix: Callable[[Tensor, Tensor], Tensor],
    slices: int,
    keep_hidden: Callable[[Tensor], Rows] | None = None,
    statistics: GroupStatistics | None = None,
) -> None:
    """Run a temporal residual block over slices of rows, writing into them.

    keep_hidden: returns room for what lies between the two convolutions, given a slice of it; it
        is computed twice without. statistics: of all rows, where they are known already.
    """

    def hidden_of(start: int, stop: int) -> Tensor:
        piece = first.apply(rows.read(start, stop), affine)
        if embedding is not None:
            piece += embedding[..., None, None]
        return piece

    bounds = list(slice_bounds(rows.height, slices))
    if statistics is None:
        statistics = GroupStatistics(first.groups)
        for start, stop in bounds:
            statistics.add(rows.read(start, stop))
    affine = first.affine(statistics)
    hidden = None
    statistics = GroupStatistics(second.groups)
    for start, stop in bounds:
        piece = hidden_of(start, stop)
        statistics.add(piece)
        if keep_hidden is not None:
            hidden = hidden or keep_hidden(piece)
            hidden.write(start, stop, piece)
        del piece
    last_affine = second.affine(statistics)
    for start, stop in bounds:
        inner = hidden.read(start, stop) if hidden else hidden_of(start, stop)
        piece = second.apply(inner, last_affine)
        del inner
        own = rows.read(start, stop)
        rows.write(start, stop, mix(own, piece.add_(own)))
        del piece, own


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
