"""The speed benchmark's own arithmetic: its variants, its ratios, its report, its memory count."""

import json

import psutil
import pytest
import speed_report
import speed_setup
import torch
from full_size_svd import PARAMETERS
from host_nodes import BenchError
from live_memory import LiveMemory
from speed_measuring import Result, Run, rotated
from speed_variants import VARIANTS, choose


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
        "command": "python3 benchmarks/speed.py",
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
