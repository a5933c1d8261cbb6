"""What a run tells: lines for each node, one line for the log, counts as data."""

import json

import pytest
from vcut.vcut_core.calls import CondsCall
from vcut.vcut_core.cross_attention import CachedCrossAttention, CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig, GuidanceCut
from vcut.vcut_core.run_report import RunReport
from vcut.vcut_core.step_cache import StepCache, StepCacheConfig
from vcut.vcut_core.technique import RunFacts

SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.0]
FACTS = RunFacts(latent_shape=(4, 4, 8, 8), num_frames=4, memory=None, num_other_gpus=0)


def _cut(cut_step: int | None = 3, calls: int = 4, num_conds: int = 2, **options) -> GuidanceCut:
    """Return the cut after a run of 4 steps, one call each, of so many conds."""
    technique = GuidanceCut(GuidanceConfig(cut_step, 4, **options), FACTS)
    for sigma in SIGMAS[:calls]:
        call = CondsCall(
            is_present=(True,) * num_conds,
            cond_ids=frozenset({"cond"}),
            sigma=lambda sigma=sigma: sigma,
            sigmas=lambda: SIGMAS,
            count_evaluations=lambda index: 1,
        )
        technique.around_conds(call, lambda call: [None] * num_conds)
    return technique


def _attention(computed=0, reused=0, removed=0, **modes) -> CachedCrossAttention:
    technique = CachedCrossAttention(CrossAttentionConfig(**modes), FACTS)
    technique.cache.computed, technique.cache.reused = computed, reused
    technique.removed = removed
    return technique


def _report(*techniques, **counts) -> RunReport:
    return RunReport(techniques, **{"is_complete": True, **counts})


def test_log_has_counts_first_and_the_cut_at_its_end():
    # Steps 1 and 2: two evaluations each; 3 and 4: one each. Step 3 starts at sigma 2.
    line = _report(_cut(), unet_evaluations=6, elapsed_s=1.234).log_line()
    assert line == (
        "6 of 8 UNet evaluations; guided 2 of 4 steps; 1.2 s; cut at step 3 (cut_sigma 2.001); "
        "the cut saved 2 evaluations"
    )


@pytest.mark.parametrize(
    ("cut_step", "line", "detail"),
    [
        (1, "guided 0 of 4 steps", "cut at step 1 (cut_sigma 8.001)"),
        (4, "guided 3 of 4 steps", "cut at step 4 (cut_sigma 1.001)"),
        (5, "guided 4 of 4 steps", "no cut in this run"),
    ],
)
def test_lines_tell_how_many_steps_are_guided(cut_step, line, detail):
    technique = _cut(cut_step)
    assert technique.lines() == [line] and technique.details()[0] == detail


@pytest.mark.parametrize(
    ("cut_step", "line"),
    [
        (5, "guided 2 of 4 steps, from step 3"),
        (4, "guided 1 of 4 steps, from step 3"),
        (3, "guided 0 of 4 steps"),
    ],
)
def test_lines_name_the_first_guided_step_when_guidance_begins_late(cut_step, line):
    assert _cut(cut_step, start_step=3).lines() == [line]


def test_log_has_nothing_of_guidance_without_a_scheduler():
    assert _report(unet_evaluations=8, elapsed_s=2).log_line() == "8 of 8 UNet evaluations; 2.0 s"


def test_log_says_that_there_was_no_guidance_when_no_pair_came():
    report = _report(_cut(num_conds=1), unet_evaluations=4)
    assert report.log_line() == (
        "4 of 4 UNet evaluations; 0.0 s; not cut: cfg is 1, so there is no guidance (4 calls)"
    )
    assert "guided" not in report.log_line()


def test_log_says_there_was_nothing_to_cut_when_no_call_came():
    technique = _cut(calls=0)
    technique.finish(is_complete=True)
    line = _report(technique).log_line()
    assert line == "0 of 0 UNet evaluations; no guidance to cut; 0.0 s"


def test_cross_attention_is_counted_only_with_its_node():
    assert "cross-attention" not in _report(_cut()).log_line()
    line = _report(_attention(64, 736)).log_line()
    assert "; cross-attention: 64 computed, 736 from cache; " in line


def test_removed_layers_are_counted_only_when_there_are_any():
    assert _attention(0, 0, 400).lines() == [
        "cross-attention: 0 computed, 0 from cache, 400 removed"
    ]
    assert "removed" not in _attention(64, 736).lines()[0]


def test_cross_attention_is_told_as_kept_when_both_kinds_are():
    assert _attention(temporal="keep", spatial="keep").lines() == ["cross-attention: kept"]


def test_every_reason_is_told_when_techniques_stepped_aside():
    technique = _attention(64, 736)
    technique.fallbacks.update({"one reason": 2, "another": 1})
    report = _report(technique)
    assert report.log_line().endswith("; one reason (2 calls); another (1 call)")
    assert report.node_lines(technique)[1:3] == ["one reason (2 calls)", "another (1 call)"]


def test_run_that_was_stopped_at_once_claims_nothing_of_guidance():
    technique = _cut(calls=0)
    technique.finish(is_complete=False)
    line = _report(technique, is_complete=False).log_line()
    assert line == "stopped early; 0 of 0 UNet evaluations; 0.0 s"


def test_reasons_of_two_techniques_are_added_up():
    techniques = [_attention(), _attention()]
    for technique in techniques:
        technique.fallbacks["one reason"] += 2
    assert _report(*techniques).data()["fallbacks"] == {"one reason": 4}


def test_run_that_was_stopped_says_so_first():
    technique = _cut()
    report = _report(technique, is_complete=False)
    assert report.log_line().startswith("stopped early; 0 of 2 UNet evaluations")
    assert report.node_lines(technique)[0] == "stopped early"


def test_each_node_shows_its_own_facts_in_short_lines():
    cut, attention = _cut(), _attention(64, 736)
    report = _report(cut, attention, unet_evaluations=6, elapsed_s=4.84)
    assert report.node_lines(cut) == ["6 of 8 UNet evaluations", "guided 2 of 4 steps", "4.8 s"]
    assert report.node_lines(attention) == ["cross-attention: 64 computed, 736 from cache", "4.8 s"]
    lines = report.node_lines(cut) + report.node_lines(attention)
    assert max(map(len, lines)) <= 45  # wider lines break on a node of default width


def test_nodes_that_both_save_evaluations_show_their_own_part():
    cut, steps = _cut(), StepCache(StepCacheConfig(), FACTS)
    steps.evaluations_saved = 3
    report = _report(steps, cut, unet_evaluations=3)
    assert report.node_lines(cut)[:2] == ["3 of 8 UNet evaluations", "2 of 5 saved here"]
    assert report.node_lines(steps)[:2] == ["3 of 8 UNet evaluations", "3 of 5 saved here"]


def test_plan_is_announced_before_the_first_step():
    told = []
    facts = RunFacts((4, 4, 8, 8), 4, None, 0, lambda technique, lines: told.append(lines))
    technique = GuidanceCut(GuidanceConfig(3, 4), facts)
    call = CondsCall(
        (True, True), frozenset({"cond"}), lambda: 8.0, lambda: SIGMAS, lambda index: 1
    )
    technique.around_conds(call, lambda call: told.append("computed") or [None, None])
    assert told == [["guided 2 of 4 steps"], "computed"]


def test_counts_are_plain_data_and_survive_json():
    attention = _attention(64, 736, 16)
    attention.fallbacks["a reason"] += 4
    data = _report(_cut(), attention, unet_evaluations=6, elapsed_s=1.25).data()
    assert data == {
        "unet_evaluations": 6,
        "evaluations_saved": 2,
        "elapsed_s": 1.25,
        "is_complete": True,
        "techniques": {
            "guidance": {
                "num_steps": 4,
                "num_guided_steps": 2,
                "last_guided_step": 2,
                "evaluations_saved": 2,
            },
            "cross_attention": {
                "computed": 64,
                "reused": 736,
                "removed": 16,
                "compiled": 0,
                "cache_bytes": 0,
            },
        },
        "fallbacks": {"a reason": 4},
    }
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_counts_leave_out_the_plan_when_there_is_none():
    assert _report(_cut(calls=0)).data()["techniques"] == {"guidance": {}}
