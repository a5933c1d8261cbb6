"""Step cache: whole steps are not computed but predicted from the last two that were.

Where the denoised latent moves along a line, a step tells nothing new. Which steps those are is
decided by the schedule alone, on the scale of Align Your Steps, whose sigmas for SVD lie closer
together where the model's answer changes faster (Sabour et al., arXiv 2404.14507).
It takes the place of Step Rehash in Streamlined Inference (Zhan et al., NeurIPS 2024).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .calls import PredictionCall
from .predicted_path import KEPT_DTYPE, NUM_KEPT, PredictedPath
from .schedule import is_rising, is_same
from .technique import RunFacts, Technique

# Align Your Steps' ten steps for SVD.
REFERENCE_SIGMAS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
LAST_POSITION = len(REFERENCE_SIGMAS) - 1
HIGH_SIGMA = 4.0  # above it the farther of a pace's two distances holds

Pace = Literal["balanced", "careful", "fast"]
# Pace -> the farthest that two computed steps lie apart on the reference scale: above HIGH_SIGMA,
# and below it.
PACES: dict[str, tuple[float, float]] = {
    "balanced": (0.9, 0.9),
    "careful": (0.7, 0.7),
    "fast": (1.35, 0.9),
}
BETWEEN_STEPS = "computed between steps"


@dataclass(frozen=True)
class StepCacheConfig:
    """The user's choice: how many steps are left out. Raises ValueError for an unknown pace."""

    pace: Pace = "balanced"

    def __post_init__(self) -> None:
        if self.pace not in PACES:
            raise ValueError(f"expected pace to be one of {', '.join(PACES)}, got {self.pace}")

    def plan(self, sigmas: Sequence[float], phases: Sequence[Hashable]) -> "StepCachePlan":
        """Return which steps of a run over ``sigmas`` (num_steps + 1, descending) are computed.

        phases: of each step; predictions of another phase lie on another line, so the first step
        of each is computed. A rising schedule (unsampling) is computed whole.
        """
        sigmas = tuple(sigmas)
        starts = sigmas[:-1]
        if is_rising(sigmas):
            return StepCachePlan(sigmas, (True,) * len(starts))
        is_computed: list[bool] = []
        last = 0  # computed step
        for step, sigma in enumerate(starts):
            distance = _position(sigmas[step + 1]) - _position(starts[last])
            above, below = PACES[self.pace]
            is_too_far = distance > (above if sigma > HIGH_SIGMA else below)
            is_computed.append(step == 0 or phases[step] != phases[last] or is_too_far)
            if is_computed[step]:
                last = step
        return StepCachePlan(sigmas, tuple(is_computed))


def _position(sigma: float) -> float:
    """Return where ``sigma`` lies among the reference sigmas, 0 to 10, interpolated in its log."""
    first, last = REFERENCE_SIGMAS[0], REFERENCE_SIGMAS[-1]
    if sigma >= first:
        return 0.0
    if sigma <= last:
        return float(LAST_POSITION)
    place = next(k for k, reference in enumerate(REFERENCE_SIGMAS) if reference < sigma) - 1
    above, below = REFERENCE_SIGMAS[place], REFERENCE_SIGMAS[place + 1]
    return place + math.log(above / sigma) / math.log(above / below)


@dataclass(frozen=True)
class StepCachePlan:
    """One run's decisions: the schedule, and whether each of its steps is computed."""

    sigmas: tuple[float, ...]
    is_computed: tuple[bool, ...]

    @property
    def num_steps(self) -> int:
        """Steps in this run."""
        return len(self.is_computed)

    @property
    def num_computed(self) -> int:
        """Steps that are computed."""
        return sum(self.is_computed)

    @property
    def leaves_out(self) -> bool:
        """Whether any step is not computed."""
        return self.num_computed < self.num_steps

    def kept_bytes(self, latent_elements: int) -> int:
        """Return the bytes that a run keeps for latents of so many numbers."""
        return NUM_KEPT * latent_elements * KEPT_DTYPE.itemsize if self.leaves_out else 0

    def step_at(self, sigma: float) -> int | None:
        """Return the step (from 0) that starts at ``sigma``, None where none does."""
        starts = enumerate(self.sigmas[:-1])
        return next((step for step, start in starts if is_same(start, sigma)), None)


def steps_line(num_computed: int, num_steps: int) -> str:
    """Return how many steps a run computes."""
    return f"{num_computed} of {num_steps} steps computed"


class StepCache(Technique):
    """Answers the sampler from the last two computed predictions where the plan leaves a step out.

    A sampler may ask again at a step's sigma, or between two; that is always computed.
    """

    key = "step_cache"
    config_class = StepCacheConfig
    saves_evaluations = True

    def __init__(self, config: StepCacheConfig, facts: RunFacts) -> None:
        super().__init__(config, facts)
        self.plan: StepCachePlan | None = None  # made at the first prediction
        self.num_predicted = 0
        self._num_steps = 0  # a run that starts again has them twice
        self._asked: set[int] = set()  # steps that the sampler has come to
        self._path = PredictedPath()
        self._phase: Hashable = None  # of the path
        self._evaluations = 0  # that the last computed one took
        self._is_complete = True

    def around_prediction(
        self, call: PredictionCall, compute: Callable[[PredictionCall], Tensor]
    ) -> Tensor:
        """Return the denoised latent, computed or predicted; never a tensor that is kept."""
        if call.must_compute is not None:
            self.fallbacks[call.must_compute] += 1
            self._path.clear()
            return compute(call)
        # One read of sigma each prediction: which branch to take cannot be known without it.
        sigma = call.sigma()
        plan, step = self._place(call, sigma)
        if not plan.leaves_out:
            return compute(call)
        self._follow(call.phase(sigma))
        fits = self._path.fits(call.x)
        if step is not None and not plan.is_computed[step] and fits:
            self.num_predicted += 1
            self.evaluations_saved += self._evaluations
            return self._path.predict(sigma, plan.sigmas[step + 1])
        before = call.count_evaluations()
        output = answer = compute(call)
        self._evaluations = call.count_evaluations() - before
        if step is None:
            self.fallbacks[BETWEEN_STEPS] += 1
        elif fits and call.takes_euler_steps:  # others weigh it in ways of their own
            answer = self._path.correct(sigma, plan.sigmas[step + 1], output)
        self._path.add(sigma, output)
        return answer

    def _follow(self, phase: Hashable) -> None:
        """Begin a new path where the phase is another."""
        if phase != self._phase:
            self._path.clear()
            self._phase = phase

    def _place(self, call: PredictionCall, sigma: float) -> tuple[StepCachePlan, int | None]:
        """Return the plan, and the step that the sampler comes to, None where it comes again."""
        plan = self.plan
        step = plan.step_at(sigma) if plan else None
        if plan is None or (step == 0 and self._asked > {0}):  # a run, or one that starts again
            sigmas = call.sigmas()
            plan = self.plan = self.config.plan(sigmas, [call.phase(s) for s in sigmas[:-1]])
            step = plan.step_at(sigma)
            self._num_steps += plan.num_steps
            self._asked.clear()
            self._path.clear()
            self.facts.announce(self, [steps_line(plan.num_computed, plan.num_steps)])
        if step is None or step in self._asked:
            return plan, None
        self._asked.add(step)
        return plan, step

    def finish(self, is_complete: bool) -> None:
        """Take note of whether the sampler came to every step."""
        self._is_complete = is_complete

    @property
    def num_computed(self) -> int:
        """Steps that were computed."""
        num_steps = self._num_steps if self._is_complete else len(self._asked)
        return num_steps - self.num_predicted

    def lines(self) -> list[str]:
        """Return how many steps were computed."""
        return [steps_line(self.num_computed, self._num_steps)] if self.plan else []

    def details(self) -> list[str]:
        """Return what that saved."""
        return [f"the step cache saved {self.evaluations_saved} evaluations"]

    def counts(self) -> dict[str, Any]:
        """Return steps and bytes; empty when no step was planned."""
        if self.plan is None:
            return {}
        return {
            "num_steps": self._num_steps,
            "num_computed_steps": self.num_computed,
            "evaluations_saved": self.evaluations_saved,
            "bytes": self._path.nbytes,
        }
