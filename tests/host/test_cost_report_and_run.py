"""VCUT Cost Report beside real runs: a run does what the report said, or its line shows it."""

import re

import pytest
from vcut.comfy_adapter import read_model, with_technique
from vcut.comfy_adapter.sampling_run import SamplingRun
from vcut.nodes.cost_report import CostReport
from vcut.vcut_core.cost_report import headline
from vcut.vcut_core.cross_attention import AffineOutputCache, CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig, GuidanceCut
from vcut.vcut_core.step_cache import StepCacheConfig


@pytest.fixture(scope="module")
def vcut(tiny):
    return with_technique(with_technique(tiny.model, CrossAttentionConfig()), GuidanceConfig())


def _report(model, steps: int = 25) -> str:
    return CostReport.execute(model, 64, 64, 4, steps).result[0]


def _expected_counts(report: str) -> str:
    (line,) = (line for line in report.splitlines() if "after the run: " in line)
    return line.partition("after the run: ")[2]


def _counts(line: str) -> str:
    """Return a summary line without its name, and without its seconds and what follows them."""
    return re.sub(r"; \d+\.\d s.*", "", line.removeprefix("VCUT: "))


@pytest.mark.parametrize(
    ("steps", "cut_step", "temporal", "options"),
    [
        (25, 17, "cached", {}),
        (6, 4, "remove", {"after_cut": "none"}),
        (5, 1, "cached", {}),
        (5, 9, "cached", {"after_cut": "positive"}),
        (6, 5, "cached", {"start_step": 3}),
        (6, 5, "cached", {"cut_sigma": 20.0}),
    ],
)
def test_run_counts_what_the_report_said(
    tiny, with_vcut, traced, summaries, monkeypatch, steps, cut_step, temporal, options
):
    cached_bytes = []
    report_run = SamplingRun.report

    def note(run):
        counts = run.counts.data()["techniques"]["cross_attention"]
        cached_bytes.append(counts["cache_bytes"])
        report_run(run)

    monkeypatch.setattr(SamplingRun, "report", note)
    length = 25 if steps == 25 else steps
    model = with_vcut(tiny.model, cut_step, length, temporal=temporal, **options)
    report = _report(model, steps)
    clone, trace = traced(model)
    tiny.sample(clone, steps=steps)
    assert _counts(summaries()[-1]) == _expected_counts(report)
    evaluations = sum(len(call) for call in trace)  # by hooks on the UNet, apart from VCUT
    assert f"{evaluations} of {2 * steps} UNet evaluations" in report
    assert f"cached values in the run: {cached_bytes[-1]:,} bytes" in report


@pytest.mark.parametrize("pace", ["balanced", "fast"])
@pytest.mark.parametrize("steps", [20, 25, 40])
@pytest.mark.parametrize("cut_step", [None, 17])
def test_run_with_a_step_cache_counts_what_the_report_said(
    make_small_svd, tiny, summaries, pace, steps, cut_step
):
    model = with_technique(make_small_svd(), StepCacheConfig(pace))
    if cut_step:
        model = with_technique(model, GuidanceConfig(cut_step, 25))
    report = CostReport.execute(model, 96, 96, 2, steps).result[0]
    tiny.sample(model, steps=steps, conditioning=tiny.conditioning(frames=2))
    assert _counts(summaries()[-1]) == _expected_counts(report)
    if cut_step:
        saved = re.search(r"the step cache saves (\d+), the cut (\d+)", report)
        assert f"the step cache saved {saved[1]} evaluations" in summaries()[-1]
        assert f"the cut saved {saved[2]} evaluations" in summaries()[-1]


@pytest.mark.parametrize("slices", [0, 2, 8])
def test_headline_says_what_the_run_then_did(make_small_svd, tiny, summaries, slices):
    model = with_technique(make_small_svd(), GuidanceConfig(3, 4))
    model = with_technique(model, SlicingConfig(slices, "everything"))
    reading = read_model(model, 96, 96, 2, 4)
    tiny.sample(model, steps=4, conditioning=tiny.conditioning(frames=2))
    told, evaluations, *memory = headline(reading.run(), reading.peak)
    assert told.endswith("% less to compute")
    assert summaries()[-1].startswith(f"VCUT: {evaluations.replace(' eval', ' UNet eval')}; ")
    expected = f"{reading.peak.sliced_bytes / 1e6:,.0f} MB of activations expected"
    assert f"; {expected};" in summaries()[-1]
    assert bool(memory) == (slices > 0)  # with memory to spare nothing is sliced
    assert (f"in {slices} slices" in summaries()[-1]) == (slices > 0)


def test_summary_differs_from_the_report_when_the_cut_is_ignored(
    tiny, vcut, summaries, monkeypatch
):
    monkeypatch.setattr(GuidanceCut, "_is_guided", lambda technique, call: True)
    report = _report(vcut)
    tiny.sample(vcut, steps=25)
    assert "UNet evaluations: 41 instead of 50" in report
    assert "50 of 50 UNet evaluations" in summaries()[-1]
    assert _counts(summaries()[-1]) != _expected_counts(report)


def test_summary_differs_from_the_report_when_values_are_computed_in_each_step(
    tiny, vcut, summaries, monkeypatch
):
    get = AffineOutputCache.get
    monkeypatch.setattr(
        AffineOutputCache, "get", lambda cache, key, evaluate: get(cache, None, evaluate)
    )
    report = _report(vcut)
    tiny.sample(vcut, steps=25)
    assert "cross-attention: 64 computed, 736 from cache" in report
    assert "cross-attention: 800 computed, 0 from cache" in summaries()[-1]  # 25 steps of 32 layers
    assert _counts(summaries()[-1]) != _expected_counts(report)
