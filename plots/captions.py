"""Words as pictures: wrapped to a width, in whatever script they are written."""

import textwrap

from .figures import DOTS_PER_INCH, new_figure, picture_of

MAX_LINES = 3  # of one caption; what does not fit ends in "..."
# matplotlib's own font has no Chinese, Japanese or Korean; one of these does, on most machines.
FALLBACK_FONTS = (
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",  # Windows
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS",  # macOS
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei",  # Linux
    "Droid Sans Fallback",
)  # fmt: skip


def clean(text: str) -> str:
    """Return ``text`` on one line and without what cannot be drawn, such as control characters."""
    drawable = (c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return " ".join("".join(drawable).split())


def font_families() -> list[str]:
    """Return the fonts to draw with, each for the characters that those before it lack."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


def captions(display_name: str, texts, centres, width: int, font_px: int, picture_width: int, grey):
    """Return texts in a row as one picture (H, picture_width, 3) in 0..1, H even.

    texts: as ``clean`` makes them. centres: of each, in pixels from the left; width: of each, at
    most. grey: the background, 0..1. display_name: the node that asks, for the error.
    """
    style = {
        "family": font_families(), "size": font_px * 72 / DOTS_PER_INCH, "color": "white",
        "ha": "center", "va": "center", "linespacing": 1.3, "parse_math": False,
    }  # fmt: skip
    wrapped = [_wrap(display_name, text, width, style) for text in texts]
    height = round(max(height for _text, height in wrapped) + font_px)
    figure = new_figure(display_name, picture_width, height + height % 2)
    figure.patch.set_facecolor((grey, grey, grey))
    for centre, (text, _height) in zip(centres, wrapped, strict=True):
        figure.text(centre / picture_width, 0.5, text, **style)
    return picture_of(figure)[0]


def _wrap(display_name: str, text: str, width: int, style: dict) -> tuple[str, float]:
    """Return ``text`` in lines of at most ``width`` pixels, and their height in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = new_figure(display_name, 1, 1)
    renderer = FigureCanvasAgg(figure).get_renderer()
    characters = max(4, min(len(text), width))
    while True:
        lines = textwrap.wrap(text, characters, max_lines=MAX_LINES, placeholder="...")
        artist = figure.text(0, 0, "\n".join(lines), **style)
        extent = artist.get_window_extent(renderer)
        if extent.width <= width or characters == 4:
            return "\n".join(lines), extent.height
        artist.remove()
        characters = max(4, min(characters - 1, int(characters * width / extent.width)))
