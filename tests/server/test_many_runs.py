"""A hundred queued runs on one server leave memory and results as they were."""

import copy
import random
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import requests
from PIL import Image
from private_comfyui import prompts
from private_comfyui.install import WORKFLOWS, current_host
from private_comfyui.serve import ComfyServer

NUM_RUNS = 100
REPEATED = (0, 33, 66, 99)  # these runs have the same inputs
NUM_PICTURES = 5
DEADLINE_S = 400
# Measured growth, with VCUT and without alike: 6 MB, the allocator's. The tiny model takes 23 MB,
# so one that leaked in every run would add 750 MB.
MAX_GROWTH_MB = 15
# Let glibc give tensors back at once, so that RSS is what the server holds and not what it held.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    """A server of its own, as other tests' runs would count as growth."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MALLOC.items():
            patch.setenv(name, value)
        with ComfyServer(current_host()) as server:
            yield server


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.get("/object_info")


@pytest.fixture
def pictures(server, tmp_path) -> list[str]:
    """Upload pictures of noise, of different sizes, and return the names for LoadImage."""
    names = []
    for number in range(NUM_PICTURES):
        pixels = np.random.default_rng(number).integers(
            0, 256, (64 + 16 * number, 96, 3), dtype=np.uint8
        )
        path = tmp_path / f"many_runs_{number}.png"
        Image.fromarray(pixels).save(path)
        names.append(server.upload(path))
    return names


def _varied(prompt: dict, pictures: list[str], choose: random.Random) -> dict:
    """Return the prompt with another picture, other sizes and settings, one in five without VCUT.

    A scheduler or a patched model may also stand alone, as ``keep`` and ``cut_step`` allow.
    """
    prompt = copy.deepcopy(prompt)
    prompts.set_inputs(prompt, "LoadImage", image=choose.choice(pictures))
    prompts.set_inputs(
        prompt, "SVD_img2vid_Conditioning", width=choose.choice([64, 80, 96]),
        height=choose.choice([64, 80, 96]), video_frames=choose.randint(1, 4),
        motion_bucket_id=choose.randint(1, 255), augmentation_level=choose.choice([0.0, 0.1]),
    )  # fmt: skip
    prompts.set_inputs(
        prompt, "KSampler", steps=choose.choice([1, 1, 2]), seed=choose.randint(0, 2**32),
        cfg=choose.choice([1.0, 2.5]), sampler_name=choose.choice(["euler", "dpmpp_2m", "ddim"]),
    )  # fmt: skip
    prompts.set_inputs(
        prompt, "VCUT_GuidanceScheduler", cut_step=choose.randint(1, 3),
        steps=choose.randint(1, 3), cut_sigma=choose.choice([0.0, 0.0, 5.0]),
        after_cut=choose.choice(["average", "positive", "none"]),
        start_step=choose.choice([1, 1, 2]),
    )  # fmt: skip
    prompts.set_inputs(
        prompt, "VCUT_PatchSVDModel", temporal=choose.choice(["cached", "remove", "keep"]),
        spatial=choose.choice(["cached", "keep"]),
    )  # fmt: skip
    return prompts.without_vcut(prompt) if choose.random() < 0.2 else prompt


def _queue(server, prompt: dict) -> str:
    answer = requests.post(server.url + "/prompt", json={"prompt": prompt}, timeout=30).json()
    assert "prompt_id" in answer, answer
    return answer["prompt_id"]


def _finished(server, prompt_id: str, deadline: float) -> dict:
    """Wait for a queued run and return its entry in the server's history."""
    while time.monotonic() < deadline:
        if entry := server.get(f"/history/{prompt_id}").get(prompt_id):
            assert entry["status"]["status_str"] == "success", entry["status"]
            return entry
        time.sleep(0.05)
    raise AssertionError(f"{NUM_RUNS} runs took longer than {DEADLINE_S} s")


def _seconds(entries: list[dict]) -> float:
    """Return the median time that these runs took, from the server's own messages."""
    times = [[body["timestamp"] for _, body in e["status"]["messages"]] for e in entries]
    return statistics.median(stamps[-1] - stamps[0] for stamps in times) / 1000


def _png_bytes(server, entry: dict) -> list[bytes]:
    files = entry["outputs"]["frames"]["images"]
    return [requests.get(server.url + "/view", params=f, timeout=30).content for f in files]


def _run_all(server, queued: list[dict]) -> tuple[list[dict], list[float]]:
    """Queue every prompt, wait for each and return (history entries, server memory in MB)."""
    ids = [_queue(server, prompt) for prompt in queued]
    process = psutil.Process(server._process.pid)
    deadline = time.monotonic() + DEADLINE_S
    entries, memory_mb = [], []
    for prompt_id in ids:
        entries.append(_finished(server, prompt_id, deadline))
        memory_mb.append(process.memory_info().rss / 1e6)
    return entries, memory_mb


def test_100_queued_runs_leave_memory_level_and_equal_inputs_equal_results(
    server, tiny_prompt, pictures, capsys
):
    first = tiny_prompt(WORKFLOWS / "svd_vcut.json", frames=4, steps=2, seed=7)
    prompts.set_inputs(first, "VCUT_GuidanceScheduler", cut_step=2, steps=2)
    for node_id in prompts.nodes_of(first, "CreateVideo", "SaveVideo"):
        del first[node_id]
    choose = random.Random(0)
    queued = [
        first if number in REPEATED else _varied(first, pictures, choose)
        for number in range(NUM_RUNS)
    ]
    entries, memory_mb = _run_all(server, queued)

    results = [_png_bytes(server, entries[number]) for number in REPEATED]
    assert len(results[0]) == 4 and all(png.startswith(b"\x89PNG") for png in results[0])
    assert len({*results[0]}) > 1, "the video does not move: no result to compare"
    assert all(result == results[0] for result in results)
    third = NUM_RUNS // 3
    parts = slice(third, -third), slice(-third, None)
    middle, last = (statistics.median(memory_mb[part]) for part in parts)
    assert last - middle < MAX_GROWTH_MB, memory_mb[::10]
    # Reported and not asserted: another program on this machine may slow down any part.
    seconds = [_seconds(entries[part]) for part in parts]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{NUM_RUNS} runs: middle and last third {seconds[0]:.2f} and {seconds[1]:.2f} s "
            f"a run, memory {last - middle:+.1f} MB\n"
        )
