"""The speed benchmark's table and plot, made from its JSON alone."""

import json
from pathlib import Path
from statistics import median

COLOURS = {"baseline": "#444444", "vcut": "#1f77b4", "other": "#d1702a", "both": "#2e8b57"}
SMALLEST_DIFFERENCE = 1e-7  # equal latents have none, and no place on a logarithmic axis
CACHE_BOUND_BYTES = 1_000_000
CPU_TIME = "By CPU time: the same of this process's CPU seconds, which other programs disturb less."


def read(file: Path) -> dict:
    """Return the results in ``file``. Raises ValueError when it holds something else."""
    results = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or "variants" not in results:
        raise ValueError(f"expected results of benchmarks/speed.py, got {file.name}")
    return results


def write_report(file: Path) -> list[Path]:
    """Write the table (.md) and the plot (.png) beside the results in ``file``; return both."""
    results = read(file)
    table, plot = file.with_suffix(".md"), file.with_suffix(".png")
    table.write_text(report_text(results), encoding="utf-8")
    write_plot(results, plot)
    return [table, plot]


def report_text(results: dict) -> str:
    """Return the markdown of one benchmark: what was run, the table, what to know of it."""
    lines = [
        "# Speed, side by side",
        "",
        *_circumstances(results),
        "",
        *table_lines(results),
        "",
        *_remarks(results),
    ]
    return "\n".join(lines) + "\n"


def table_lines(results: dict) -> list[str]:
    """Return the rows of the markdown table, numbered as in the plot."""
    is_gpu = results["device"]["type"] == "cuda"
    has_cpu = not is_gpu and any(row["cpu_ratios"] for row in _measured(results))
    heads = ["", "variant", "steps", "UNet evaluations", "seconds", "faster than the baseline"]
    heads += ["by CPU time"] if has_cpu else []
    heads += ["difference", "largest", "peak memory", "VCUT's cache"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for number, row in enumerate(results["variants"], 1):
        if row["error"] or not row["seconds"]:
            rest = [f"gave up: {row['error']}" if row["error"] else "not run"]
            cells = [str(number), row["name"], *rest, *[""] * (len(heads) - 3)]
        else:
            cells = [
                str(number),
                row["name"],
                str(row["steps"]),
                str(row["evaluations"]),
                f"{median(row['seconds']):.2f}",
                _spread(row["ratios"]),
                *([_spread(row["cpu_ratios"])] if has_cpu else []),
                _number(row["relative_difference"]),
                _number(row["largest_difference"]),
                _megabytes(row["peak_bytes"] if is_gpu else row["live_bytes"]),
                f"{row['cache_bytes'] / 1e6:.3f} MB" if row["cache_bytes"] else "",
            ]
        lines.append(_row(cells))
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(ratios: list[float]) -> str:
    """Return the median of the ratios of pairs, and the least and greatest of several."""
    if len(ratios) < 2:
        return "".join(f"{ratio:.3f}" for ratio in ratios)
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _number(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count else ""


def _measured(results: dict) -> list[dict]:
    return [row for row in results["variants"] if row["seconds"] and not row["error"]]


def _circumstances(results: dict) -> list[str]:
    settings, versions = results["settings"], results["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"`{results['command']}`",
        "",
        f"{results['date']}; {results['device']['name']}"
        + (f", {results['device']['threads']} threads" if results["device"]["threads"] else "")
        + f"; {named}.",
        "",
        f"{settings['model']} with {results['weights']} weights in {settings['dtype']}, "
        f"{settings['width']}x{settings['height']}, {settings['frames']} frames, "
        f"{settings['steps']} steps, cfg {settings['cfg']}, {settings['sampler']}, "
        f"{settings['scheduler']}, VideoLinearCFGGuidance 1.0; {results['rounds_done']} rounds of "
        f"all variants, beginning with another one each time.",
    ]


def _remarks(results: dict) -> list[str]:
    rows = _measured(results)
    steps = results["settings"]["steps"]
    is_gpu = results["device"]["type"] == "cuda"
    memory = (
        "Peak memory: torch.cuda.max_memory_allocated, weights too."
        if is_gpu
        else "Peak memory: the tensors alive at once beside the weights, counted operator by "
        "operator in a run of 2 steps that is not timed; what kernels take for themselves is not "
        "in it."
    )
    lines = [
        "Seconds: median from the first UNet evaluation to the finished latent. Faster: baseline "
        "of the same round / variant, median (least to greatest). Difference: of the latent from "
        "the baseline's, norm relative to its norm, and the largest of one value.",
        *([] if is_gpu else [CPU_TIME]),
        memory,
        *_bounds(rows, is_gpu),
        "Every latent is finite."
        if all(row["is_finite"] for row in rows)
        else "NOT FINITE: " + ", ".join(r["name"] for r in rows if not r["is_finite"]) + ".",
    ]
    if steps != 25:
        lines.append(
            f"c counts in 25 steps; in {steps} steps the cut, and the 10 steps of Align Your "
            "Steps, fall in proportion, rounded to whole steps."
        )
    if results["weights"] == "random":
        lines.append(
            "The weights are random: time and memory do not depend on them. The difference then "
            "says whether a variant computes the same, and nothing about quality; a step cache "
            "decides by what the model returns and may skip more or less with SVD's own weights."
        )
    for name, missing in results.get("left_out", {}).items():
        lines.append(f"Left out: {name}; this ComfyUI has no {', '.join(missing)}.")
    return [f"- {line}" for line in lines]


def _bounds(rows: list[dict], is_gpu: bool) -> list[str]:
    """Return what the run says about the two bounds on memory."""
    vcut = [row for row in rows if row["kind"] == "vcut"]
    baseline = next((row for row in rows if row["kind"] == "baseline"), None)
    if not vcut or baseline is None:
        return []
    name = "peak_bytes" if is_gpu else "live_bytes"
    largest = max(row["cache_bytes"] for row in vcut)
    is_small = "below" if largest < CACHE_BOUND_BYTES else "NOT below"
    lines = [f"VCUT's cache at its largest: {largest / 1e6:.3f} MB, {is_small} 1 MB."]
    if baseline[name]:
        above = [row for row in vcut if row[name] > baseline[name]]
        worst = max(vcut, key=lambda row: row[name])
        share = worst[name] / baseline[name]
        verdict = (
            f"above the baseline's for {len(above)}" if above else "never above the baseline's"
        )
        lines.append(f"Peak memory with VCUT alone: {verdict}; at most {share:.2%} of it.")
    return lines


def write_plot(results: dict, file: Path) -> None:
    """Draw seconds against the difference from the baseline, points numbered as in the table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, row in enumerate(results["variants"], 1):
        if not row["seconds"] or row["error"]:
            continue
        x, y = median(row["seconds"]), max(row["relative_difference"], SMALLEST_DIFFERENCE)
        label = f"{number}  {row['name']}: {median(row['ratios']):.2f}"
        axes.plot(x, y, "o", color=COLOURS[row["kind"]], markersize=13, alpha=0.85, label=label)
        axes.annotate(
            str(number), (x, y), color="white", size=7, weight="bold", ha="center", va="center"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=SMALLEST_DIFFERENCE / 2)
    axes.set_xlim(0, 1.06 * axes.get_xlim()[1])
    axes.set_xlabel("seconds of sampling, median")
    axes.set_ylabel("difference of the latent from the baseline's\n(lowest line: none)")
    axes.set_title(_title(results), size=10)
    axes.grid(alpha=0.3)
    title = "baseline seconds / seconds"
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title=title)
    figure.savefig(file)


def _title(results: dict) -> str:
    settings = results["settings"]
    return (
        f"{settings['model']}, {results['weights']} weights, {settings['width']}x"
        f"{settings['height']}, {settings['frames']} frames, {settings['steps']} steps, "
        f"{settings['dtype']}, {results['device']['name']}"
    )
