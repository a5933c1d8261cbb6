"""VCUT Run Report: it tells of the run that made its samples, and of no other."""

import comfy.model_management
import pytest
import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from vcut.comfy_adapter import finished_runs, with_technique
from vcut.nodes.run_report import NO_RUN, RunReportNode
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

STEPS = 4


@pytest.fixture(scope="module")
def small(make_small_svd):
    return make_small_svd()


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture(scope="module")
def cut(small):
    return with_technique(small, GuidanceConfig(3, STEPS))


@pytest.fixture(autouse=True)
def no_earlier_runs():
    finished_runs._reports.clear()


@pytest.fixture
def sample(nodes, conditioning):
    """Return a function: model -> the LATENT of a sampler, called as a graph calls it."""
    positive, negative, latent = conditioning

    def call(model, sampler="KSampler", latent=latent, **inputs):
        given = {
            "seed": 0, "noise_seed": 0, "steps": STEPS, "cfg": 2.5, "scheduler": "karras",
            "positive": positive, "negative": negative, "latent_image": latent,
            "sampler_name": "euler", **inputs,
        }  # fmt: skip
        known = nodes.inputs_of(sampler)
        return nodes.call(sampler, model=model, **{k: v for k, v in given.items() if k in known})[0]

    return call


def _report(latent: dict) -> str:
    output = RunReportNode.execute(latent)
    assert output.ui.as_dict() == {"text": (output.result[0],)}  # for programs
    return output.result[0]


def _same(report: str, log_line: str) -> bool:
    return report.splitlines() == log_line.removeprefix("VCUT: ").split("; ")


def test_report_of_ksampler_has_the_facts_of_the_log_one_a_line(cut, sample, summaries):
    report = _report(sample(cut))
    assert _same(report, summaries()[-1])
    # Steps 1 and 2 are guided: 2 * 2 + 2 of 2 * 4.
    assert report.splitlines()[:2] == ["6 of 8 UNet evaluations", "guided 2 of 4 steps"]


def test_each_sampler_of_a_chain_has_its_own_report(cut, sample, summaries):
    first = sample(cut, "KSamplerAdvanced", end_at_step=1, return_with_leftover_noise="enable")
    second = sample(cut, "KSamplerAdvanced", latent=first, start_at_step=1, add_noise="disable")
    assert _same(_report(first), summaries()[0]) and _same(_report(second), summaries()[1])
    assert "of 1 steps" in _report(first) and "of 3 steps" in _report(second)


def test_custom_sampler_and_a_noise_mask_have_a_report(
    nodes, tiny, cut, sample, conditioning, summaries
):
    positive, negative, latent = conditioning
    mask = torch.ones(2, 1, *latent["samples"].shape[2:])
    mask[0] = 0
    output = nodes.call(
        "SamplerCustomAdvanced",
        noise=nodes.call("RandomNoise", noise_seed=0)[0],
        guider=nodes.call("CFGGuider", model=cut, positive=positive, negative=negative, cfg=2.5)[0],
        sampler=nodes.call("KSamplerSelect", sampler_name="euler")[0],
        sigmas=tiny.sigmas(STEPS),
        latent_image=latent | {"noise_mask": mask},
    )[0]
    assert _same(_report(output), summaries()[-1])


def test_second_run_with_other_settings_has_its_own_report(small, cut, sample):
    always = with_technique(small, GuidanceConfig(9, STEPS))
    first, second = sample(cut), sample(always)
    assert _report(first).startswith("6 of 8") and _report(second).startswith("8 of 8")


def test_report_is_found_after_the_hosts_move_to_half_precision(cut, sample):
    latent = sample(cut)
    half = {"samples": latent["samples"].half()}  # newer hosts' --fp16-intermediates
    assert _report(half) == _report(latent) != NO_RUN


def test_samples_of_no_run_are_told_so_and_what_to_connect(nodes, small, cut, sample, conditioning):
    latent = sample(cut)
    stock = sample(small)
    joined = nodes.call("VCUT_JoinVideos", samples=latent, continuation=latent, overlap=1)[0]
    larger = nodes.call("LatentUpscaleBy", samples=latent, scale_by=1.5)[0]
    for other in (stock, joined, larger, conditioning[2], {"samples": None}):
        assert _report(other) == NO_RUN
    assert "Link the LATENT of the sampler" in NO_RUN


def test_interrupted_run_leaves_no_report(cut, sample):
    guided = cut.clone()

    def interrupt(_arguments):
        raise comfy.model_management.InterruptProcessingException

    guided.set_model_sampler_cfg_function(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(guided)
    assert not finished_runs._reports


def test_only_the_newest_reports_are_kept(monkeypatch):
    monkeypatch.setattr(finished_runs, "MAX_REPORTS", 2)
    latents = [torch.full((1, 4, 2, 2), float(number)) for number in range(3)]
    for latent in latents:
        finished_runs.keep_report(latent, {}, [f"run {latent[0, 0, 0, 0]:.0f}"])
    assert [_report({"samples": latent}) for latent in latents] == [NO_RUN, "run 1", "run 2"]


# --- in a graph -------------------------------------------------------------------------------


def _report_in_graph(latent: dict, *patches: str) -> str:
    """Return the report in a graph whose sampler has the model of these nodes, in a row."""
    graph = {"loader": {"class_type": "ImageOnlyCheckpointLoader", "inputs": {}}}
    last = "loader"
    for patch in patches:
        graph[patch] = {"class_type": f"VCUT_{patch}", "inputs": {"model": [last, 0]}}
        last = patch
    graph["sampler"] = {"class_type": "KSampler", "inputs": {"model": [last, 0], "steps": STEPS}}
    graph["report"] = {"class_type": "VCUT_RunReport", "inputs": {"samples": ["sampler", 0]}}
    hidden = {io.Hidden.unique_id: "report", io.Hidden.dynprompt: DynamicPrompt(graph)}
    in_graph = type("InGraph", (RunReportNode,), {"hidden": io.HiddenHolder.from_dict(hidden)})
    return in_graph.execute(latent).result[0]


@pytest.fixture
def sliced(small):
    """A model that samples the same values as without VCUT: the samples cannot tell its runs."""
    return with_technique(small, SlicingConfig(2, "feed_forward"), "slicer")


def test_run_of_a_node_that_is_bypassed_now_is_not_reported(small, sliced, sample):
    with_slicer, stock = sample(sliced), sample(small)
    assert torch.equal(with_slicer["samples"], stock["samples"])
    assert "slicing: feed_forward in 2 slices" in _report_in_graph(with_slicer, "slicer")
    assert _report_in_graph(stock) == NO_RUN


def test_two_samplers_with_equal_samples_are_told_apart(sliced, sample):
    never_cut = with_technique(sliced, GuidanceConfig(9, STEPS), "cut")
    first, second = sample(sliced), sample(never_cut)
    assert torch.equal(first["samples"], second["samples"])
    assert "guided" not in _report_in_graph(first, "slicer")
    assert "guided 4 of 4 steps" in _report_in_graph(second, "slicer", "cut")


def test_run_is_found_when_the_host_reused_the_output_of_an_equal_node(sliced, sample):
    assert "slicing: " in _report_in_graph(sample(sliced), "another slicer")
