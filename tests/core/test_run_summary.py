"""The line that tells the user what a run saved."""

import json
from collections import Counter

import pytest
from vcut.vcut_core.guidance import GuidanceConfig
from vcut.vcut_core.run_summary import RunSummary

SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.0]


def _summary(cut_step: int | None = 3, **counts) -> RunSummary:
    """Return a complete run of 4 steps; without a scheduler for a cut_step of None."""
    plan = GuidanceConfig(cut_step, 4).plan(SIGMAS) if cut_step else None
    has_guidance = cut_step is not None
    return RunSummary(**{"plan": plan, "has_guidance": has_guidance, "is_complete": True, **counts})


def test_line_names_steps_cut_and_sigma_when_guidance_was_cut():
    # Steps 1 and 2: two evaluations each; 3 and 4: one each. Step 3 starts at sigma 2.
    line = _summary(unet_evaluations=6, evaluations_saved=2, elapsed_s=1.234).text()
    assert line == (
        "6 of 8 UNet evaluations; guided 1-2 of 4, cut at step 3 (cut_sigma 2.001); 1.23 s"
    )


def test_line_says_guided_0_when_the_first_step_is_cut():
    line = _summary(1, unet_evaluations=4, evaluations_saved=4).text()
    assert line.startswith(
        "4 of 8 UNet evaluations; guided 0 of 4, cut at step 1 (cut_sigma 8.001); "
    )


def test_line_says_no_cut_when_all_steps_are_guided():
    assert "; guided 1-4 of 4, no cut in this run; " in _summary(5).text()


@pytest.mark.parametrize(
    ("cut_step", "words"),
    [
        (5, "guided 3-4 of 4, no cut in this run"),
        (4, "guided 3-3 of 4, cut at step 4 (cut_sigma 1.001)"),
        (3, "guided 0 of 4, cut at step 1 (cut_sigma 8.001)"),
    ],
)
def test_line_names_the_first_guided_step_when_guidance_begins_late(cut_step, words):
    plan = GuidanceConfig(cut_step, 4, start_step=3).plan([8.0, 4.0, 2.0, 1.0, 0.0])
    assert RunSummary(plan=plan, has_guidance=True).planned() == words


def test_line_says_nothing_of_guidance_when_there_is_no_scheduler():
    line = _summary(None, unet_evaluations=8, elapsed_s=2).text()
    assert line == "8 of 8 UNet evaluations; 2.00 s"


def test_line_says_there_was_nothing_to_cut_when_no_pair_came():
    line = _summary(plan=None, untouched=Counter({"one cond": 4})).text()
    assert line.startswith("0 of 0 UNet evaluations; no guidance to cut; ")
    assert "; untouched: one cond (4); " in line


def test_line_counts_affine_maps_only_when_layers_were_patched():
    counts = {"affine_evaluated": 64, "affine_reused": 736}
    assert (
        "64 affine maps evaluated, 736 reused;"
        in _summary(has_cross_attention=True, **counts).text()
    )
    assert "affine" not in _summary(has_cross_attention=False, **counts).text()


def test_line_counts_removed_layers_only_when_there_are_any():
    with_removed = _summary(has_cross_attention=True, removed=400).text()
    assert "0 affine maps evaluated, 0 reused, 400 removed;" in with_removed
    assert "removed" not in _summary(has_cross_attention=True).text()


def test_line_names_every_reason_when_vcut_stepped_aside():
    line = _summary(untouched=Counter({"3 conds": 2, "one cond": 1})).text()
    assert "untouched: 3 conds (2); untouched: one cond (1)" in line


def test_line_begins_with_stopped_early_when_the_run_was_not_completed():
    assert _summary(is_complete=False).text().startswith("stopped early; 0 of 0 UNet")


def test_plan_is_told_before_the_first_step_when_a_run_begins():
    running = _summary(is_complete=False)
    assert running.planned() == "guided 1-2 of 4, cut at step 3 (cut_sigma 2.001)"


def test_counts_as_data_are_plain_and_survive_json():
    summary = _summary(
        unet_evaluations=6,
        evaluations_saved=2,
        affine_evaluated=64,
        affine_reused=736,
        removed=16,
        untouched=Counter({"one cond": 4}),
        elapsed_s=1.25,
    )
    data = summary.counts_as_data()
    assert data == {
        "unet_evaluations": 6,
        "evaluations_saved": 2,
        "affine_evaluated": 64,
        "affine_reused": 736,
        "removed": 16,
        "untouched": {"one cond": 4},
        "elapsed_s": 1.25,
        "is_complete": True,
        "num_steps": 4,
        "last_guided_step": 2,
    }
    assert type(data["untouched"]) is dict
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_counts_as_data_leave_out_the_plan_when_there_is_none():
    data = _summary(None, unet_evaluations=8, is_complete=False).counts_as_data()
    assert "num_steps" not in data and "last_guided_step" not in data
    assert data["unet_evaluations"] == 8 and data["is_complete"] is False


def test_two_summaries_share_no_counts():
    _summary().untouched["one cond"] += 1
    assert RunSummary().untouched == Counter()
