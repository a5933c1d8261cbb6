"""The quality benchmark's intervals, orders and report, on numbers worked out by hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import quality_report
import quality_sampling
import quality_statistics as statistics
from PIL import Image

HIGHER = {"name": "db", "title": "dB", "better": "higher", "group": "truth", "decimals": 1}


def test_videos_of_one_first_frame_are_averaged():
    means = statistics.by_frame([1, 10, 3, 30], frames=[0, 7, 0, 7])
    assert means.tolist() == [2, 20]


def test_paired_difference_is_that_of_the_pairs():
    # 5-1, 7-3, 6-2: each 4, whatever the values themselves are; drawn anew it is 4 again.
    difference = statistics.paired_difference([5, 7, 6], [1, 3, 2], frames=[0, 1, 2])
    assert difference == {"mean": 4, "low": 4, "high": 4}


def test_interval_comes_from_drawing_first_frames_and_not_videos():
    # Two first frames, three seeds each, means 0 and 2. Drawn anew: 0, 1 or 2 with probability
    # 1/4, 1/2, 1/4, so 95 % lie in [0, 2]. Six independent videos would all be 0 with probability
    # 1/64 only, and the interval would begin at 1/3.
    values, frames = [0, 0, 0, 2, 2, 2], [0, 0, 0, 1, 1, 1]
    assert statistics.mean_with_interval(values, frames) == {"mean": 1, "low": 0, "high": 2}


def test_interval_of_many_first_frames_is_near_the_normal_one():
    # Deviation 1, 100 first frames: 1.96 / sqrt(100) = 0.196 either side.
    values = np.tile([-1.0, 1.0], 50)
    interval = statistics.mean_with_interval(values, frames=range(100))
    assert interval["low"] == pytest.approx(-0.196, abs=0.02)
    assert interval["high"] == pytest.approx(0.196, abs=0.02)


def test_single_first_frame_has_no_interval():
    interval = statistics.mean_with_interval([1, 3], frames=[0, 0])
    assert interval == {"mean": 2, "low": None, "high": None}


@pytest.mark.parametrize(
    ("better", "won"),
    [("higher", (1, 2)), ("lower", (2, 1)), ("one", (0, 3)), ("", (1, 2))],
)
def test_videos_are_won_in_the_direction_that_is_better(better, won):
    # Higher: a, b, b. Nearer to 1: b three times. The last pair is equal.
    a, b = [3, 0.5, 0.4, 4], [2, 1.0, 0.9, 4]
    found = statistics.compare(a, b, frames=range(4), better=better)
    assert (found["won_by_first"], found["won_by_second"]) == won
    assert found["videos"] == 4


def _values() -> dict:
    return {"base": {"db": [1, 1]}, "a": {"db": [2, 4]}, "b": {"db": [3, 5]}}


def test_order_goes_from_the_highest_mean_down_with_every_pair():
    found = statistics.orders(_values(), [0, 1], ("base", "a", "b"), [HIGHER])["db"]
    assert found["highest_first"] == ["b", "a", "base"]
    pairs = {(pair["first"], pair["second"]): pair["mean"] for pair in found["pairs"]}
    assert pairs == {("base", "a"): -2, ("base", "b"): -3, ("a", "b"): -1}


def test_summary_has_differences_to_the_baseline_but_not_of_distances_to_it():
    distance = HIGHER | {"name": "distance", "group": "baseline"}
    values = {name: columns | {"distance": [9, 9]} for name, columns in _values().items()}
    summary = statistics.summarise(values, [0, 1], [HIGHER, distance], "base")
    assert summary["a"]["db"]["mean"] == 3
    assert summary["a"]["db"]["difference"]["mean"] == 2
    assert "difference" not in summary["base"]["db"]
    assert "difference" not in summary["a"]["distance"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 2, True),
        (-2, -0.1, True),
        (-1, 1, False),
        (0, 0, False),
        (1e-7, 2e-7, False),  # printed as 0.0: rounding of equal videos
        (None, None, False),
    ],
)
def test_interval_that_leaves_out_zero_is_told_apart(low, high, expected):
    assert quality_report.leaves_out_zero({"low": low, "high": high}, decimals=1) is expected


def _results() -> dict:
    measures = [HIGHER | {"definition": "decibels"}]
    names = ("base", "a", "b")
    return {
        "command": "python3 x.py",
        "date": "2026-01-01",
        "device": "a device",
        "versions": {"torch": "2"},
        "weights": {"file": "w", "sha256": "0" * 64},
        "sampling": {"frames": 2, "seeds": 1, "steps": 25, "settings": "euler"},
        "baseline": "base",
        "measures": measures,
        "variants": [
            {"name": name, "title": name.upper(), "meaning": "", "evaluations": [50]}
            for name in names
        ],
        "references": [{"title": "truth", "means": {"db": 99}}],
        "summary": statistics.summarise(_values(), [0, 1], measures, "base"),
        "orders": {"letters": statistics.orders(_values(), [0, 1], names, measures)},
        "pack_sources": {"abc": 6},
    }


def test_report_shows_means_differences_and_order_from_the_json_alone():
    text = quality_report.markdown(json.loads(json.dumps(_results())))
    assert "| truth | 99.0 |" in text
    assert "| A | 3.0 |" in text
    # a - base: 1 and 3, so the mean is 2 and the interval [1, 3] leaves out 0.
    assert "| A | **+2.0 [+1.0, +3.0]** |" in text
    assert "| dB | higher is better | B > A > BASE |" in text
    assert "**-1.0 [-1.0, -1.0]**, 0:2 of 2" in text


def test_report_tells_when_videos_come_from_two_states_of_the_pack():
    sentence = "more than one state of the pack's sources"
    results = _results()
    assert sentence not in quality_report.markdown(results)
    results["pack_sources"] = {"abc": 5, "def": 1}
    assert sentence in quality_report.markdown(results)


def test_report_shows_equal_means_as_equal():
    values = {"base": {"db": [1, 1]}, "a": {"db": [2, 2]}, "b": {"db": [2, 2]}}
    names = tuple(values)
    results = _results() | {
        "summary": statistics.summarise(values, [0, 1], [HIGHER], "base"),
        "orders": {"letters": statistics.orders(values, [0, 1], names, [HIGHER])},
    }
    assert "| A = B > BASE |" in quality_report.markdown(results)


def test_plot_is_drawn_from_the_json_alone(tmp_path):
    quality_report.plot(json.loads(json.dumps(_results())), tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_contact_sheet_stays_below_its_limit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (14, 16, 16, 3), dtype=np.uint8)
    video = noise.repeat(4, 1).repeat(4, 2)  # blocks of 4 pixels: too much for quality 90
    quality_report.write_sheet(tmp_path / "sheet.jpg", [video] * 8, ["title"] * 8)
    assert (tmp_path / "sheet.jpg").stat().st_size <= quality_report.SHEET_LIMIT
    best = io.BytesIO()
    Image.open(tmp_path / "sheet.jpg").save(best, "JPEG", quality=90)
    assert best.tell() > quality_report.SHEET_LIMIT


def test_half_a_line_of_a_killed_run_is_dropped_and_the_rest_kept(tmp_path):
    run = quality_sampling.Run("guidance", Path("weights"), tmp_path, 25)
    tasks = [quality_sampling.Task.of("baseline", frame, 0) for frame in range(2)]
    lines = [json.dumps({"task": vars(task), "values": {"db": 1}}) for task in tasks]
    run.records.write_text(lines[0] + "\n" + lines[1][:20])
    assert list(quality_sampling.finished_records(run)) == tasks[:1]
    assert run.records.read_text() == lines[0] + "\n"


def test_video_file_is_another_when_a_variants_settings_change():
    run = quality_sampling.Run("guidance", Path("weights"), Path("work"), 25)
    task = quality_sampling.Task.of("c17", 3, 1)
    other = quality_sampling.Task("c17", "other", 3, 1)
    assert task.file(run).name == "003_1.npz"
    assert task.file(run) != other.file(run)


def test_seed_zero_is_the_gates_and_all_seeds_differ():
    seeds = {
        quality_sampling.Task.of("c17", frame, seed).noise_seed
        for frame in range(64)
        for seed in range(3)
    }
    assert len(seeds) == 3 * 64
    assert quality_sampling.Task.of("never", 5, 0).noise_seed == 5
