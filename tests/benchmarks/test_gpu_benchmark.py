"""The benchmark for one GPU, on the CPU in miniature: what it measures, and how it goes on."""

import json
import time

import gpu
import gpu_pieces
import gpu_report
import memory
import pytest
import torch
from host_nodes import HostNodes
from speed_setup import Settings


@pytest.fixture(scope="module")
def bench(tiny):
    settings = Settings("svd_xt", "cpu", "fp32", *gpu.DRY_SIZE, 2, 4, 1)
    return gpu_pieces.Bench(HostNodes(), settings, gpu.SMALL_UNET)


def test_speed_is_told_beside_the_baseline(bench):
    variants = gpu_pieces.speed_variants(("cached", "cut_17"))
    rows = list(gpu_pieces.measure_speed(bench, variants))
    assert [row["key"] for row in rows] == ["baseline", "cached", "cut_17"]
    # Guided of 4 steps: 16 x 4 / 25 = 2.56 -> 3, so 3 x 2 + 1 evaluations.
    assert [row["evaluations"] for row in rows] == [8, 8, 7]
    assert rows[0]["ratios"] == [1.0]
    assert rows[1]["relative_difference"] < 1e-5 < rows[2]["relative_difference"]


def test_a_rival_that_fails_is_named_and_the_rest_is_measured(bench):
    broken, whole = gpu_pieces.speed_variants(("cached", "cut_17"))[1:]
    broken = gpu_pieces.replace(broken, nodes=(("VCUT_PatchSVDModel", {"temporal": "wrong"}),))
    baseline = gpu_pieces.speed_variants(("cached",))[0]
    rows = list(gpu_pieces.measure_speed(bench, [baseline, broken, whole]))
    assert "wrong" in rows[1]["error"]
    assert rows[2]["evaluations"] == 7


def test_memory_and_decoding_and_cards_have_a_row_each(bench):
    scopes = memory.variants(["blocks"], [2])
    assert [row["key"] for row in gpu_pieces.measure_memory(bench, scopes)] == [
        "baseline", "vcut", "blocks_2", "vcut_blocks_2",
    ]  # fmt: skip
    rows = list(gpu_pieces.measure_decoding(bench))
    assert [row["name"] for row in rows][:3] == ["VAE Decode", "1 slices", "2 slices"]
    assert all(row["largest"] < 1e-4 for row in rows)
    cards = list(gpu_pieces.measure_cards(bench))
    assert [(row["card_gib"], row["name"]) for row in cards][:2] == [(8, "stock"), (8, "VCUT")]


def test_running_out_of_memory_is_a_result():
    def measure():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu_pieces._attempt("sampling", measure) == {"sampling_error": "out of memory"}


@pytest.fixture
def counted(bench, tmp_path):
    """A piece of three rows that says how many were asked for, measured until a deadline."""
    asked = []

    def rows(_bench):
        for number in range(3):
            asked.append(number)
            yield {"name": str(number), "seconds": 1.0, "peak_bytes": 0, "largest": 0.0}

    piece = gpu.Piece("decoding", rows, gpu.DRY_SIZE, 2)
    return asked, lambda deadline: gpu._measure(piece, bench, tmp_path, deadline)


def test_what_is_not_done_when_the_time_is_over_is_done_by_the_next_command(counted, tmp_path):
    asked, measure = counted
    assert not measure(deadline=time.monotonic() - 1)
    assert asked == []
    assert measure(deadline=time.monotonic() + 60)
    assert asked == [0, 1, 2]
    assert measure(deadline=time.monotonic() - 1), "a complete piece is not measured again"
    assert asked == [0, 1, 2]
    assert "| 2 | 1.00 |" in gpu_report.write_report(tmp_path).read_text(encoding="utf-8")


def test_rows_are_written_as_they_come(bench, tmp_path):
    def rows(_bench):
        yield {"name": "first"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu._measure(gpu.Piece("cards", rows, gpu.DRY_SIZE, 2), bench, tmp_path, float("inf"))
    saved = json.loads((tmp_path / "cards.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in saved["rows"]] == ["first"]
    assert not saved["is_complete"]
