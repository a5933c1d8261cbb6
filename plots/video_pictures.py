"""Draws two videos side by side, and how they compare frame by frame."""

import math

import torch
from torch.nn.functional import interpolate

from .captions import captions, font_families
from .figures import blank_picture, missing_matplotlib, new_figure, picture_of

BACKGROUND = 0.13  # grey, 0..1
GAP = 8  # pixels between the videos
# Workflows show both pictures 620 pixels wide, and no text there may be below 12.
SMALL_TEXT = 25  # pixels of a video's width to one of its label's size
TEXT = 15  # points, of the plot's smallest text
SMALLEST = 256  # pixels: a smaller video is shown enlarged by a whole factor
SLIDER_SIDE = 512  # pixels: a larger video is made smaller for the page's slider
MARKED_FRAMES = 60  # up to here every frame of the plot has a dot
LEAST_PSNR_SPAN = 10  # dB that the axis covers at least
LEAST_SSIM_SPAN = 0.05  # the same for SSIM, below 1
BLUE = "#1f77b4"
ORANGE = "#d95f02"


class SideBySide:
    """Two videos beside each other under their labels, written frame by frame.

    pictures: (T, H', W', 3) in 0..1, both sides even, as video codecs ask. Without matplotlib there
        are no labels.
    """

    def __init__(self, display_name, labels, num_frames: int, height: int, width: int) -> None:
        self.factor = max(1, SMALLEST // max(height, width))
        self.height, self.width = height * self.factor, width * self.factor
        panel = max(self.width, SMALLEST)  # a narrow video still has a label
        panel += panel % 2
        centres = (panel // 2, panel + GAP + panel // 2)
        self.lefts = [centre - (self.width + 1) // 2 for centre in centres]
        row = None
        if any(labels) and not missing_matplotlib():
            size = max(16, panel // SMALL_TEXT)
            row = captions(
                display_name, labels, centres, panel - size, size, 2 * panel + GAP, BACKGROUND
            )
        self.top = 0 if row is None else len(row)
        rows = self.top + self.height + self.height % 2
        self.pictures = torch.full((num_frames, rows, 2 * panel + GAP, 3), BACKGROUND)
        if row is not None:
            self.pictures[:, : self.top] = row

    def write(self, index: int, *frames: torch.Tensor) -> None:
        """Put a pair of frames (H, W, 3) in place."""
        for left, frame in zip(self.lefts, frames, strict=True):
            rows = slice(self.top, self.top + self.height)
            target = self.pictures[index, rows, left : left + self.width]
            cells = target.unflatten(0, (-1, self.factor)).unflatten(2, (-1, self.factor))
            cells.copy_(frame[:, None, :, None])  # (H, factor, W, factor, 3)

    def edge_to_edge(self, index: int) -> torch.Tensor:
        """Return a pair of frames without gap or labels, (H, 2 W, 3) in uint8."""
        rows = slice(self.top, self.top + self.height)
        pair = [self.pictures[index, rows, left : left + self.width] for left in self.lefts]
        frames = torch.stack(pair).permute(0, 3, 1, 2)  # (2, 3, H, W)
        scale = SLIDER_SIDE / max(self.height, self.width)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in (self.height, self.width)]
            frames = interpolate(frames, size, mode="area")
        return torch.cat([*frames], dim=2).mul(255).round().byte().permute(1, 2, 0).contiguous()


def plot(display_name: str, labels, psnr_db: list[float], ssim: list[float], heading: str):
    """Return PSNR and SSIM over the frames as IMAGE (1, 600, 1000, 3).

    heading: the result in one line. Frames of inf dB are marked at the upper edge. Blank without
    matplotlib.
    """
    if missing_matplotlib():
        return blank_picture(1000, 600)
    figure = new_figure(display_name, 1000, 600)
    names = [label if len(label) <= 24 else f"{label[:21]}..." for label in labels]
    title = f"{names[0]} and {names[1]}, frame by frame" if all(names) else "frame by frame"
    style = {"ha": "center", "family": font_families(), "parse_math": False}
    figure.text(0.5, 0.94, title, size=18, **style)
    figure.text(0.5, 0.885, heading, size=TEXT, color="#555555", **style)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw(above, psnr_db, "PSNR (dB)", BLUE)
    _draw(below, ssim, "SSIM", ORANGE)
    above.set_ylim(*_psnr_limits(psnr_db))
    span = max(LEAST_SSIM_SPAN, 1.1 * (1 - min(ssim)))
    below.set_ylim(1 - span, 1 + 0.05 * span)
    below.set_xlim(0.5, len(ssim) + 0.5)
    below.set_xlabel("frame", size=TEXT)
    below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.subplots_adjust(left=0.12, right=0.97, top=0.8, bottom=0.12, hspace=0.12)
    figure.align_ylabels()
    return picture_of(figure)


def _draw(axes, values: list[float], name: str, colour: str) -> None:
    numbers = range(1, len(values) + 1)
    finite = [value if value < math.inf else math.nan for value in values]
    marker = "o" if len(values) <= MARKED_FRAMES else None
    axes.plot(numbers, finite, color=colour, marker=marker, linewidth=2)
    identical = [number for number, value in zip(numbers, values, strict=True) if value == math.inf]
    if identical:
        edge = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 3}
        axes.plot(identical, [1] * len(identical), "^", color=colour, label="identical", **edge)
        style = {"frameon": False, "borderpad": 0, "fontsize": TEXT}
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), **style)
    if len(identical) == len(values):
        axes.set_yticks([])
    axes.ticklabel_format(useOffset=False)
    axes.set_ylabel(name, size=TEXT)
    axes.tick_params(labelsize=TEXT)
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)


def _psnr_limits(values: list[float]) -> tuple[float, float]:
    """Return the axis for PSNR: a quarter of a decibel must not look like a cliff."""
    finite = [value for value in values if value < math.inf] or [0.0]
    low, high = min(finite), max(finite)
    margin = max(0.08 * (high - low), (LEAST_PSNR_SPAN - (high - low)) / 2)
    return low - margin, high + margin
