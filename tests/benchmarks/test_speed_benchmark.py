"""The speed benchmark on the real host: what it runs, counts, leaves behind and gives up."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import profile_measuring
import profile_report
import pytest
import speed_setup
import torch
from host_nodes import BenchError
from sampling_jobs import Job
from speed_measuring import measure_run, measure_side_by_side
from speed_variants import VARIANTS, choose, extra_variants

BENCH = Path(__file__).resolve().parents[2] / "benchmarks"

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
    "feed_forward": 10,
    "blocks": 10,
    "everything": 10,
    "cut_17_blocks": 8,
    "careful": 10,  # five steps have none to spare
    "balanced": 10,
    "fast": 10,
    "cut_17_careful": 8,
    "cut_17_balanced": 8,
    "cut_17_fast": 8,
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
    profile_measuring.profile_side_by_side(nodes, tiny.model, job, chosen[:2], lambda _: None)
    assert state() == before
    assert all(torch.equal(w, weights[k]) for k, w in tiny.model.model.state_dict().items())
    again = tiny.sample(steps=2, conditioning=tiny.conditioning(frames=2))
    assert torch.equal(again, output)


def test_profile_puts_all_time_into_components(tiny, nodes, job):
    chosen = choose(["cached"], VARIANTS)
    profiles = profile_measuring.profile_side_by_side(
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
    settings = speed_setup.Settings(**speed_setup.default_settings("tiny", "cpu"))
    told = speed_setup.circumstances(settings, "python3 benchmarks/speed.py --profile")
    text = profile_report.profile_text({**told, "profiles": profiles})
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


def _command(*words):
    command = [sys.executable, str(BENCH / "speed.py"), *words]
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
