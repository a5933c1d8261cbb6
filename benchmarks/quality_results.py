"""Gathers the records of all videos into what quality.json holds; chooses the contact sheets."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from quality_measures import MEASURES, to_uint8, to_uint16
from quality_report import write_sheet
from quality_sampling import REFERENCES, Run, Task, read_video, true_video
from quality_statistics import orders, summarise
from quality_tables import TABLES
from quality_variants import BASELINE, ORDERS, Variant
from video_world import DIRECTION_NAMES

DIGITS = 6  # that are kept of every number


def collect(
    _run: Run, variants: list[Variant], pairs: list[tuple[int, int]], records: dict[Task, dict]
) -> dict:
    """Return the guidance table's values, means, paired differences and orders.

    pairs: (frame, seed) of each video.
    """
    frames = [frame for frame, _ in pairs]
    chosen = {v.name: [records[Task.of(v.name, *pair)] for pair in pairs] for v in variants}
    measures = [asdict(measure) for measure in MEASURES]
    values = {name: _columns([r["values"] for r in found]) for name, found in chosen.items()}
    sources = Counter(r["facts"]["pack_sources"] for found in chosen.values() for r in found)
    return {
        "baseline": BASELINE.name,
        "variants": [
            asdict(variant)
            | {"evaluations": sorted({r["facts"]["evaluations"] for r in chosen[variant.name]})}
            for variant in variants
        ],
        "measures": measures,
        "references": [
            {"title": title, "means": _means(records, name, sorted(set(frames)))}
            for name, title in REFERENCES.items()
        ],
        "summary": summarise(values, frames, measures, BASELINE.name),
        "orders": {
            order: orders(values, frames, names, _comparable(measures, names))
            for order, names in ORDERS.items()
            if values.keys() >= set(names)
        },
        "pack_sources": dict(sources),
        "pairs": [list(pair) for pair in pairs],
        "values": values,
    }


def _means(records: dict[Task, dict], name: str, frames: list[int]) -> dict[str, float]:
    rows = [records[Task.of(name, frame, 0)]["values"] for frame in frames]
    return {measure: float(np.mean(column)) for measure, column in _columns(rows).items()}


def _comparable(measures: list[dict], names: tuple[str, ...]) -> list[dict]:
    """Leave out distances to the baseline where it is itself among the compared."""
    return [m for m in measures if m["group"] != "baseline" or BASELINE.name not in names]


def _columns(rows: list[dict]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_json(path: Path, results: dict) -> dict:
    """Write the results, numbers to six digits, and return them so."""
    results = _rounded(results)
    text = json.dumps(results, indent=1)
    # A list of numbers on one line.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found.group().split()), text)
    path.write_text(text + "\n", encoding="utf-8")
    return results


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def write_sheets(folder: Path, run: Run, variants: list[Variant], num_frames: int) -> list[Path]:
    """Write a sheet for each direction: its lowest-numbered first frame, seed 0, truth on top."""
    paths, seen = [], set()
    for frame in range(num_frames):
        truth = true_video(frame)
        direction = DIRECTION_NAMES[int(truth.direction)]
        if direction in seen:
            continue
        seen.add(direction)
        videos = [to_uint16(truth.frames[0])]
        videos += [read_video(Task.of(v.name, frame, 0).file(run))[0] for v in variants]
        titles = [f"truth, first frame {frame}", *(variant.title for variant in variants)]
        paths.append(folder / f"{TABLES[run.table].file}_{direction}.jpg")
        write_sheet(paths[-1], [to_uint8(video) for video in videos], titles)
    return paths
