"""Makes the table, the plot and the contact sheets of the quality benchmark.

python3 benchmarks/quality_report.py [FOLDER]    the first two again, from quality.json alone
"""

import io
import json
import math
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
SHEET_LIMIT = 300_000  # bytes
SHEET_SCALE = 3  # pixels of a sheet for one of a video
BETTER = {"higher": "higher is better", "lower": "lower is better", "one": "1 is the truth's"}


def markdown(results: dict) -> str:
    """Return the whole report as markdown."""
    measures = results["measures"]
    own = [measure for measure in measures if measure["group"] != "baseline"]
    distances = [measure for measure in measures if measure["group"] == "baseline"]
    parts = [
        _head(results),
        "## Distance to the baseline\n\nMean and 95 % interval. How far the picture moves, not "
        "whether it got worse: the runs are the same up to the cut, so these order c by "
        "construction.\n\n" + _distances(results, distances),
        "## Means\n\nThe second row is the truth encoded and decoded: what the VAE alone takes.\n\n"
        + _means(results, own),
        "## Paired differences to the baseline\n\nVariant less baseline, mean and 95 % interval; "
        "bold where the interval leaves out 0.\n\n" + _differences(results, own),
        *(_order(results, name, order) for name, order in results["orders"].items()),
        "## Variants\n\n" + _variants(results["variants"]),
        "## Measures\n\n" + _definitions(measures),
    ]
    return "\n\n".join(parts) + "\n"


def _head(results: dict) -> str:
    sampling = results["sampling"]
    count = sampling["frames"] * sampling["seeds"]
    videos = (
        f"{count} videos of each variant: {sampling['frames']} unseen first frames, "
        f"{sampling['seeds']} seeds for each, {sampling['steps']} steps, {sampling['settings']}."
    )
    stand_ins = (
        "The eight stand-ins take the place of VBench's dimensions without its networks; they are "
        "not VBench scores."
    )
    return f"{heading(results, 'Quality on the tiny SVD', videos)}\n\n{stand_ins}"


def heading(results: dict, title: str, videos: str) -> str:
    """Return a report's title and how it was measured."""
    names = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    weights = results["weights"]
    lines = [
        f"# {title}",
        f"`{results['command']}`, {results['date']}, {results['device']}. {names}.",
        f"{videos} Weights `{weights['file']}`, sha256 `{weights['sha256'][:16]}`.",
        "Intervals: the videos of one first frame are averaged, then first frames are drawn anew "
        "(percentile bootstrap). They are not corrected for the number of comparisons: of 20 "
        "intervals around a true 0, about one leaves it out.",
    ]
    if len(results["pack_sources"]) > 1:
        lines.append("The videos were made by more than one state of the pack's sources.")
    return "\n\n".join(lines)


def _distances(results: dict, measures: list[dict]) -> str:
    rows = []
    for variant in results["variants"]:
        if variant["name"] == results["baseline"]:
            continue
        summary = results["summary"][variant["name"]]
        cells = [_with_interval(summary[m["name"]], m["decimals"]) for m in measures]
        rows.append([variant["title"], *cells])
    return table_text(["variant", *(m["title"] for m in measures)], rows)


def _means(results: dict, measures: list[dict]) -> str:
    rows = [
        [reference["title"]]
        + [_number(reference["means"][m["name"]], m["decimals"]) for m in measures]
        for reference in results["references"]
    ]
    for variant in results["variants"]:
        summary = results["summary"][variant["name"]]
        cells = [_number(summary[m["name"]]["mean"], m["decimals"]) for m in measures]
        rows.append([variant["title"], *cells])
    return table_text(["variant", *(m["title"] for m in measures)], rows)


def _differences(results: dict, measures: list[dict]) -> str:
    rows = []
    for variant in results["variants"]:
        summary = results["summary"][variant["name"]]
        if variant["name"] != results["baseline"]:
            cells = [
                difference_text(summary[m["name"]]["difference"], m["decimals"]) for m in measures
            ]
            rows.append([variant["title"], *cells])
    return table_text(["variant", *(m["title"] for m in measures)], rows)


def _order(results: dict, name: str, order: dict) -> str:
    """Return the section on one order: a row for each measure."""
    titles = {variant["name"]: variant["title"] for variant in results["variants"]}
    rows, pairs = [], []
    for measure in results["measures"]:
        if measure["name"] not in order:
            continue
        found = order[measure["name"]]
        pairs = [f"{titles[p['first']]} less {titles[p['second']]}" for p in found["pairs"]]
        cells = [_pair(pair, measure["decimals"]) for pair in found["pairs"]]
        ranked = _ranked(found["highest_first"], results["summary"], measure["name"], titles)
        rows.append([measure["title"], BETTER.get(measure["better"], "neither"), ranked, *cells])
    text = (
        f"## Order of {name}\n\nMeans from the highest down, and paired differences with 95 % "
        "intervals, bold where they leave out 0. After each, the videos that the first and the "
        "second win (where neither direction is better: in which it is higher); the rest are "
        "equal.\n\n"
    )
    return text + table_text(["measure", "", "means", *pairs], rows)


def _ranked(names: list[str], summary: dict, measure: str, titles: dict) -> str:
    means = [summary[name][measure]["mean"] for name in names]
    text = titles[names[0]]
    for name, mean, higher in zip(names[1:], means[1:], means, strict=False):
        text += f" {'=' if mean == higher else '>'} {titles[name]}"
    return text


def _pair(pair: dict, decimals: int) -> str:
    wins = f"{pair['won_by_first']}:{pair['won_by_second']} of {pair['videos']}"
    return f"{difference_text(pair, decimals)}, {wins}"


def _variants(variants: list[dict]) -> str:
    """Return what each variant is; evaluations are a list, in case videos differ."""
    rows = [
        [v["title"], v["meaning"], ", ".join(str(count) for count in v["evaluations"])]
        for v in variants
    ]
    return table_text(["variant", "settings", "UNet evaluations"], rows)


def _definitions(measures: list[dict]) -> str:
    rows = []
    for m in measures:
        kind = "stand-in: " if m["group"] == "stand-in" else ""
        rows.append([m["title"], BETTER.get(m["better"], "neither"), kind + m["definition"]])
    return table_text(["measure", "", "definition"], rows)


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


def _with_interval(entry: dict, decimals: int) -> str:
    text = _number(entry["mean"], decimals)
    if entry["low"] is None:
        return text
    return f"{text} [{_number(entry['low'], decimals)}, {_number(entry['high'], decimals)}]"


def leaves_out_zero(entry: dict, decimals: int) -> bool:
    """Whether there is an interval and 0 is not in it, as printed: less is rounding."""
    if entry["low"] is None:
        return False
    return round(entry["low"], decimals) > 0 or round(entry["high"], decimals) < 0


def difference_text(entry: dict, decimals: int) -> str:
    """Return a difference with its interval, bold where that leaves out 0."""
    text = f"{entry['mean']:+.{decimals}f}"
    if entry["low"] is not None:
        text += f" [{entry['low']:+.{decimals}f}, {entry['high']:+.{decimals}f}]"
    return f"**{text}**" if leaves_out_zero(entry, decimals) else text


def table_text(head: list[str], rows: list[list[str]]) -> str:
    """Return a markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(results: dict, path: Path) -> None:
    """Draw a panel for each measure: the variants' differences (or distances) and intervals."""
    from matplotlib.figure import Figure

    variants = [v for v in results["variants"] if v["name"] != results["baseline"]]
    columns = 4
    rows = math.ceil(len(results["measures"]) / columns)
    figure = Figure(figsize=(4 * columns, (1 + 0.22 * len(variants)) * rows), dpi=100)
    panels = figure.subplots(rows, columns, sharey=True).flatten()
    for panel, measure in zip(panels, results["measures"], strict=False):
        _panel(panel, measure, variants, results["summary"])
    for panel in panels[len(results["measures"]) :]:
        panel.axis("off")
    sampling = results["sampling"]
    figure.suptitle(
        f"Tiny SVD, {sampling['frames']} first frames x {sampling['seeds']} seeds: mean and 95 % "
        "interval. A filled dot: the difference's interval leaves out 0."
    )
    figure.tight_layout()
    figure.savefig(path)


def _panel(panel, measure: dict, variants: list[dict], summary: dict) -> None:
    is_distance = measure["group"] == "baseline"
    for place, variant in enumerate(variants):
        entry = summary[variant["name"]][measure["name"]]
        entry = entry if is_distance else entry["difference"]
        if entry["low"] is not None:
            panel.plot([entry["low"], entry["high"]], [place, place], color="#2a6f97", zorder=1)
        is_filled = is_distance or leaves_out_zero(entry, measure["decimals"])
        fill = "#2a6f97" if is_filled else "white"
        panel.plot(entry["mean"], place, "o", color="#2a6f97", markerfacecolor=fill)
    if not is_distance:
        panel.axvline(0, color="0.6", linewidth=1, zorder=0)
    kind = "" if is_distance else "less baseline, "
    panel.set_title(measure["title"], fontsize=10)
    panel.set_xlabel(kind + BETTER.get(measure["better"], "neither better"), fontsize=8)
    panel.set_yticks(range(len(variants)), [variant["title"] for variant in variants], fontsize=8)
    panel.set_ylim(len(variants) - 0.5, -0.5)
    panel.tick_params(axis="x", labelsize=8)
    panel.locator_params(axis="x", nbins=5)


def write_sheet(path: Path, videos: list, titles: list[str]) -> None:
    """Write a JPEG, a row of evenly chosen frames for each video (T, H, W, 3), below the limit."""
    from videos import contact_sheet

    enlarged = [video.repeat(SHEET_SCALE, 1).repeat(SHEET_SCALE, 2) for video in videos]
    sheet = contact_sheet(enlarged, titles)
    for quality in range(90, 0, -10):
        content = io.BytesIO()
        sheet.save(content, "JPEG", quality=quality)
        if content.tell() <= SHEET_LIMIT:
            break
    path.write_bytes(content.getvalue())


def write_report(results: dict, folder: Path) -> None:
    """Write quality.md and quality.png beside each other."""
    (folder / "quality.md").write_text(markdown(results), encoding="utf-8")
    plot(results, folder / "quality.png")


def main() -> None:
    """Make table and plot again."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write_report(json.loads((folder / "quality.json").read_text(encoding="utf-8")), folder)


if __name__ == "__main__":
    main()
