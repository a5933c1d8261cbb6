"""Runs independent rows slice by slice, so that intermediate results exist for one slice only."""

import math
from collections.abc import Callable, Iterator

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
            output = piece.new_empty((length, *piece.shape[1:]))
        output[start:stop] = piece
        del piece  # before the next one is made
    assert output is not None
    return output
