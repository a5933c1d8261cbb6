"""Guidance cut: classifier-free guidance ends at a step, and the image embedding changes there.

Steps count from 1, as in the paper: step c itself is already unguided.
Source: arXiv 2407.19205, section III (eq. 4 is ``after_cut="average"``).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .calls import CondsCall
from .schedule import SIGMA_TOLERANCE, is_below, is_rising
from .technique import RunFacts, Technique

# The factor that each choice puts on the image embedding. The affine maps turn a halved embedding
# into 1/2 (L(y) + L(0)), eq. 4 of the paper, without a second evaluation.
EMBEDDING_SCALE = {"average": 0.5, "positive": 1.0, "none": 0.0}
AfterCut = Literal["average", "positive", "none"]
AFTER_CUT_MODES = tuple(EMBEDDING_SCALE)
MAX_STEPS = 10000


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
    after_cut: AfterCut = "average"
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
        if is_rising(sigmas):
            return GuidancePlan(starts, len(starts), is_rising=True)
        if self.cut_sigma > 0:
            last_guided_step = sum(not is_below(sigma, self.cut_sigma) for sigma in starts)
            return GuidancePlan(starts, last_guided_step, self.cut_sigma)
        last_guided_step = min(self._steps_before(self.cut_step, len(starts)), len(starts))
        num_unguided_first = self._steps_before(self.start_step, len(starts))
        if num_unguided_first >= last_guided_step:  # never guided: a cut at the first step
            return GuidancePlan(starts, 0)
        return GuidancePlan(starts, last_guided_step, num_unguided_first=num_unguided_first)

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
    last_guided_step: counted from 1; 0 when none is guided.
    num_unguided_first: unguided steps before the first guided one.
    """

    starts: tuple[float, ...]
    last_guided_step: int
    cut_sigma: float = 0.0
    is_rising: bool = False
    num_unguided_first: int = 0

    @property
    def num_steps(self) -> int:
        """Steps in this run."""
        return len(self.starts)

    @property
    def has_cut(self) -> bool:
        """Whether any step of this run starts unguided."""
        return self.last_guided_step < self.num_steps

    @property
    def num_guided_steps(self) -> int:
        """Steps that start with guidance."""
        return max(0, self.last_guided_step - self.num_unguided_first)

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
            return not is_below(sigma, self.cut_sigma)
        return self.num_unguided_first < self.step(sigma) <= self.last_guided_step

    def shareable_cut_sigma(self) -> float | None:
        """Return a short decimal that, as ``cut_sigma``, cuts before the same step; None: no cut.

        It lies just above the sigma of the first unguided step.
        """
        if not self.has_cut:
            return None
        sigma = self.starts[self.last_guided_step]
        exponent = math.floor(math.log10(sigma)) - 3 if sigma > 0 else -6
        unit = 10.0**exponent  # four significant digits
        count = math.floor(sigma / unit) + 1
        while not is_below(sigma, count * unit):
            count += 1
        return round(count * unit, max(0, -exponent))

    def lines(self) -> list[str]:
        """Return how long guidance lasts, for the node."""
        start = self.num_unguided_first + 1
        late = f", from step {start}" if start > 1 and self.num_guided_steps else ""
        return [f"guided {self.num_guided_steps} of {self.num_steps} steps{late}"]

    def details(self) -> list[str]:
        """Return where guidance ends, for the log."""
        if not self.has_cut:
            return ["no cut in this run"]
        cut_sigma = self.shareable_cut_sigma()
        return [f"cut at step {self.last_guided_step + 1} (cut_sigma {cut_sigma:g})"]


class GuidanceCut(Technique):
    """Evaluates cond alone in unguided steps and returns it for both, so guidance is exactly it."""

    key = "guidance"
    config_class = GuidanceConfig
    saves_evaluations = True

    def __init__(self, config: GuidanceConfig, facts: RunFacts) -> None:
        super().__init__(config, facts)
        self.plan: GuidancePlan | None = None  # made at the first pair of cond and uncond
        self._had_nothing_to_cut = False
        self._cut_ids: set[Hashable] = set()  # of conds that were evaluated without their uncond

    def phase(self, sigma: float, sigmas: Sequence[float]) -> Hashable:
        """Return whether the prediction at ``sigma`` is guided."""
        return self.config.plan(sigmas).is_guided(sigma)

    def around_conds(
        self, call: CondsCall, compute: Callable[[CondsCall], list[Tensor]]
    ) -> list[Tensor]:
        """Return the predictions, past the cut that of cond for both."""
        is_again = call.is_first_alone and call.cond_ids <= self._cut_ids
        if not (call.is_pair or is_again):
            self.fallbacks[self._reason(call)] += 1
            return compute(call)
        if self._is_guided(call):
            return compute(call)
        call = call.changed(embedding_scale=self.config.embedding_scale)
        if is_again:  # PAG compares against the cut prediction, so use the same embedding
            return compute(call)
        self._cut_ids |= call.cond_ids
        output = compute(call.first_alone())[0]
        self.evaluations_saved += call.count_evaluations(1)
        return [output, output]

    def _is_guided(self, call: CondsCall) -> bool:
        plan = self.plan
        if plan is None:
            plan = self.plan = self.config.plan(call.sigmas())
            self.facts.announce(self, plan.lines())
        # One read of sigma each evaluation: which branch to run cannot be known without it.
        return plan.is_guided(call.sigma())

    def _reason(self, call: CondsCall) -> str:
        present = sum(call.is_present)
        if present != 1:
            return f"not cut: the guider has {present} conds"
        if self.plan is None:
            return "not cut: cfg is 1, so there is no guidance"
        return "not cut: another node evaluates one cond alone"

    def finish(self, is_complete: bool) -> None:
        """Note whether a whole run never asked for a pair."""
        self._had_nothing_to_cut = is_complete and not (self.plan or self.fallbacks)

    def lines(self) -> list[str]:
        """Return how long guidance lasted."""
        if self.plan:
            return self.plan.lines()
        return ["no guidance to cut"] if self._had_nothing_to_cut else []

    def details(self) -> list[str]:
        """Return where it ended, and what that saved."""
        if self.plan is None:
            return []
        return [*self.plan.details(), f"the cut saved {self.evaluations_saved} evaluations"]

    def counts(self) -> dict[str, Any]:
        """Return the plan's steps; empty when the run had no guidance."""
        if self.plan is None:
            return {}
        return {
            "num_steps": self.plan.num_steps,
            "num_guided_steps": self.plan.num_guided_steps,
            "last_guided_step": self.plan.last_guided_step,
            "evaluations_saved": self.evaluations_saved,
        }
