"""Gathers the records of the step cache's table: distance, cost, and ours beside rivals."""

from collections import Counter
from dataclasses import asdict

import numpy as np
from quality_measures import LEVEL, psnr_of
from quality_sampling import Run, Task, read_video
from quality_statistics import compare, mean_with_interval, paired_difference
from quality_variants import BASELINE, Variant
from step_cache_variants import PAIRS, stress

DISTANCE = "psnr_to_baseline"
Pairs = list[tuple[int, int]]


def collect(run: Run, variants: list[Variant], pairs: Pairs, records: dict[Task, dict]) -> dict:
    """Return a row for each variant, the paired comparisons, and how far two seeds lie apart."""
    found = {
        variant.name: {
            pair: records[task]
            for pair in pairs
            if (task := Task.of(variant.name, *pair)) in records
        }
        for variant in variants
    }
    sources = Counter(
        record["facts"]["pack_sources"] for rows in found.values() for record in rows.values()
    )
    tests = {"ordinary": BASELINE.name, "stress": stress(BASELINE.name)}
    return {
        "rows": [_row(variant, found) for variant in variants],
        "comparisons": [
            _comparison(found, *names)
            for ordinary in PAIRS
            for names in (ordinary, tuple(map(stress, ordinary)))
            if found.get(names[0]) and found.get(names[1])
        ],
        "two_seeds": {
            test: _two_seeds(run, name, pairs) for test, name in tests.items() if found.get(name)
        },
        "pack_sources": dict(sources),
    }


def _row(variant: Variant, found: dict) -> dict:
    """Return what a variant costs and how far it lies from its reference and from the truth."""
    rows = found[variant.name]
    frames = [frame for frame, _ in rows]
    distances = _column(rows, DISTANCE)
    row = {
        **asdict(variant),
        "videos": len(rows),
        "work": float(np.mean([record["facts"]["work"] for record in rows.values()])),
        "distance": mean_with_interval(distances, frames),
        "worst": min(distances),
        "largest_frame_error": float(np.mean(_column(rows, "largest_frame_error"))),
    }
    if variant.test == "ordinary":
        reference = found[variant.reference]
        truth = _column(rows, "psnr_to_truth")
        own = [reference[pair]["values"]["psnr_to_truth"] for pair in rows]
        row["truth"] = mean_with_interval(truth, frames)
        row["truth_difference"] = paired_difference(truth, own, frames)
        row["direction_right"] = float(np.mean(_column(rows, "direction_right")))
    return row


def _comparison(found: dict, ours: str, rival: str) -> dict:
    """Return by how many dB ours lies nearer to the full run, on the videos that both have."""
    shared = [pair for pair in found[ours] if pair in found[rival]]
    columns = [[found[name][pair]["values"][DISTANCE] for pair in shared] for name in (ours, rival)]
    frames = [frame for frame, _ in shared]
    return {"first": ours, "second": rival} | compare(*columns, frames, "higher")


def _two_seeds(run: Run, name: str, pairs: Pairs) -> dict | None:
    """Return how far two seeds of a full run lie apart, in dB."""
    frames = [frame for frame, seed in pairs if seed == 1]
    if not frames:
        return None
    distances = []
    for frame in frames:
        videos = (read_video(Task.of(name, frame, seed).file(run))[0] for seed in (0, 1))
        first, second = (video.astype(np.float64) / LEVEL for video in videos)
        distances.append(psnr_of(np.square(first - second).mean()))
    return mean_with_interval(distances, frames)


def _column(rows: dict, name: str) -> list[float]:
    return [record["values"][name] for record in rows.values()]
