"""The paper's tables: its printed figures, and ours beside them."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from many_gpus.journal import Entry
from private_comfyui.environments import HostError

MEASURES = {  # VBench's name -> the column's
    "subject_consistency": "subject",
    "background_consistency": "background",
    "motion_smoothness": "smoothness",
    "dynamic_degree": "dynamic",
    "aesthetic_quality": "aesthetic",
    "imaging_quality": "imaging",
    "i2v_subject": "video-image subject",
    "i2v_background": "video-image background",
}
# Percent, in the order of MEASURES, from the paper; those of SVD-XT 1.1 are not known here.
PRINTED = {
    ("SVD", "baseline"): (96.70, 96.83, 97.97, 43.17, 60.23, 67.95, 97.42, 97.68),
    ("SVD", "c17"): (96.69, 96.88, 98.04, 45.77, 60.15, 67.46, 97.32, 97.49),
    ("SVD", "c10"): (91.85, 91.23, 94.07, 43.20, 52.34, 61.42, 91.09, 91.88),
    ("SVD-XT", "baseline"): (95.52, 96.61, 98.09, 52.36, 60.15, 66.36, 97.52, 97.63),
    ("SVD-XT", "c17"): (95.48, 96.49, 98.04, 57.80, 60.07, 66.11, 97.25, 97.52),
    ("SVD-XT", "c10"): (91.11, 90.02, 94.81, 54.27, 53.94, 60.53, 91.86, 92.19),
}
PRINTED_SECONDS = {  # on one A10, 25 steps
    ("SVD", "baseline"): 68.4,
    ("SVD", "c17"): 54.7,
    ("SVD", "c20"): 58.2,
    ("SVD", "c10"): 47.1,
    ("SVD-XT", "baseline"): 120.6,
    ("SVD-XT", "c17"): 97.3,
    ("SVD-XT", "c20"): 103.2,
    ("SVD-XT", "c10"): 84.3,
}
SCORES = "scores"  # a folder beside the videos
Scores = dict[tuple[str, str], dict[str, float]]


def results_file(output: Path, model: str, variant: str, measure: str) -> Path:
    """Return where VBench writes a measure's results, below the benchmark's output folder."""
    return output / SCORES / model / variant / f"{measure}_eval_results.json"


def read_scores(output: Path) -> Scores:
    """Return VBench's scores in percent by (model, variant): all that ``results_file`` names.

    A file is {measure: [score from 0 to 1, [each video's]]}. Raises HostError for another one.
    """
    scores: Scores = {}
    for file in sorted((output / SCORES).glob("*/*/*.json")):
        key = (file.parent.parent.name, file.parent.name)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = {name: 100 * content[name][0] for name in MEASURES if name in content}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise HostError(f"expected VBench's results in {file}: {error!r}.") from None
        if not found:
            raise HostError(f"expected VBench's results in {file}, found none of its measures.")
        scores.setdefault(key, {}).update(found)
    return scores


def tables(done: dict[tuple[str, str], list[Entry]], scores: Scores) -> str:
    """Return Markdown: cost and quality of each model's variants, ours and the paper's."""
    models = dict.fromkeys(model for model, _ in done)
    return "\n\n".join(part for model in models for part in _of_model(model, done, scores)) + "\n"


def _of_model(
    model: str, done: dict[tuple[str, str], list[Entry]], scores: Scores
) -> tuple[str, str]:
    variants = [variant for name, variant in done if name == model]
    first = _seconds(done[model, variants[0]])
    printed_first = PRINTED_SECONDS.get((model, variants[0]))
    cost = [
        f"## {model}: cost\n",
        "| variant | videos | evaluations each | seconds each | of the baseline's | the paper's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant in variants:
        entries = done[model, variant]
        seconds, printed = _seconds(entries), PRINTED_SECONDS.get((model, variant))
        cells = [
            variant,
            str(len(entries)),
            _evaluations(entries),
            "-" if seconds is None else f"{seconds:.1f}",
            "-" if seconds is None or not first else f"{seconds / first:.2f}",
            "-" if printed is None or not printed_first else f"{printed / printed_first:.2f}",
        ]
        cost.append(f"| {' | '.join(cells)} |")
    quality = [
        f"## {model}: VBench, percent, ours / the paper's\n",
        f"| variant | {' | '.join(MEASURES.values())} |",
        "| --- " * (len(MEASURES) + 1) + "|",
    ]
    for variant in variants:
        own, printed = scores.get((model, variant), {}), PRINTED.get((model, variant))
        cells = [
            f"{_percent(own.get(name))} / {_percent(printed[k] if printed else None)}"
            for k, name in enumerate(MEASURES)
        ]
        quality.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(cost), "\n".join(quality)


def _seconds(entries: Sequence[Entry]) -> float | None:
    """Return the median: a worker's first job loads the model too."""
    return statistics.median(entry.seconds for entry in entries) if entries else None


def _evaluations(entries: Sequence[Entry]) -> str:
    return ", ".join(sorted({str(e.evaluations) for e in entries if e.evaluations})) or "-"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
