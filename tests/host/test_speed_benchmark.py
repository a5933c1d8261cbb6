"""The speed benchmark on the real host: what it runs, counts, leaves behind and reports."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path += [str(BENCH)]

import component_profile  # noqa: E402
import profile_report  # noqa: E402
import speed_report  # noqa: E402
import speed_setup  # noqa: E402
from full_size_svd import PARAMETERS  # noqa: E402
from host_nodes import BenchError, HostNodes  # noqa: E402
from live_memory import LiveMemory  # noqa: E402
from measuring import Result, Run, measure_run, measure_side_by_side, rotated  # noqa: E402
from variants import VARIANTS, Job, choose, extra_variants  # noqa: E402

STEPS = 5
# Guided steps: (c - 1) x 5 / 25, half up: 1.8 -> 2, 3.2 -> 3, 3.8 -> 4. Two evaluations each, the
# other steps one. Align Your Steps: 10 x 5 / 25 = 2 steps, of which 16 x 2 / 25 = 1.28 -> 1 guided.
EVALUATIONS = {
    "baseline": 10,
    "cached": 10,
    "remove": 10,
    "cut_10": 2 * 2 + 3,
    "cut_17": 2 * 3 + 2,
    "cut_20": 2 * 4 + 1,
    "cut_17_alone": 8,
    "paper_17": 8,
    "slicer": 10,
    "cut_17_slicer": 8,
    "two_samplers": 8,
    "ays": 2 * 2,
    "cut_17_ays": 2 * 1 + 1,
}
DECIDED_BY_THE_MODEL = {
    "easycache": 10,
    "lazycache": 10,
    "cut_17_easycache": 8,
    "cut_17_lazycache": 8,
}


@pytest.fixture(scope="module")
def nodes():
    return HostNodes()


@pytest.fixture(scope="module")
def job(tiny):
    return Job(*tiny.conditioning(frames=2), steps=STEPS)


@pytest.fixture(scope="module")
def measured(tiny, nodes, job):
    """Every variant once, by key."""
    results = measure_side_by_side(nodes, tiny.model, job, list(VARIANTS), 1, has_live_memory=True)
    return {result.key: result for result in results}


def test_each_variant_evaluates_the_unet_as_often_as_its_settings_say(measured):
    assert set(measured) == EVALUATIONS.keys() | DECIDED_BY_THE_MODEL.keys()
    counted = {key: measured[key].evaluations for key in EVALUATIONS}
    assert counted == EVALUATIONS
    for key, most in DECIDED_BY_THE_MODEL.items():
        assert 0 < measured[key].evaluations <= most, key
    assert not [result.error for result in measured.values() if result.error]


def test_differences_are_those_that_the_variants_make(measured):
    assert measured["baseline"].relative_difference == 0
    assert 0 < measured["cached"].relative_difference < 1e-5
    assert measured["cut_10"].relative_difference > measured["cut_20"].relative_difference > 1e-5
    assert measured["remove"].relative_difference > 1e-3
    assert all(result.is_finite for result in measured.values())


def test_two_samplers_make_what_a_cut_with_the_own_embedding_makes(tiny, nodes, job, difference):
    job = dataclasses.replace(job, steps=10)  # 16 x 10 / 25 = 6.4 -> 6 guided
    variants = {variant.key: variant for variant in VARIANTS}
    stock = variants["two_samplers"].patch(nodes, tiny.model)
    two = variants["two_samplers"].sample(nodes, stock, job)
    cut = {"cut_step": 17, "steps": 25, "after_cut": "positive"}
    model = nodes.patch("VCUT_GuidanceScheduler", tiny.model, **cut)
    one = variants["baseline"].sample(nodes, variants["baseline"].patch(nodes, model), job)
    assert difference(two, one) < 1e-5


def test_memory_of_vcut_is_its_vectors_and_never_above_the_baselines(measured):
    # 32 maps of 64 channels in fp32, for cond and uncond, and once more for the cond after a cut.
    assert measured["cached"].cache_bytes == 32 * 64 * 4 * 2
    assert measured["cut_17"].cache_bytes == 32 * 64 * 4 * 3
    assert measured["remove"].cache_bytes == 16 * 64 * 4 * 2
    assert measured["cut_17_alone"].cache_bytes == measured["baseline"].cache_bytes == 0
    for key, result in measured.items():
        if result.kind == "vcut":
            assert 0 < result.live_bytes <= measured["baseline"].live_bytes, key


def test_model_is_left_as_it_was(tiny, nodes, job):
    def state():
        modules = list(tiny.model.model.named_modules())
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in modules]
        own_forward = [name for name, module in modules if "forward" in vars(module)]
        kinds = [(name, type(module)) for name, module in modules]
        options = copy.deepcopy(tiny.model.model_options)
        patches = (dict(tiny.model.object_patches), dict(tiny.model.patches))
        return kinds, hooks, own_forward, options, patches, dict(tiny.model.wrappers)

    before, output = state(), tiny.sample(steps=2, conditioning=tiny.conditioning(frames=2))
    weights = copy.deepcopy(tiny.model.model.state_dict())
    chosen = choose(["cut_17", "remove", "lazycache"], VARIANTS)
    measure_side_by_side(nodes, tiny.model, job, chosen, 1, has_live_memory=False)
    component_profile.profile_side_by_side(nodes, tiny.model, job, chosen[:2], lambda _: None)
    assert state() == before
    assert all(torch.equal(w, weights[k]) for k, w in tiny.model.model.state_dict().items())
    again = tiny.sample(steps=2, conditioning=tiny.conditioning(frames=2))
    assert torch.equal(again, output)


def test_baseline_is_always_measured_and_unknown_names_are_refused():
    assert [variant.key for variant in choose(["cut_17"], VARIANTS)] == ["baseline", "cut_17"]
    assert len(choose(None, VARIANTS)) == len(VARIANTS)
    with pytest.raises(ValueError, match="got cut_18"):
        choose(["cut_18"], VARIANTS)


def test_names_say_the_cut_that_is_measured():
    # At 5 steps c = 20 and c = 21 fall on the same step: their counts could not tell.
    named = 0
    for variant in VARIANTS:
        for node_id, inputs in variant.nodes:
            if node_id == "VCUT_GuidanceScheduler":
                assert f"c = {inputs['cut_step']}" in variant.name and inputs["steps"] == 25
                named += 1
    assert named >= 8


def test_each_round_begins_with_another_variant():
    order = list("abcdef")
    assert ["".join(rotated(order, index, 3)) for index in range(3)] == [
        "abcdef",
        "cdefab",
        "efabcd",
    ]


def _run(seconds, cpu_seconds=1.0, latent=(0.0, 5.0), **counts):
    counts = {"evaluations": 8, "peak_bytes": 0, "cache_bytes": 0} | counts
    return Run(torch.tensor(latent), seconds, cpu_seconds, **counts)


def _result(key="cut_17", kind="vcut", **fields):
    return Result(key, key, kind, 5, **fields)


def test_ratios_pair_a_run_with_the_baseline_of_its_round():
    result = _result()
    result.add(_run(8.0, 4.0, latent=(3.0, 4.0)), _run(10.0, 6.0))
    result.add(_run(8.0, 2.0, latent=(3.0, 4.0)), _run(12.0, 6.0))
    assert result.ratios == [1.25, 1.5]  # not 11 / 8 of the medians
    assert result.cpu_ratios == [1.5, 3.0]
    # (3, 4) - (0, 5) has norm sqrt(10), (0, 5) has norm 5.
    assert result.relative_difference == pytest.approx(10**0.5 / 5)
    assert result.largest_difference == 3


def test_latent_that_is_not_finite_is_noted():
    result = _result()
    result.add(_run(8.0, latent=(float("nan"), 1.0)), _run(10.0))
    assert not result.is_finite


def _results(*rows, device="cpu"):
    settings = speed_setup.default_settings("svd_xt", device)
    settings |= {"cfg": 2.5, "sampler": "euler", "scheduler": "karras"}
    return {
        "command": "python3 tests/bench/run.py",
        "date": "2026-01-31",
        "device": {"type": device, "name": "A Processor", "threads": 2},
        "versions": {"VCUT": "1.2.3"},
        "weights": "random",
        "settings": settings,
        "left_out": {"EasyCache": ["EasyCache"]},
        "rounds_done": 2,
        "variants": [vars(row) for row in rows],
    }


def _pair(live=(1000, 900), cache=299_520):
    baseline = _result("baseline", "baseline", live_bytes=live[0])
    cut = _result(live_bytes=live[1])
    for seconds in (10.0, 12.0):
        baseline.add(_run(seconds), _run(seconds))
        cut.add(_run(8.0, latent=(3.0, 4.0), cache_bytes=cache), _run(seconds))
    return baseline, cut


def test_report_is_made_from_the_json_alone(tmp_path):
    file = tmp_path / "speed.json"
    failed = _result("other", "other", error="ValueError: no")
    file.write_text(json.dumps(_results(*_pair(), failed)), encoding="utf-8")
    table, plot = speed_report.write_report(file)
    text = table.read_text(encoding="utf-8")
    assert "| 2 | cut_17 | 5 | 8 | 8.00 | 1.375 (1.250 to 1.500) |" in text
    assert "| 6.3e-01 | 3.0e+00 | 0.0 MB | 0.300 MB |" in text
    assert "| 3 | other | gave up: ValueError: no |" in text
    assert "at its largest: 0.300 MB, below 1 MB" in text
    assert "never above the baseline's; at most 90.00% of it" in text
    assert "Left out: EasyCache; this ComfyUI has no EasyCache." in text
    assert "2026-01-31; A Processor, 2 threads; VCUT 1.2.3." in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_report_says_when_a_bound_is_broken():
    text = speed_report.report_text(_results(*_pair(live=(1000, 1001), cache=1_000_000)))
    assert "1.000 MB, NOT below 1 MB" in text
    assert "above the baseline's for 1; at most 100.10% of it" in text
    baseline, cut = _pair()
    cut.is_finite = False
    assert "NOT FINITE: cut_17." in speed_report.report_text(_results(baseline, cut))


def test_report_of_a_gpu_shows_what_torch_held():
    baseline, cut = _pair(live=(0, 0))
    baseline.peak_bytes, cut.peak_bytes = 11_000_000_000, 10_700_000_000
    text = speed_report.report_text(_results(baseline, cut, device="cuda"))
    assert "| 10,700.0 MB |" in text and "by CPU time" not in text
    assert "at most 97.27% of it" in text  # 10.7 / 11


def test_live_memory_counts_each_storage_from_its_making_to_its_release():
    weight = torch.zeros(100, 100)
    with torch.inference_mode(), LiveMemory() as memory:
        first = torch.zeros(1000)  # 4000 bytes
        second = first + 1  # 8000
        view = first.view(10, 100)
        del first
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 8000)
        del view
        assert memory.live_bytes == 4000
        made = torch.nn.functional.linear(torch.zeros(10, 100), weight)  # 4000 in, 4000 out
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 12000)
        second.add_(1)
        transposed = weight.t()  # of what stood before: not counted
        assert (memory.live_bytes, memory.peak_bytes) == (8000, 12000)
        del made, second, transposed
        assert memory.live_bytes == 0


def test_live_memory_looks_into_operators_made_of_others():
    rows = torch.ones(100, 8)
    with torch.inference_mode(), LiveMemory() as memory:
        output = torch.nn.functional.layer_norm(rows, (8,))
    # The output's 3200 bytes, and the mean and the deviation of each row for a moment: 400 each.
    assert (memory.live_bytes, memory.peak_bytes) == (3200, 4000)
    assert output.shape == rows.shape


def test_profile_puts_all_time_into_components(tiny, nodes, job):
    chosen = choose(["cached"], VARIANTS)
    profiles = component_profile.profile_side_by_side(
        nodes, tiny.model, job, chosen, lambda _: None
    )
    for profile in profiles.values():
        own = sum(part["ms"] for part in profile["components"].values())
        assert own == pytest.approx(profile["whole_ms"])
        assert all(part["ms"] > 0 for part in profile["components"].values())
    baseline, cached = (profiles[key]["components"] for key in ("baseline", "cached"))
    for side in ("spatial", "temporal"):
        for layer in ("norm2", "attn2"):
            assert baseline[f"{side} {layer}"]["calls"] == 16
            assert f"{side} {layer}" not in cached  # the blocks never call them
        for layer in ("norm1", "attn1", "norm3", "ff"):
            assert baseline[f"{side} {layer}"]["calls"] == 16
            assert cached[f"{side} {layer}"]["calls"] == 16
    results = {**_results(), "profiles": profiles}
    text = profile_report.profile_text(results)
    assert "| temporal attn2 |" in text and "| aten::addmm |" in text


PACK = """
class Doubles:
    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"network": ("MODEL",), "times": ("INT", {"default": 2}), "how": (["a", "b"],)}
        return {"required": inputs}
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"

    def run(self, network, times, how):
        if how != "a":
            raise TypeError("no\\nmore")
        clone = network.clone()
        def repeat(apply, call):
            outputs = [apply(call["input"], call["timestep"], **call["c"]) for _ in range(times)]
            return outputs[0]
        clone.set_model_unet_function_wrapper(repeat)
        return (clone,)

NODE_CLASS_MAPPINGS = {"TestDoubles": Doubles}
"""


@pytest.fixture(scope="module")
def with_foreign_pack(nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "doubles"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACK)
    assert nodes.add_pack(folder) == ["TestDoubles"]
    return nodes


def test_node_of_another_pack_is_measured_beside_vcut(with_foreign_pack, tiny, job):
    inputs = with_foreign_pack.convert("TestDoubles", ["times=3"])
    assert inputs == {"times": 3}
    for variant, expected in zip(extra_variants("TestDoubles", inputs), (30, 24), strict=True):
        model = variant.patch(with_foreign_pack, tiny.model)
        assert measure_run(with_foreign_pack, model, job, variant).evaluations == expected


def test_node_of_another_pack_that_fails_is_given_up_and_the_rest_measured(
    with_foreign_pack, tiny, job
):
    chosen = [*choose(["cut_17"], VARIANTS), *extra_variants("TestDoubles", {"how": "b"})]
    results = measure_side_by_side(
        with_foreign_pack, tiny.model, job, chosen, 1, has_live_memory=False
    )
    assert [result.error for result in results] == ["", "", "TypeError: no", "TypeError: no"]
    assert [len(result.ratios) for result in results] == [1, 1, 0, 0]


def test_wrong_names_around_another_pack_are_one_sentence(with_foreign_pack, tmp_path):
    with pytest.raises(BenchError, match="could not load nowhere"):
        with_foreign_pack.add_pack(tmp_path / "nowhere")
    with pytest.raises(BenchError, match=r"TestDoubles \(network, times, how\), got speed"):
        with_foreign_pack.convert("TestDoubles", ["speed=3"])
    with pytest.raises(BenchError, match="got Nothing"):
        with_foreign_pack.patch("Nothing", None)
    with pytest.raises(BenchError, match="with a MODEL input, got KSamplerSelect"):
        with_foreign_pack.patch("KSamplerSelect", None)


def _settings(**changes):
    return speed_setup.Settings(**speed_setup.default_settings("svd_xt", "cpu") | changes)


def test_missing_memory_is_one_sentence(monkeypatch):
    # 1.2 GB for the process, 6.1 of weights, 8 GB x 2 x 256 x 128 x 4 / (1024 x 576 x 25) = 0.14.
    needed = speed_setup.needed_memory(_settings())
    assert needed == pytest.approx(1.2e9 + 4 * PARAMETERS + 0.142e9, rel=1e-3)
    memory = psutil.virtual_memory()._replace(available=int(needed) + 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    speed_setup.require_usable(_settings())
    with pytest.raises(BenchError, match=r"expected 8.2 GB of free memory for svd_xt in fp32"):
        speed_setup.require_usable(_settings(frames=25))
    with pytest.raises(BenchError, match="64 divides, got 250x128"):
        speed_setup.require_usable(_settings(width=250))


def _command(*words):
    command = [sys.executable, str(BENCH / "run.py"), *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def test_missing_gpu_is_one_sentence():
    result = _command("--device", "cuda")
    assert result.returncode == 1
    assert result.stderr.startswith("VCUT: expected a GPU for --device cuda, PyTorch ")
    assert result.stderr.count("\n") == 1


def test_command_measures_the_tiny_model_and_makes_its_report_again(tmp_path):
    file = tmp_path / "speed.json"
    options = ["--model", "tiny", "--device", "cpu", "--frames", "2", "--steps", "4"]
    result = _command(*options, "--rounds", "2", "--variants", "cut_17", "--output", str(file))
    assert result.returncode == 0, result.stderr
    results = json.loads(file.read_text())
    assert results["command"].endswith("--variants cut_17 --output speed.json")
    # 16 x 4 / 25 = 2.56 -> 3 guided of 4.
    assert [row["evaluations"] for row in results["variants"]] == [8, 7]
    assert [len(row["ratios"]) for row in results["variants"]] == [2, 2]
    assert results["rounds_done"] == 2
    written = file.with_suffix(".md").read_text()
    file.with_suffix(".md").unlink()
    file.with_suffix(".png").unlink()
    result = _command("--report", str(file))
    assert result.returncode == 0, result.stderr
    assert file.with_suffix(".md").read_text() == written and file.with_suffix(".png").exists()


def test_wrong_words_on_the_command_line_are_one_sentence(tmp_path):
    for words, expected in (
        (["--report", str(tmp_path / "no.json")], "could not read"),
        (["--model", "tiny", "--variants", "cut_18"], "got cut_18. Change --variants."),
    ):
        result = _command(*words)
        assert result.returncode == 1
        assert result.stderr.startswith("VCUT: ") and expected in result.stderr
        assert result.stderr.count("\n") == 1
