"""A temporal residual block over slices of the picture's height, exact.

Its group norms span all frames and pixels, so their statistics are taken first. They are applied
as torch applies them, in its order of operations and of rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .slices import slice_bounds

Affine = tuple[Tensor, Tensor]  # (scale, shift), each (B, C): a group norm is x * scale + shift


class Statistics(Protocol):
    """What a group norm needs to know of a tensor whose slices it is given."""

    def add(self, x: Tensor) -> None:
        """Take in a slice x (B, C, ...)."""
        ...

    def affine(self, weight: Tensor, bias: Tensor, eps: float) -> Affine:
        """Return what the group norm multiplies and adds."""
        ...


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

    def affine(self, weight: Tensor, bias: Tensor, eps: float) -> Affine:
        """Return what the group norm multiplies and adds."""
        assert self._mean is not None and self._squares is not None, "no slice was added"
        return _affine(self._mean, torch.rsqrt(self._squares / self._count + eps), weight, bias)


class TensorStatistics:
    """The same of a tensor that is there, with the sums in torch's own order.

    x: (B, C, T, H, W), full once ``affine`` is called. Read in ``slices`` slices of its groups, for
    torch copies what it normalises.
    """

    def __init__(self, x: Tensor, groups: int, slices: int) -> None:
        self.x, self.groups, self.slices = x, groups, slices

    def add(self, x: Tensor) -> None:
        """Do nothing: the slice is in the tensor."""

    def affine(self, weight: Tensor, bias: Tensor, eps: float) -> Affine:
        """Return what the group norm multiplies and adds."""
        # A slice in float32 takes no more bytes than one of x.
        slices = self.slices * _precise(self.x).itemsize // self.x.itemsize
        bounds = slice_bounds(self.groups, slices)
        parts = [self._mean_and_rstd(start, stop, eps) for start, stop in bounds]
        mean, rstd = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        return _affine(mean, rstd, weight, bias)

    def _mean_and_rstd(self, start: int, stop: int, eps: float) -> tuple[Tensor, Tensor]:
        """Return both of some groups, each (B, groups), in the precision torch computes in."""
        per_group = self.x.shape[1] // self.groups
        part = self.x[:, start * per_group : stop * per_group]
        batch, channels, *rest = part.shape
        weight = bias = None
        # It returns its weights' dtype, else its input's, rounded further than what it uses.
        if part.device.type == "cpu":  # whose sums have the order of layout and dtype
            part = part.contiguous(memory_format=_layout(part))
            weight = part.new_ones(channels, dtype=_precise(part))
            bias = torch.zeros_like(weight)
        else:  # whose kernels take one layout, and weights of their input's dtype only
            part = part.to(_precise(part)).contiguous()
        _, mean, rstd = torch.native_group_norm(
            part, weight, bias, batch, channels, math.prod(rest), stop - start, eps
        )
        return mean, rstd


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

    def apply(self, x: Tensor, affine: Affine) -> Tensor:
        """Return the three of a slice x (B, C, T, H', W), normalised by ``affine``."""
        scale, shift = (value[:, :, None, None, None] for value in affine)
        normalised = x.to(scale.dtype, copy=True)
        torch.addcmul(shift, normalised, scale, out=normalised)  # fused, as in torch's own norm
        return self.conv(nn.functional.silu(normalised.to(x.dtype), inplace=True))

    def affine(self, statistics: Statistics) -> Affine:
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

    def statistics(self, groups: int, slices: int) -> Statistics:
        """Return what takes in all rows, slice by slice, for a norm of so many groups."""
        ...


class TensorRows:
    """Rows of one tensor x (B, T, C, H, W); read as views of it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @property
    def height(self) -> int:
        """How many rows there are."""
        return self.x.shape[3]

    def like(self, piece: Tensor) -> "TensorRows":
        """Return room for as many rows of the dtype and layout of ``piece``."""
        batch, frames, channels, height, width = self.x.shape
        room = torch.empty(
            (batch, channels, frames, height, width),
            dtype=piece.dtype,
            device=piece.device,
            memory_format=_layout(piece),
        )
        return TensorRows(room.transpose(1, 2))

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows as a view (B, C, T, stop - start, W)."""
        return self.x[:, :, :, start:stop].transpose(1, 2)

    def write(self, start: int, stop: int, piece: Tensor) -> None:
        """Copy rows into x."""
        self.read(start, stop).copy_(piece)

    def statistics(self, groups: int, slices: int) -> Statistics:
        """Return what reads x itself."""
        return TensorStatistics(self.x.transpose(1, 2), groups, slices)


def temporal_residual_in_place(
    x: Tensor,
    first: NormThenConv,
    second: NormThenConv,
    embedding: Tensor | None,
    mix: Callable[[Tensor, Tensor], Tensor],
    slices: int,
) -> Tensor:
    """Run a temporal residual block over slices of the picture's height, writing into x.

    x: (B, T, C, H, W), its frames contiguous or channels-last. embedding: (B, C, T), added between
    the two, or None.
    mix: blends the block's input with its output, each (B, C, T, H', W).
    """
    rows = TensorRows(x)
    temporal_residual(rows, first, second, embedding, mix, slices, rows.like)
    return x


def temporal_residual(
    rows: Rows,
    first: NormThenConv,
    second: NormThenConv,
    embedding: Tensor | None,
    mix: Callable[[Tensor, Tensor], Tensor],
    slices: int,
    keep_hidden: Callable[[Tensor], Rows] | None = None,
    statistics: Statistics | None = None,
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
        statistics = rows.statistics(first.groups, slices)
        for start, stop in bounds:
            statistics.add(rows.read(start, stop))
    affine = first.affine(statistics)
    hidden: Rows | None = None
    statistics = None
    for start, stop in bounds:
        piece = hidden_of(start, stop)
        if keep_hidden is not None:
            hidden = hidden or keep_hidden(piece)
            hidden.write(start, stop, piece)
        if statistics is None:
            statistics = (
                GroupStatistics(second.groups)
                if hidden is None
                else hidden.statistics(second.groups, slices)
            )
        statistics.add(piece)
        del piece
    assert statistics is not None, "a picture without rows"
    last_affine = second.affine(statistics)
    for start, stop in bounds:
        inner = hidden.read(start, stop) if hidden else hidden_of(start, stop)
        piece = second.apply(inner, last_affine)
        del inner
        own = rows.read(start, stop)
        rows.write(start, stop, mix(own, piece.add_(own)))
        del piece, own


def _affine(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Affine:
    """Return what a group norm multiplies and adds. mean, rstd: (B, groups). weight, bias: (C,)."""
    per_group = weight.shape[0] // mean.shape[1]
    mean, rstd = (value.repeat_interleave(per_group, dim=1) for value in (mean, rstd))
    scale = rstd * weight.to(rstd.dtype)
    return scale, torch.addcmul(bias.to(scale.dtype), mean, scale, value=-1)


def _layout(x: Tensor) -> torch.memory_format:
    """Return in which of its two layouts x (B, C, T, H, W) lies."""
    return torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
