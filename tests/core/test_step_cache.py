"""Which steps are computed, and what stands in for the others, worked out by hand."""

import math

import pytest
import torch
from vcut.vcut_core.calls import PredictionCall
from vcut.vcut_core.step_cache import PACES, StepCache, StepCacheConfig
from vcut.vcut_core.technique import RunFacts

FACTS = RunFacts(latent_shape=(2, 4, 3, 3), num_frames=2, memory=None, num_other_gpus=0)


def karras(steps: int) -> list[float]:
    """Return SVD's karras schedule, from 700 to 0.002 and then 0."""
    high, low = 700 ** (1 / 7), 0.002 ** (1 / 7)
    return [(high + k / (steps - 1) * (low - high)) ** 7 for k in range(steps)] + [0.0]


def _computed(pace: str, sigmas: list[float]) -> list[int]:
    plan = StepCacheConfig(pace).plan(sigmas, [None] * (len(sigmas) - 1))
    return [step for step, is_computed in enumerate(plan.is_computed) if is_computed]


# --- the plan -------------------------------------------------------------------------------------


def test_default_pace_is_balanced():
    assert StepCacheConfig().pace == next(iter(PACES)) == "balanced"


def test_error_names_the_paces_when_one_is_unknown():
    with pytest.raises(ValueError, match="one of balanced, careful, fast, got slow"):
        StepCacheConfig("slow")


@pytest.mark.parametrize(
    ("steps", "counts"),  # careful, balanced, fast
    [
        (10, (9, 8, 8)),
        (14, (11, 9, 9)),
        (20, (14, 13, 12)),
        (25, (16, 14, 12)),
        (30, (18, 15, 12)),
        (40, (19, 14, 13)),
        (50, (20, 14, 12)),
    ],
)
def test_so_many_steps_are_computed(steps, counts):
    sigmas = karras(steps)
    assert tuple(len(_computed(p, sigmas)) for p in ("careful", "balanced", "fast")) == counts


def test_steps_at_the_ends_of_25_are_left_out():
    # Above sigma 50 and below 0.02 the denoised latent hardly moves.
    assert _computed("careful", karras(25)) == [0, 6, 9, *range(11, 24)]
    assert _computed("balanced", karras(25)) == [0, 8, *range(11, 23)]


def test_distance_is_measured_on_the_scale_of_the_reference_sigmas():
    # Positions: 700 is 0, 54.5 is 1, 15.886 is 2, halfway in the log between two is a half.
    half = math.sqrt(700 * 54.5)
    sigmas = [700.0, half, 54.5, 15.886, 0.0]
    # Without step 1 the next is 1.0 from the first: too far, at 0.9 and at 0.7.
    assert _computed("balanced", sigmas) == [0, 1, 2, 3]
    # At 1.35 it is near enough; without step 2 the next would be 2.0 away.
    assert _computed("fast", sigmas) == [0, 2, 3]


def test_schedule_without_a_step_to_spare_is_computed_whole():
    assert _computed("balanced", [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.0]) == list(range(6))


def test_rising_schedule_is_computed_whole():
    assert _computed("fast", karras(25)[::-1][1:]) == list(range(24))


def test_first_step_of_each_phase_is_computed():
    sigmas = karras(25)
    plan = StepCacheConfig("balanced").plan(sigmas, [step >= 3 for step in range(25)])
    assert plan.is_computed[:5] == (True, False, False, True, False)


@pytest.mark.parametrize("steps", [0, 1])
def test_shortest_schedules_are_computed(steps):
    assert _computed("fast", karras(25)[-1 - steps :]) == list(range(steps))


# --- the run --------------------------------------------------------------------------------------


class Run:
    """A sampler's calls of one step cache; the model's answer is the sigma it is asked at."""

    def __init__(self, sigmas, pace="balanced", phase=lambda sigma: None, cost=2, must=None):
        self.technique = StepCache(StepCacheConfig(pace), FACTS)
        self.sigmas, self.phase, self.cost, self.must = sigmas, phase, cost, must
        self.asked: list[float] = []  # of the model
        self.evaluations = 0

    def ask(self, sigma: float, shape=(2, 4, 3, 3), answer=None, dtype=torch.float32):
        """Return what the sampler is given at ``sigma``."""

        def compute(_call):
            self.asked.append(sigma)
            self.evaluations += self.cost
            return torch.full(shape, sigma if answer is None else answer, dtype=dtype)

        call = PredictionCall(
            x=torch.zeros(shape),
            sigma=lambda: sigma,
            sigmas=lambda: self.sigmas,
            phase=self.phase,
            count_evaluations=lambda: self.evaluations,
            must_compute=self.must,
        )
        return self.technique.around_prediction(call, compute)

    def ask_all(self) -> list[float]:
        """Return the answers to a sampler that asks once a step."""
        answers = [self.ask(sigma).flatten()[0].item() for sigma in self.sigmas[:-1]]
        self.technique.finish(is_complete=True)
        return answers


# Positions 0, 1, 2, 2.2, 2.4, 3: step 3 is left out, its neighbours are not.
LINE = [700.0, 54.5, 15.886, 14.0, 12.0, 7.977, 0.0]
LEFT_OUT = 14.0


def _on_the_line(answer: float, before: float = 54.5) -> float:
    """Return D = Db + (Db - Da) (t - tb) / (tb - ta) at sigma 14, where t = ln(sigma + 2)."""
    ta, tb, t = (math.log(sigma + 2) for sigma in (54.5, 15.886, LEFT_OUT))
    return answer + (answer - before) * (t - tb) / (tb - ta)


def test_skipped_step_lies_on_the_line_through_the_last_two():
    run = Run(LINE)
    answers = run.ask_all()  # the model's own being the sigmas
    assert run.asked == [700.0, 54.5, 15.886, 12.0, 7.977]
    assert answers[3] == pytest.approx(_on_the_line(15.886), rel=1e-5)


def test_last_answer_is_kept_below_sigma_0_1():
    run = Run([0.403, 0.173, 0.09, 0.08, 0.034, 0.0])
    answers = run.ask_all()
    assert run.asked == [0.403, 0.173, 0.08, 0.034]
    assert answers[2] == pytest.approx(0.173)


# Step 1 is left out: the next lies 0.13 from the first.
NEAR = [700.0, 600.0, 500.0, 54.5, 0.0]


def test_last_answer_is_kept_while_there_is_only_one():
    run = Run(NEAR)
    assert run.ask_all()[:2] == [700.0, 700.0] and run.asked == [700.0, 500.0, 54.5]


def test_answers_do_not_share_memory_with_what_is_kept():
    run = Run([700.0, 650.0, *NEAR[1:]])
    first = run.ask(700.0)
    first.mul_(0)  # as a sampler that works in place
    second = run.ask(650.0)
    assert torch.equal(second, torch.full((2, 4, 3, 3), 700.0))
    second.mul_(0)
    assert torch.equal(run.ask(600.0), torch.full((2, 4, 3, 3), 700.0))
    assert run.asked == [700.0]


def test_answer_has_the_dtype_of_the_model_s():
    run = Run(NEAR)
    run.ask(700.0, dtype=torch.bfloat16)
    assert run.ask(600.0).dtype == torch.bfloat16 and run.asked == [700.0]


def test_what_is_kept_is_two_latents_in_fp32():
    run = Run(karras(25))
    run.ask_all()
    assert run.technique.counts()["bytes"] == 2 * (2 * 4 * 3 * 3) * 4
    assert run.technique.plan.kept_bytes(72) == 2 * 72 * 4
    # SVD-XT at 1024x576: 7 MiB.
    assert run.technique.plan.kept_bytes(25 * 4 * 72 * 128) == pytest.approx(7 * 2**20, rel=0.01)


def test_history_starts_anew_where_the_phase_changes():
    sigmas = karras(25)
    border = sigmas[3]
    run = Run(sigmas, phase=lambda sigma: sigma <= border)
    answers = run.ask_all()
    assert run.asked[:3] == [sigmas[0], sigmas[3], run.asked[2]]
    assert answers[4] == pytest.approx(sigmas[3])  # not drawn through the first step's


def test_latent_of_another_shape_is_computed():
    run = Run([700.0, 650.0, *NEAR[1:]])
    run.ask(700.0)
    run.ask(650.0, shape=(3, 4, 3, 3))
    assert run.asked == [700.0, 650.0]
    assert run.ask(600.0, shape=(3, 4, 3, 3)).shape == (3, 4, 3, 3)
    assert run.asked == [700.0, 650.0]


def test_sigma_that_rounding_moved_is_still_its_step_s():
    run = Run(NEAR)
    run.ask(700.0)
    run.ask(600.0 * (1 + 3e-6))
    assert run.asked == [700.0]


def test_evaluation_between_steps_or_again_is_computed_and_named():
    run = Run(NEAR)
    for sigma in (700.0, 650.0, 600.0, 600.0, 500.0):
        run.ask(sigma)
    assert run.asked == [700.0, 650.0, 600.0, 500.0]
    assert dict(run.technique.fallbacks) == {"computed between steps": 2}


def test_answer_at_the_same_sigma_replaces_the_kept_one():
    run = Run(LINE)
    for sigma in (700.0, 54.5, 15.886):
        run.ask(sigma)
    run.ask(15.886, answer=20.0)
    answer = run.ask(LEFT_OUT).flatten()[0].item()
    assert answer == pytest.approx(_on_the_line(20.0), rel=1e-5)


def test_sampler_that_starts_again_is_a_run_of_its_own():
    run = Run(karras(25))
    first = run.ask_all()
    asked = len(run.asked)
    assert run.ask_all() == first and len(run.asked) == 2 * asked
    assert run.technique.lines() == ["28 of 50 steps computed"]


def test_schedule_that_spares_nothing_is_handed_on_as_it_is():
    run = Run([700.0, 54.5, 15.886, 0.0])
    answer = torch.ones(2, 4, 3, 3)
    call = PredictionCall(answer, lambda: 700.0, lambda: run.sigmas, lambda sigma: None, lambda: 0)
    assert run.technique.around_prediction(call, lambda _: answer) is answer
    assert run.technique.counts()["bytes"] == 0


def test_everything_is_computed_and_named_when_it_must_be():
    run = Run(karras(25), must="off: why")
    run.ask_all()
    assert len(run.asked) == 25 and run.technique.evaluations_saved == 0
    assert dict(run.technique.fallbacks) == {"off: why": 25}
    assert run.technique.lines() == [] and run.technique.counts() == {}


# --- what it tells --------------------------------------------------------------------------------


def test_saved_evaluations_are_what_the_last_computed_step_took():
    run = Run(karras(25), cost=3)
    run.ask_all()
    assert run.technique.evaluations_saved == 11 * 3
    assert run.technique.lines() == ["14 of 25 steps computed"]
    assert run.technique.details() == ["the step cache saved 33 evaluations"]
    assert run.technique.counts() | {"bytes": 0} == {
        "num_steps": 25, "num_computed_steps": 14, "evaluations_saved": 33, "bytes": 0,
    }  # fmt: skip


def test_run_that_was_stopped_counts_the_steps_it_came_to():
    run = Run(karras(25))
    for sigma in run.sigmas[:10]:
        run.ask(sigma)
    run.technique.finish(is_complete=False)
    assert run.technique.lines() == ["2 of 25 steps computed"]  # 0 and 8


def test_plan_is_announced_before_the_first_step():
    told = []
    facts = RunFacts((2, 4, 3, 3), 2, None, 0, lambda technique, lines: told.append(lines))
    run = Run(karras(25))
    run.technique = StepCache(StepCacheConfig(), facts)
    run.ask_all()
    assert told == [["14 of 25 steps computed"]]
