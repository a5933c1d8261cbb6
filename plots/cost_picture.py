"""The picture of VCUT Cost Report: what a run costs and where it goes. Draws given numbers only.

A preview on a node is 200 to 400 pixels wide, a quarter to a half of this picture. The headline is
large enough for the one, the smallest text for the other.
"""

import math
from collections.abc import Mapping, Sequence

from .figures import DOTS_PER_INCH, blank_picture, missing_matplotlib, new_figure, picture_of

SIZE = 800  # pixels, both ways
MARGIN = 24
WITHOUT = "#8a929c"
WITH = "#0b5fa5"
TEXT = "#1c1c1c"
QUIET_TEXT = "#505860"
HEADLINE = 52  # pixels of a font
SUBLINE = 34
SMALLEST = 25
ROWS_TOP = 280
ROW = 80
BAR = 15
MAX_PARTS = 5  # rows below the whole run; the last is everything else


def draw_costs(
    display_name: str,
    title: str,
    headline: Sequence[str],
    without: Mapping[str, float],
    with_settings: Mapping[str, float],
    unit: str,
):
    """Return an IMAGE (1, H, W, 3): the headline, the whole run and its parts, on one scale.

    headline: a large line and up to two others. without, with_settings: component -> cost in
    ``unit``. Blank without matplotlib.
    """
    if missing_matplotlib():
        return blank_picture(SIZE, SIZE)
    figure = new_figure(display_name, SIZE, SIZE)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, SIZE), ylim=(SIZE, 0))  # in pixels, down
    axes.axis("off")
    _text(axes, 46, title, SMALLEST, QUIET_TEXT)
    _text(axes, 106, headline[0], HEADLINE, TEXT, fontweight="bold")
    for y, line in zip((156, 202), headline[1:], strict=False):
        _text(axes, y, line, SUBLINE, TEXT)
    _legend(axes, unit)
    rows = _rows(without, with_settings)
    longest = max(rows[0][1:])
    decimals = max(0, 3 - max(1, math.ceil(math.log10(longest))))  # three figures of the longest
    for number, (name, *costs) in enumerate(rows):
        y = ROWS_TOP + number * ROW
        texts = list(dict.fromkeys(f"{cost:,.{decimals}f}" for cost in costs))
        _text(axes, y + 26, name, SMALLEST, TEXT, fontweight="normal" if number else "bold")
        _text(axes, y + 26, " \u2192 ".join(texts), SMALLEST, TEXT, x=SIZE - MARGIN, ha="right")
        for place, (cost, color) in enumerate(zip(costs, (WITHOUT, WITH), strict=True)):
            width = cost / longest * (SIZE - 2 * MARGIN)
            axes.barh(y + 36 + place * BAR, width, BAR, left=MARGIN, color=color, align="edge")
    _text(axes, SIZE - 18, "multiply-adds of the UNet, not seconds", SMALLEST, QUIET_TEXT)
    return picture_of(figure)


def _rows(
    without: Mapping[str, float], with_settings: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """Return (name, cost without, cost with the settings) of the whole and of its largest parts."""
    kinds: dict[str, tuple[float, float]] = {}
    for name, cost in with_settings.items():
        before, after = kinds.get(_kind(name), (0.0, 0.0))
        kinds[_kind(name)] = before + without.get(name, 0.0), after + cost
    parts = [(kind, *costs) for kind, costs in kinds.items()]
    parts.sort(key=lambda part: -max(part[1:]))
    shown, others = parts[: MAX_PARTS - 1], parts[MAX_PARTS - 1 :]
    return [_sum("the whole run", parts), *shown, _sum("everything else", others)]


def _sum(name: str, parts: list[tuple[str, float, float]]) -> tuple[str, float, float]:
    return name, sum(part[1] for part in parts), sum(part[2] for part in parts)


def _kind(component: str) -> str:
    """Return "convolution" of "spatial convolution", "attention" of "attention, linear"."""
    return component.partition(",")[0].removeprefix("spatial ").removeprefix("temporal ")


def _legend(axes, unit: str) -> None:
    for x, color, label in ((MARGIN, WITHOUT, "without VCUT"), (270, WITH, "this model")):
        axes.barh(238, BAR, BAR, left=x, color=color, align="edge")
        _text(axes, 254, label, SMALLEST, TEXT, x=x + 24)
    _text(axes, 254, unit, SMALLEST, TEXT, x=SIZE - MARGIN, ha="right")


def _text(axes, y: float, text: str, pixels: int, color: str, x: float = MARGIN, **style) -> None:
    """Write ``text`` with its base line at ``y``."""
    axes.text(x, y, text, size=pixels * 72 / DOTS_PER_INCH, color=color, **style)
