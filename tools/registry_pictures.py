"""Draws the icon and the banner that the Comfy registry shows.

Run in the private ComfyUI's environment: .venv/bin/python tools/registry_pictures.py
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "registry"
GROUND, COMPUTED, PREDICTED, TEXT = "#0f1b2d", "#35d07f", "#1f6b57", "#f4f7fb"


def main() -> None:
    """Write both pictures."""
    FOLDER.mkdir(exist_ok=True)
    icon()
    banner()


def icon() -> None:
    """A play sign that leaves traces: 400x400 pixels."""
    figure, axes = _canvas(400, 400)
    axes.add_patch(FancyBboxPatch((8, 8), 384, 384, "round,pad=0,rounding_size=72", color=GROUND))
    for left, color in ((58, PREDICTED), (102, PREDICTED), (146, COMPUTED)):
        _play(axes, left, 200, 216, color)
    figure.savefig(FOLDER / "icon.png", transparent=True)


def banner() -> None:
    """The name beside a row of steps, half of them computed: 1260x540 pixels."""
    figure, axes = _canvas(1260, 540)
    axes.add_patch(FancyBboxPatch((0, 0), 1260, 540, "square,pad=0", color=GROUND))
    bold = {"color": TEXT, "weight": "bold", "va": "baseline"}
    axes.text(80, 190, "VCUT", size=108, **bold)
    axes.text(84, 262, "Stable Video Diffusion: faster, lighter, longer", size=34, **bold)
    axes.text(
        84, 318, "ComfyUI nodes. No training. Every run shows what it saved.", size=26, color=TEXT
    )
    for step in range(14):
        _play(axes, 84 + step * 78, 430, 84, COMPUTED if step % 2 == 0 else PREDICTED)
    figure.savefig(FOLDER / "banner.png")


def _canvas(width: int, height: int):
    """Return a figure of so many pixels and its axes in pixels, downwards."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _play(axes, left: float, middle: float, height: float, color: str) -> None:
    """Draw a play sign with a seam in the ground's colour."""
    half = height / 2
    corners = [(left, middle - half), (left + 0.87 * height, middle), (left, middle + half)]
    axes.add_patch(Polygon(corners, facecolor=color, edgecolor=GROUND, linewidth=0.06 * height))


if __name__ == "__main__":
    main()
