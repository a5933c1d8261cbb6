"""Makes the table and the plot of the step cache's part of the quality benchmark.

python3 benchmarks/step_cache_report.py [FOLDER]    both again, from quality_step_cache.json alone
"""

import json
import sys
from pathlib import Path

from quality_report import difference_text, heading, table_text
from step_cache_variants import stress

RESULTS = Path(__file__).resolve().parent / "results"
FILE = "quality_step_cache"
# On the contact sheets, and with a name in the plot.
SHOWN = ("baseline", "careful", "balanced", "fast", "ays_12", "cut_17", "cut_17_balanced")
COLORS = {"vcut": "#1769aa", "rival": "#b5533c", "baseline": "#6b7280"}


def markdown(results: dict) -> str:
    """Return the whole report as markdown."""
    rows = {row["name"]: row for row in results["rows"]}
    parts = [
        heading(results, "Step cache and its rivals on the tiny SVD", _videos(results)),
        "Distances are PSNR in dB to the run with every step computed, of the same first frame and "
        "seed, mean and 95 % interval, before rounding to 8 bits: higher is nearer. A variant with "
        "the cut is compared with the run with the cut alone, 40 steps with 40. The **stress "
        "test** has no picture and cfg 1, so that nothing but the steps holds two videos together. "
        "**Work** is in UNet evaluations, by the multiply-adds of convolutions and linear layers "
        "that were really computed.",
        "## Distance to the full run\n\n" + _distances(rows, results["two_seeds"]),
        "## Ours and a rival of the same cost, or of more\n\nBy how many dB ours lies nearer to "
        "the full run, on the videos that both have; bold where the interval leaves out 0; then "
        "the videos that ours and the rival win.\n\n" + _comparisons(results["comparisons"], rows),
        "## Distance to the truth\n\n" + _truth(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _videos(results: dict) -> str:
    sampling = results["sampling"]
    few = min(row["videos"] for row in results["rows"])
    return (
        f"{sampling['frames']} unseen first frames, {sampling['seeds']} seeds for each; of rivals "
        f"{few} first frames, one seed. {sampling['settings']}."
    )


def _distances(rows: dict, two_seeds: dict) -> str:
    lines = []
    for name, row in rows.items():
        if row["test"] == "stress" or row["kind"] == "baseline":
            continue
        stressed = rows.get(stress(name))
        lines.append([
            row["title"], row["meaning"], f"{row['work']:.1f}", _interval(row["distance"]),
            _interval(stressed["distance"]) if stressed else "", f"{row['worst']:.1f}",
            f"{row['largest_frame_error']:.2f}", str(row["videos"]),
        ])  # fmt: skip
    apart = [_interval(two_seeds.get(test)) for test in ("ordinary", "stress")]
    lines.append(["two seeds of the full run", "", "", *apart, "", "", ""])
    return table_text(
        ["variant", "settings", "work", "distance, dB", "stress test, dB", "worst video, dB",
         "largest frame error, levels", "videos"],
        lines,
    )  # fmt: skip


def _comparisons(comparisons: list[dict], rows: dict) -> str:
    by_names = {(c["first"], c["second"]): c for c in comparisons}
    lines = []
    for (first, second), ordinary in by_names.items():
        if rows[first]["test"] == "stress":
            continue
        stressed = by_names.get((stress(first), stress(second)))
        work = [f"{rows[name]['title']} ({rows[name]['work']:.1f})" for name in (first, second)]
        lines.append([*work, _won(ordinary), _won(stressed) if stressed else ""])
    return table_text(["ours (work)", "rival (work)", "distance, dB", "stress test, dB"], lines)


def _won(found: dict) -> str:
    wins = f"{found['won_by_first']}:{found['won_by_second']}"
    return f"{difference_text(found, 2)}, {wins}"


def _truth(rows: dict) -> str:
    lines = [
        [
            row["title"], f"{row['truth']['mean']:.2f}",
            "" if row["reference"] == row["name"] else difference_text(row["truth_difference"], 2),
            f"{row['direction_right']:.1f}",
        ]
        for row in rows.values()
        if row["test"] == "ordinary"
    ]  # fmt: skip
    head = ["variant", "PSNR to truth, dB", "less its full run", "direction right, %"]
    return table_text(head, lines)


def _interval(entry: dict | None) -> str:
    if entry is None:
        return ""
    if entry["low"] is None:
        return f"{entry['mean']:.1f}"
    return f"{entry['mean']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]"


def levels(decibels: float) -> float:
    """Return the error in levels of 255, root of the mean square, that a PSNR stands for."""
    return 255 * 10 ** (-decibels / 20)


def plot(results: dict, path: Path) -> None:
    """Draw work done against visible change, the ordinary test and the stress test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), dpi=100)
    panels = figure.subplots(1, 2)
    for panel, test in zip(panels, ("ordinary", "stress"), strict=True):
        rows = [
            row
            for row in results["rows"]
            if row["test"] == test and row["reference"] == BASELINES[test] != row["name"]
        ]
        _panel(panel, rows, results["two_seeds"].get(test), test)
    figure.suptitle("Tiny SVD, 25 steps: work done and how far the picture moves", fontsize=14)
    figure.tight_layout()
    figure.savefig(path)


BASELINES = {"ordinary": "baseline", "stress": stress("baseline")}
TITLES = {"ordinary": "With the picture, guided", "stress": "Stress test: no picture, cfg 1"}


def _panel(panel, rows: list[dict], two_seeds: dict | None, test: str) -> None:
    full = 50 if test == "ordinary" else 25
    for kind in ("rival", "vcut"):
        chosen = [row for row in rows if row["kind"] == kind]
        x = [100 * row["work"] / full for row in chosen]
        y = [levels(row["distance"]["mean"]) for row in chosen]
        label = "VCUT" if kind == "vcut" else "others"
        panel.scatter(x, y, s=60, color=COLORS[kind], label=label, zorder=3)
        for row, place in zip(chosen, zip(x, y, strict=True), strict=True):
            panel.annotate(
                row["title"], place, xytext=(6, 4), textcoords="offset points", fontsize=8,
                color=COLORS[kind],
            )  # fmt: skip
    if two_seeds:
        apart = levels(two_seeds["mean"])
        panel.axhline(apart, color=COLORS["baseline"], linestyle="--", linewidth=1)
        panel.text(0.01, apart, " another seed", transform=panel.get_yaxis_transform(), va="bottom",
                   fontsize=9, color=COLORS["baseline"])  # fmt: skip
    panel.set_yscale("log")
    panel.set_xlabel("work, % of the full run (less is faster)")
    panel.set_ylabel("change of the picture, levels of 255 (less is nearer)")
    panel.set_title(TITLES[test], fontsize=12)
    panel.set_xlim(36, 104)
    panel.legend(frameon=False, loc="lower right")


def write_report(results: dict, folder: Path) -> None:
    """Write quality_step_cache.md and .png beside each other."""
    (folder / f"{FILE}.md").write_text(markdown(results), encoding="utf-8")
    plot(results, folder / f"{FILE}.png")


def main() -> None:
    """Make table and plot again."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write_report(json.loads((folder / f"{FILE}.json").read_text(encoding="utf-8")), folder)


if __name__ == "__main__":
    main()
