"""Means and paired differences of the quality benchmark, with their intervals.

The videos of one first frame are not independent, so they are averaged first and the 95 % interval
comes from drawing first frames anew (percentile bootstrap).
"""

from itertools import combinations

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999
SEED = 2407
CONFIDENCE = 0.95


def by_frame(values: list[float], frames: list[int]) -> np.ndarray:
    """Return the mean of each first frame's values; ``frames`` names the frame of each value."""
    values, frames = np.asarray(values, dtype=float), np.asarray(frames)
    return np.array([values[frames == frame].mean() for frame in np.unique(frames)])


def mean_with_interval(values: list[float], frames: list[int]) -> dict:
    """Return {"mean", "low", "high"}; no interval, None, for a single first frame."""
    means = by_frame(values, frames)
    mean = float(means.mean())
    if len(means) < 2:
        return {"mean": mean, "low": None, "high": None}
    result = bootstrap(
        (means,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    low, high = result.confidence_interval
    return {"mean": mean, "low": float(low), "high": float(high)}


def paired_difference(values, reference, frames) -> dict:
    """Return mean and interval of ``values`` less ``reference``, both of the same videos."""
    return mean_with_interval(np.subtract(values, reference), frames)


def goodness(values, better: str) -> np.ndarray:
    """Return numbers that are the larger the better; the values themselves where neither is."""
    values = np.asarray(values, dtype=float)
    if better == "lower":
        return -values
    return -np.abs(values - 1) if better == "one" else values


def compare(a, b, frames, better: str) -> dict:
    """Return the paired difference a - b and the count of videos that each wins."""
    good_a, good_b = goodness(a, better), goodness(b, better)
    return paired_difference(a, b, frames) | {
        "won_by_first": int((good_a > good_b).sum()),
        "won_by_second": int((good_a < good_b).sum()),
        "videos": len(good_a),
    }


def orders(values: dict, frames: list[int], names: tuple[str, ...], measures: list[dict]) -> dict:
    """Return, for each measure, the variants from the highest mean down, and every pair compared.

    values: {variant: {measure: list over videos}}.
    """
    found = {}
    for measure in measures:
        columns = {name: values[name][measure["name"]] for name in names}
        found[measure["name"]] = {
            "highest_first": sorted(names, key=lambda name: -float(np.mean(columns[name]))),
            "pairs": [
                {"first": a, "second": b}
                | compare(columns[a], columns[b], frames, measure["better"])
                for a, b in combinations(names, 2)
            ],
        }
    return found


def summarise(values: dict, frames: list[int], measures: list[dict], baseline: str) -> dict:
    """Return {variant: {measure: {"mean", "low", "high", "difference"}}}.

    difference: to the baseline, paired; absent for measures that are themselves distances to it.
    """
    summary = {}
    for variant, columns in values.items():
        summary[variant] = {}
        for measure in measures:
            name = measure["name"]
            entry = mean_with_interval(columns[name], frames)
            if measure["group"] != "baseline" and variant != baseline:
                reference = values[baseline][name]
                entry["difference"] = paired_difference(columns[name], reference, frames)
            summary[variant][name] = entry
    return summary
