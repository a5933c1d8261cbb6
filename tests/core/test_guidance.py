"""Where guidance ends, worked out by hand: steps count from 1, step ``cut_step`` is unguided."""

import math

import pytest
from vcut.vcut_core.guidance_cut import GuidanceConfig, GuidancePlan


def _schedule(steps: int) -> list[float]:
    """Return a descending schedule of SVD's range, from 700 to 0.002 and then 0."""
    ratio = (0.002 / 700) ** (1 / max(1, steps - 1))
    return [700 * ratio**index for index in range(steps)] + [0.0]


FOUR = [8.0, 4.0, 2.0, 1.0, 0.0]


# --- config -----------------------------------------------------------------------------------


def test_defaults_are_those_of_the_paper():
    config = GuidanceConfig()
    assert (config.cut_step, config.steps) == (17, 25)
    assert (config.after_cut, config.cut_sigma, config.start_step) == ("average", 0.0, 1)


@pytest.mark.parametrize(("after_cut", "scale"), [("average", 0.5), ("positive", 1), ("none", 0)])
def test_embedding_is_scaled_by_the_word_after_the_cut(after_cut, scale):
    assert GuidanceConfig(after_cut=after_cut).embedding_scale == scale


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cut_step": 0}, "cut_step from 1 to 10000, got 0"),
        ({"cut_step": 10001}, "cut_step from 1 to 10000, got 10001"),
        ({"steps": 0}, "steps from 1 to 10000, got 0"),
        ({"steps": -5}, "steps from 1 to 10000, got -5"),
        ({"start_step": 0}, "start_step from 1 to 10000, got 0"),
        ({"after_cut": "half"}, "after_cut to be one of average, positive, none, got half"),
        ({"cut_sigma": -0.5}, "cut_sigma of 0 .* got -0.5"),
        ({"cut_sigma": math.inf}, "cut_sigma of 0 .* got inf"),
        ({"cut_sigma": math.nan}, "cut_sigma of 0 .* got nan"),
    ],
)
def test_error_names_range_and_value_when_a_setting_is_wrong(setting, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**setting)


# --- how many steps are guided ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut_step", "steps", "run_steps", "last_guided_step"),
    [
        (10, 25, 25, 9),
        (17, 25, 25, 16),
        (20, 25, 25, 19),
        (25, 25, 25, 24),
        (26, 25, 25, 25),
        (1, 25, 25, 0),
        (10000, 25, 25, 25),
        (17, 25, 20, 13),  # 16 x 20 / 25 = 12.8
        (17, 25, 30, 19),  # 19.2
        (17, 25, 50, 32),  # 32.0
        (17, 25, 1, 1),  # 0.64
        (10, 25, 1, 0),  # 0.36
        (26, 25, 20, 20),
        (1, 25, 4, 0),
        (2, 4, 2, 1),  # 0.5 rounds up
        (4, 4, 6, 5),  # 4.5 rounds up, where Python's own round would give 4
        (10000, 1, 4, 4),
    ],
)
def test_guided_steps_follow_the_cut_in_proportion(cut_step, steps, run_steps, last_guided_step):
    plan = GuidanceConfig(cut_step, steps).plan(_schedule(run_steps))
    assert (plan.num_steps, plan.last_guided_step) == (run_steps, last_guided_step)
    assert plan.has_cut is (last_guided_step < run_steps)


@pytest.mark.parametrize(
    ("cut_sigma", "last_guided_step"),
    [(9.0, 0), (8.0, 1), (5.0, 1), (4.0, 2), (3.9, 2), (1.5, 3), (1.0, 4), (0.5, 4)],
)
def test_cut_sigma_overrides_the_step(cut_sigma, last_guided_step):
    # Guidance ends at the first sigma BELOW it: at a sigma equal to it there still is guidance.
    plan = GuidanceConfig(1, 4, cut_sigma=cut_sigma).plan(FOUR)
    assert plan.last_guided_step == last_guided_step


@pytest.mark.parametrize(
    ("start_step", "cut_step", "run_steps", "guided"),
    [
        (17, 26, 25, range(17, 26)),  # late only
        (5, 17, 25, range(5, 17)),
        (17, 17, 25, []),
        (20, 10, 25, []),
        (26, 26, 25, []),
        (17, 26, 20, range(14, 21)),  # 16 x 20 / 25 = 12.8: thirteen unguided steps first
    ],
)
def test_guidance_begins_at_the_start_step(start_step, cut_step, run_steps, guided):
    plan = GuidanceConfig(cut_step, 25, start_step=start_step).plan(_schedule(run_steps))
    steps = {step for step, sigma in enumerate(plan.starts, 1) if plan.is_guided(sigma)}
    assert steps == set(guided)


def test_start_step_is_not_used_when_cut_sigma_is_set():
    plan = GuidanceConfig(cut_sigma=3.0, steps=4, start_step=4).plan(FOUR)
    assert [plan.is_guided(sigma) for sigma in plan.starts] == [True, True, False, False]


@pytest.mark.parametrize("sigmas", [[0.0], []])
def test_plan_has_no_step_when_the_schedule_has_none(sigmas):
    plan = GuidanceConfig().plan(sigmas)
    assert (plan.num_steps, plan.last_guided_step, plan.has_cut) == (0, 0, False)
    assert plan.shareable_cut_sigma() is None


# --- which step an evaluation belongs to ------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "step"),
    [(8.0, 1), (7.9, 1), (4.1, 1), (4.0, 2), (3.0, 2), (2.0, 3), (1.0, 4), (0.5, 4), (0.0, 4)],
)
def test_step_follows_from_sigma(sigma, step):
    assert GuidancePlan((8.0, 4.0, 2.0, 1.0), 2).step(sigma) == step


def test_step_is_the_first_when_sigma_is_above_the_schedule():
    assert GuidancePlan((8.0, 4.0), 1).step(9.0) == 1


@pytest.mark.parametrize("factor", [1 - 5e-6, 1.0, 1 + 5e-6])
def test_step_is_the_same_when_sigma_differs_in_its_last_bits(factor):
    plan = GuidancePlan((8.0, 4.0, 2.0, 1.0), 2)
    # Rounding must not move sigma 2 into step 2, nor sigma 4 into step 1.
    assert [plan.step(sigma * factor) for sigma in (4.0, 2.0)] == [2, 3]
    assert [plan.is_guided(sigma * factor) for sigma in (4.0, 2.0)] == [True, False]


def test_whole_trace_is_guided_then_unguided_when_a_sampler_evaluates_twice():
    plan = GuidanceConfig(3, 4).plan(FOUR)  # steps 1 and 2 guided: sigmas above 2
    heun = [8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    assert [plan.is_guided(sigma) for sigma in heun] == [True] * 3 + [False] * 4
    midpoints = [8.0, 5.7, 4.0, 2.8, 2.0, 1.4, 1.0]
    assert [plan.is_guided(sigma) for sigma in midpoints] == [True] * 4 + [False] * 3


def test_guidance_returns_when_sigma_rises_again():
    plan = GuidanceConfig(3, 4).plan(FOUR)
    trace = [plan.is_guided(sigma) for sigma in (8.0, 2.0, 4.0, 2.0)]
    assert trace == [True, False, True, False]


@pytest.mark.parametrize(("cut_step", "expected"), [(1, [False] * 4), (5, [True] * 4)])
def test_every_evaluation_is_alike_when_never_or_always_guided(cut_step, expected):
    plan = GuidanceConfig(cut_step, 4).plan(FOUR)
    assert [plan.is_guided(sigma) for sigma in FOUR[:-1]] == expected


def test_cut_sigma_decides_between_the_steps_too():
    plan = GuidanceConfig(cut_sigma=3.0).plan(FOUR)
    trace = [plan.is_guided(sigma) for sigma in (8.0, 4.0, 3.0, 2.9, 2.0)]
    assert trace == [True, True, True, False, False]


# --- the sigma to copy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "cut_sigma"),
    [
        (2.0, 2.001),  # one in the fourth digit above
        (2.2690, 2.270),
        (0.0123456, 0.01235),
        (699.99, 700.0),
        (0.0020001, 0.002001),
        (1.0, 1.001),
        # 9.9999 x 1.00001 is above 10.00: the next one up
        (9.99995, 10.001),
    ],
)
def test_shareable_sigma_has_four_digits_and_lies_above_the_step(start, cut_sigma):
    plan = GuidancePlan((1000.0, start), 1)
    assert plan.shareable_cut_sigma() == pytest.approx(cut_sigma, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 14, 20, 25, 50, 100])
def test_shareable_sigma_cuts_before_the_same_step_when_used(steps):
    sigmas = _schedule(steps)
    for cut_step in range(1, steps + 1):
        plan = GuidanceConfig(cut_step, steps).plan(sigmas)
        by_sigma = GuidanceConfig(cut_sigma=plan.shareable_cut_sigma()).plan(sigmas)
        assert by_sigma.last_guided_step == cut_step - 1
        by_step = [plan.is_guided(sigma) for sigma in sigmas[:-1]]
        assert [by_sigma.is_guided(sigma) for sigma in sigmas[:-1]] == by_step


def test_slices_split_the_guided_steps_when_they_share_a_cut_sigma():
    sigmas = _schedule(25)
    cut_sigma = GuidanceConfig(17, 25).plan(sigmas).shareable_cut_sigma()
    config = GuidanceConfig(cut_sigma=cut_sigma)
    for boundary in range(1, 25):
        first, second = config.plan(sigmas[: boundary + 1]), config.plan(sigmas[boundary:])
        assert first.last_guided_step == min(boundary, 16)
        assert second.last_guided_step == max(0, 16 - boundary)


def test_no_sigma_is_shared_when_nothing_is_cut():
    assert GuidanceConfig(5, 4).plan(FOUR).shareable_cut_sigma() is None


@pytest.mark.parametrize("cut_sigma", [0.0, 3.0])
def test_rising_schedule_is_never_cut(cut_sigma):
    # Unsampling (FlipSigmas) goes up: what would be the last steps comes first.
    plan = GuidanceConfig(2, 4, cut_sigma=cut_sigma).plan([0.0, 1.0, 2.0, 4.0, 8.0])
    assert not plan.has_cut
    assert all(plan.is_guided(sigma) for sigma in (0.0, 1.0, 2.0, 4.0, 8.0))
