"""The picture of VCUT Cost Report: what a run costs and where it goes. Draws given numbers only."""

import math
from collections.abc import Mapping

from .figures import blank_picture, missing_matplotlib, new_figure, picture_of

WIDTH = 1000  # pixels
HEIGHT = 760
COLORS = {"without VCUT": "#9aa3ad", "this model": "#1769aa"}
TEXT = "#222222"
SMALLEST_SHARE = 0.0005  # of the whole run; a smaller component has no bar that could be seen


def draw_costs(
    display_name: str,
    title: str,
    headline: str,
    without: Mapping[str, float],
    with_settings: Mapping[str, float],
    unit: str,
):
    """Return an IMAGE (1, H, W, 3) with both totals above and their parts below.

    without, with_settings: component -> cost in ``unit``. Blank without matplotlib.
    """
    if missing_matplotlib():
        return blank_picture(WIDTH, HEIGHT)
    figure = new_figure(display_name, WIDTH, HEIGHT)
    top, bottom = figure.subplots(2, 1, height_ratios=(2, 9))
    totals = [sum(costs.values()) for costs in (without, with_settings)]
    figure.suptitle(title, fontsize=17, fontweight="bold", color=TEXT, x=0.02, ha="left")
    _bars(top, {"The whole run": totals})
    top.set_title(headline, fontsize=13, loc="left", color=TEXT)
    top.xaxis.set_visible(False)  # the bars carry their figures
    top.spines["bottom"].set_visible(False)
    parts = {name: [without.get(name, 0.0), cost] for name, cost in with_settings.items()}
    shown = {n: p for n, p in parts.items() if max(p) >= SMALLEST_SHARE * totals[0]}
    _bars(bottom, dict(sorted(shown.items(), key=lambda item: item[1][0])))
    bottom.set_title(
        f"Where it goes (parts from {SMALLEST_SHARE:.2%})", fontsize=13, loc="left", color=TEXT
    )
    bottom.set_xlabel(f"{unit} for the run (multiply-adds; not seconds)", fontsize=12, color=TEXT)
    bottom.legend(fontsize=12, frameon=False, loc="lower right")
    figure.tight_layout()
    return picture_of(figure)


def _bars(axes, rows: Mapping[str, list[float]]) -> None:
    """Draw a pair of horizontal bars for each row, the first of the pair above, with figures."""
    longest = max(max(pair) for pair in rows.values())
    decimals = max(0, 4 - max(1, math.ceil(math.log10(longest))))  # four figures of the longest
    for number, (label, offset) in enumerate(zip(COLORS, (0.2, -0.2), strict=True)):
        values = [pair[number] for pair in rows.values()]
        places = [place + offset for place in range(len(rows))]
        bars = axes.barh(places, values, 0.38, color=COLORS[label], label=label)
        texts = [f"{value:,.{decimals}f}" for value in values]
        axes.bar_label(bars, texts, padding=4, fontsize=11, color=TEXT)
    axes.set_yticks(range(len(rows)), rows, fontsize=12, color=TEXT)
    axes.set_xlim(0, longest * 1.15)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=11, labelcolor=TEXT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
