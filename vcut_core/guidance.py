"""Where classifier-free guidance ends, and what the image embedding is from there on.

Steps count from 1, as in the paper: step c itself is already unguided.
Must not know of models or samplers: a schedule comes in as plain floats.
Source: arXiv 2407.19205, section III (eq. 4 is ``after_cut="average"``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# The factor that each choice puts on the image embedding. The affine maps turn a halved embedding
# into 1/2 (L(y) + L(0)), eq. 4 of the paper, without a second evaluation.
EMBEDDING_SCALE = {"average": 0.5, "positive": 1.0, "none": 0.0}
AFTER_CUT_MODES = tuple(EMBEDDING_SCALE)
MAX_STEPS = 10000

# Samplers compute a sigma anew (exp of a log, say), so equal sigmas differ in their last bits.
SIGMA_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GuidanceConfig:
    """The user's cut.

    cut_step: first unguided step, counted in a schedule of ``steps``; 1 never guides, more than
        ``steps`` always does.
    steps: the length of the schedule that ``cut_step`` counts in.
    after_cut: the embedding of the unguided steps: ``average`` (halfway between the image's own and
        the zero embedding), ``positive`` (the image's own), ``none`` (zero).
    cut_sigma: above 0, guidance ends at the first evaluation whose sigma is below it instead, and
        ``cut_step``, ``steps`` and ``start_step`` are not used.
    start_step: first guided step, counted as ``cut_step`` is; the steps before it are unguided,
        with the embedding of ``after_cut``. 1 guides from the start.
    Raises ValueError when a number is out of range or a word unknown.
    """

    cut_step: int = 17
    steps: int = 25
    after_cut: Literal["average", "positive", "none"] = "average"
    cut_sigma: float = 0.0
    start_step: int = 1

    def __post_init__(self) -> None:
        for name in ("cut_step", "steps", "start_step"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_STEPS:
                raise ValueError(f"expected {name} from 1 to {MAX_STEPS}, got {value}")
        if self.after_cut not in AFTER_CUT_MODES:
            choices = ", ".join(AFTER_CUT_MODES)
            raise ValueError(f"expected after_cut to be one of {choices}, got {self.after_cut}")
        if not (math.isfinite(self.cut_sigma) and self.cut_sigma >= 0):
            raise ValueError(f"expected cut_sigma of 0 (off) or more, got {self.cut_sigma}")

    @property
    def embedding_scale(self) -> float:
        """The factor on the image embedding in unguided steps."""
        return EMBEDDING_SCALE[self.after_cut]

    def plan(self, sigmas: Sequence[float]) -> "GuidancePlan":
        """Return the decisions for a run over ``sigmas``, length num_steps + 1.

        Descending, as a sampler denoises; a rising schedule (unsampling) is never cut.
        """
        starts = tuple(sigmas[:-1])
        if any(later > earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False)):
            return GuidancePlan(starts, len(starts), is_rising=True)
        if self.cut_sigma > 0:
            guided_steps = sum(not _is_below(sigma, self.cut_sigma) for sigma in starts)
            return GuidancePlan(starts, guided_steps, self.cut_sigma)
        guided_steps = min(self._steps_before(self.cut_step, len(starts)), len(starts))
        late_steps = self._steps_before(self.start_step, len(starts))
        if late_steps >= guided_steps:  # never guided: the same as a cut at the first step
            return GuidancePlan(starts, 0)
        return GuidancePlan(starts, guided_steps, late_steps=late_steps)

    def _steps_before(self, step: int, num_steps: int) -> int:
        """Return how many steps of a run of ``num_steps`` come before ``step`` of the schedule."""
        if num_steps == self.steps:
            return step - 1
        # Half a step rounds up: guidance lasts rather longer than the user asked for.
        return math.floor((step - 1) * num_steps / self.steps + 0.5)


@dataclass(frozen=True)
class GuidancePlan:
    """One run's decisions.

    starts: the sigma at which each step starts, descending.
    guided_steps: the last guided step, from 1; 0 when none is guided.
    late_steps: unguided steps before the first guided one.
    """

    starts: tuple[float, ...]
    guided_steps: int
    cut_sigma: float = 0.0
    is_rising: bool = False
    late_steps: int = 0

    @property
    def num_steps(self) -> int:
        """Steps in this run."""
        return len(self.starts)

    @property
    def has_cut(self) -> bool:
        """Whether any step of this run starts unguided."""
        return self.guided_steps < self.num_steps

    def step(self, sigma: float) -> int:
        """Return the step (from 1) that an evaluation at ``sigma`` belongs to.

        By value and not by counting calls: second-order samplers evaluate several times a step and
        adaptive ones as often as they like.
        """
        return max(1, sum(start >= sigma * (1 - SIGMA_TOLERANCE) for start in self.starts))

    def is_guided(self, sigma: float) -> bool:
        """Whether an evaluation at ``sigma`` still has guidance."""
        if self.is_rising:
            return True
        if self.cut_sigma > 0:
            return not _is_below(sigma, self.cut_sigma)
        return self.late_steps < self.step(sigma) <= self.guided_steps

    def shareable_cut_sigma(self) -> float | None:
        """Return a short decimal that, as ``cut_sigma``, cuts before the same step; None: no cut.

        It lies just above the sigma of the first unguided step.
        """
        if not self.has_cut:
            return None
        sigma = self.starts[self.guided_steps]
        exponent = math.floor(math.log10(sigma)) - 3 if sigma > 0 else -6
        unit = 10.0**exponent  # four significant digits
        count = math.floor(sigma / unit) + 1
        while not _is_below(sigma, count * unit):
            count += 1
        return round(count * unit, max(0, -exponent))


def _is_below(sigma: float, limit: float) -> bool:
    return sigma < limit * (1 - SIGMA_TOLERANCE)
