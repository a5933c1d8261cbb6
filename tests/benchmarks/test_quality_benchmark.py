"""The quality benchmark's variants on the real host, and a run of it that is killed midway."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from quality_sampling import patched
from quality_variants import VARIANTS

BENCH = Path(__file__).resolve().parents[2] / "benchmarks"

DEADLINE_S = 240
COND, GUIDED = [0], [1, 0]  # what ComfyUI evaluates in a step: uncond first
# At 25 steps: two evaluations a guided step, one for each other.
TRACES = {
    "baseline": [GUIDED] * 25,
    "cached": [GUIDED] * 25,
    "remove": [GUIDED] * 25,
    "c20": [GUIDED] * 19 + [COND] * 6,
    "c17": [GUIDED] * 16 + [COND] * 9,
    "c10": [GUIDED] * 9 + [COND] * 16,
    "c17_positive": [GUIDED] * 16 + [COND] * 9,
    "c17_none": [GUIDED] * 16 + [COND] * 9,
    "late_only": [COND] * 16 + [GUIDED] * 9,
    "never": [COND] * 25,
    "remove_c17": [GUIDED] * 16 + [COND] * 9,
}


@pytest.fixture(scope="module")
def sampled(tiny, nodes, traced):
    """Each variant's latent and trace over 25 steps, the same picture and seed."""
    conditioning = tiny.conditioning(frames=2, size=64)
    outputs = {}
    for variant in VARIANTS:
        model, trace = traced(patched(nodes, tiny.model, variant))
        outputs[variant.name] = tiny.sample(model, conditioning=conditioning), trace
    return outputs


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS])
def test_variant_evaluates_what_its_settings_say(sampled, name):
    assert sampled[name][1] == TRACES[name]


def test_cached_alone_equals_the_baseline(sampled, difference):
    assert difference(sampled["cached"][0], sampled["baseline"][0]) < 1e-4


def test_every_other_variant_is_a_video_of_its_own(sampled, difference):
    names = [name for name in sampled if name != "cached"]
    latents = [sampled[name][0] for name in names]
    for index, latent in enumerate(latents):
        assert all(difference(latent, other) > 1e-4 for other in latents[:index]), names[index]


def test_variants_leave_the_model_as_it_was(tiny, sampled, difference):
    again = tiny.sample(conditioning=tiny.conditioning(frames=2, size=64))
    assert difference(again, sampled["baseline"][0]) == 0


def _start(folder: Path, *options: str) -> subprocess.Popen:
    """Start the command on one first frame, three steps a video."""
    command = [sys.executable, str(BENCH / "quality.py"), "--frames", "1", "--seeds", "1"]
    command += ["--steps", "3", "--jobs", "1", "--variants", "c17", "never", *options]
    command += ["--work", str(folder / "work"), "--output", str(folder / "results")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _finish(folder: Path) -> dict:
    """Run the command to its end; return its JSON without the command and its folders."""
    process = _start(folder)
    assert process.wait(DEADLINE_S) == 0, (folder / "log.txt").read_text()
    results = json.loads((folder / "results" / "quality.json").read_text())
    del results["command"], results["date"]
    return results


def _wait_until(condition, folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.02)


def test_killed_run_goes_on_and_gives_the_same_results(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    process = _start(killed)
    videos = "work/*/baseline-*/*_0.npz"
    _wait_until(lambda: list(killed.glob(videos)) or process.poll() is not None, killed)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _wait_until(lambda: not any(child.is_running() for child in children), killed)
    assert not (killed / "results").exists()
    (video,) = killed.glob(videos)
    written = video.stat().st_mtime_ns

    results = _finish(killed)

    assert video.stat().st_mtime_ns == written  # not sampled again
    assert results == _finish(whole)
    assert list(results["values"]) == ["baseline", "c17", "never"]
    names = sorted(path.name for path in (whole / "results").iterdir())
    assert names[:2] == ["quality.json", "quality.md"] and "quality.png" in names


def test_missing_and_damaged_weights_are_told_in_one_sentence(tmp_path):
    def complaint(weights: Path) -> str:
        process = _start(tmp_path, "--weights", str(weights))
        assert process.wait(DEADLINE_S) == 1
        return (tmp_path / "log.txt").read_text().splitlines()[-1]

    missing = complaint(tmp_path / "none.safetensors")
    assert missing.startswith("VCUT quality benchmark: expected weights in")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    damaged = complaint(tmp_path / "bad.safetensors")
    assert "expected the tiny SVD weights in bad.safetensors" in damaged
