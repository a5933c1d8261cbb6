"""The path of the denoised latent D during a run, as far as it is computed.

A step that is left out takes D from the line through the last two computed ones. When the next one
is computed, the line between it and the last shows what D should have been in the gap, and what the
sampler lacks since is added to what it is given. So the gap costs an interpolation's error and not
an extrapolation's, for no evaluation more: the corrector of UniPC (Zhao et al., NeurIPS 2023,
arXiv 2302.04867) on another time axis.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import is_same

TIME_SHIFT = 2.0  # lines are drawn over ln(sigma + 2), which slows down below it
HOLD_BELOW = 0.1  # sigma: from here on only noise is left to remove, so the last answer is kept
KEPT_DTYPE = torch.float32
NUM_KEPT = 2


@dataclass(frozen=True)
class _Gap:
    """A step that was left out. weight: of its D in x / sigma. along: where on the line it was."""

    sigma: float
    weight: float
    along: float


class PredictedPath:
    """The last two computed predictions, and what was answered since."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, Tensor]] = []  # sigma, D
        self._gaps: list[_Gap] = []
        self._dtype = KEPT_DTYPE

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are kept."""
        return sum(kept.nbytes for _, kept in self._kept)

    def fits(self, x: Tensor) -> bool:
        """Whether there is anything to predict the D of ``x`` from."""
        if not self._kept:
            return False
        last = self._kept[-1][1]
        return last.shape == x.shape and last.device == x.device

    def clear(self) -> None:
        """Forget everything: the path goes on elsewhere."""
        self._kept.clear()
        self._gaps.clear()

    def predict(self, sigma: float, next_sigma: float) -> Tensor:
        """Return D for the step from ``sigma`` to ``next_sigma``, a new tensor."""
        last_sigma, last = self._kept[-1]
        is_held = len(self._kept) < NUM_KEPT or sigma < HOLD_BELOW
        along = 1.0 if is_held else _share(self._kept[-2][0], last_sigma, sigma)
        if next_sigma > 0:  # from x / sigma = sum of D (1 / next - 1 / sigma)
            self._gaps.append(_Gap(sigma, 1 / next_sigma - 1 / sigma, along))
        before = last if is_held else self._kept[-2][1]
        return torch.lerp(before, last, along).to(self._dtype)

    def correct(self, sigma: float, next_sigma: float, output: Tensor) -> Tensor:
        """Return D for the step from ``sigma`` to ``next_sigma`` with what the gap lacks added.

        output: D as computed at ``sigma``; it is returned itself where there was no gap.
        """
        if not self._gaps or next_sigma <= 0:
            return output
        last_sigma, last = self._kept[-1]
        before = self._kept[-2][1] if len(self._kept) == NUM_KEPT else last
        # Of the three tensors in what x / sigma lacks: line between less line through.
        of_output = of_last = of_before = 0.0
        for gap in self._gaps:
            between = _share(last_sigma, sigma, gap.sigma)
            of_output += gap.weight * between
            of_last += gap.weight * (1 - between - gap.along)
            of_before -= gap.weight * (1 - gap.along)
        # A step adds D (1 / next - 1 / sigma) to x / sigma.
        step = 1 / next_sigma - 1 / sigma
        exact = output.to(KEPT_DTYPE)
        corrected = exact * (1 + of_output / step) + last * (of_last / step)
        return corrected.add_(before, alpha=of_before / step).to(output.dtype)

    def add(self, sigma: float, output: Tensor) -> None:
        """Keep a computed D; it takes the place of one at the same sigma, or of another shape."""
        others = [
            (old, kept)
            for old, kept in self._kept
            if not is_same(old, sigma) and kept.shape == output.shape
        ]
        own = output.to(KEPT_DTYPE, copy=True)  # samplers may write into what they are given
        self._kept = [*others, (sigma, own)][-NUM_KEPT:]
        self._gaps.clear()
        self._dtype = output.dtype


def _share(start: float, end: float, sigma: float) -> float:
    """Return how far ``sigma`` lies on the way from one sigma (0) to another (1)."""
    first, last, wanted = (math.log(s + TIME_SHIFT) for s in (start, end, sigma))
    return (wanted - first) / (last - first)
