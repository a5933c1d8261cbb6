"""Runs independent rows slice by slice, so that intermediate results exist for one slice only."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def slices_of(slices: int, relative_size: float) -> int:
    """Return how many slices a layer of this part of the largest layer's size is cut into."""
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
            output = _room_for(length, piece)
        output[start:stop] = piece
        del piece  # before the next one is made
    assert output is not None
    return output


def _room_for(length: int, piece: Tensor) -> Tensor:
    """Return room for so many rows like those of ``piece``, in the layout of its pictures."""
    is_channels_last = piece.ndim == 4 and piece.stride(1) == 1
    return torch.empty(
        (length, *piece.shape[1:]),
        dtype=piece.dtype,
        device=piece.device,
        memory_format=torch.channels_last if is_channels_last else torch.contiguous_format,
    )
