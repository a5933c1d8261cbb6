"""Two videos side by side, their labels, and the plot: what is drawn, and where."""

import math
import warnings

import pytest
import torch
from vcut.plots.captions import captions, clean
from vcut.plots.video_pictures import BACKGROUND, GAP, SideBySide, plot

GREY = BACKGROUND


def _side_by_side(labels, *frames: torch.Tensor) -> SideBySide:
    height, width, _channels = frames[0].shape
    result = SideBySide("VCUT Test", labels, 1, height, width)
    result.write(0, *frames)
    return result


def _frame(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def _ink(picture: torch.Tensor) -> torch.Tensor:
    """Return which pixels (H, W) are not background."""
    return (picture - GREY).abs().amax(dim=-1) > 0.05


@pytest.mark.parametrize(("height", "width"), [(300, 400), (301, 401), (256, 256)])
def test_large_videos_stand_pixel_by_pixel_beside_each_other(height, width):
    a, b = _frame(height, width, 1), _frame(height, width, 2)
    drawn = _side_by_side(("a", "b"), a, b)
    picture, top, right = drawn.pictures[0], drawn.top, width + width % 2 + GAP
    assert torch.equal(picture[top : top + height, :width], a)
    assert torch.equal(picture[top : top + height, right : right + width], b)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0  # as video codecs ask
    assert top > 0 and not _ink(picture[top:, width:right]).any()


@pytest.mark.parametrize("side", [1, 3, 64, 127])
def test_small_video_is_enlarged_by_a_whole_factor(side):
    a, b = _frame(side, side, 1), _frame(side, side, 2)
    drawn = _side_by_side(("", ""), a, b)
    factor = 256 // side
    large = a.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    left = (256 - side * factor) // 2
    size = side * factor
    assert torch.equal(drawn.pictures[0, :size, left : left + size], large)


def test_no_line_of_text_is_drawn_when_both_labels_are_empty():
    assert _side_by_side(("", ""), _frame(64, 64, 1), _frame(64, 64, 2)).pictures.shape[1] == 256


def test_each_label_stands_centred_above_its_video():
    drawn = _side_by_side(("without VCUT", ""), _frame(64, 64, 1), _frame(64, 64, 2))
    columns = _ink(drawn.pictures[0, : drawn.top]).any(dim=0).nonzero().flatten()
    assert columns.min() > 0 and columns.max() < 256
    assert abs((columns.min() + columns.max()).item() / 2 - 128) < 4
    assert columns.max() - columns.min() > 80  # wide enough to be read


@pytest.mark.filterwarnings("ignore:Glyph")  # where no font with Chinese is installed
@pytest.mark.parametrize(
    "text",
    [
        "VCUT " * 100,
        "x" * 1000,
        "W" * 40,
        "\u4f60\u597d" * 60,
        "cut $5_{ and \\frac $ \u00e9\u00df \U0001f600",
    ],
    ids=["words", "one word", "wide", "Chinese", "signs"],
)
@pytest.mark.parametrize("width", [256, 1024])
def test_no_text_is_cut_off(text, width):
    size = max(16, width // 32)
    centres = (width // 2, 3 * width // 2)
    row = captions("VCUT Test", (text, ""), centres, width - size, size, 2 * width, GREY)
    ink = _ink(row)
    assert ink.any()
    border = torch.cat([ink[0], ink[-1], ink[:, 0], ink[:, width]])
    assert not border.any()
    assert not ink[:, width:].any()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_character_that_no_font_has_is_drawn_as_a_box(monkeypatch):
    monkeypatch.setattr("vcut.plots.captions.FALLBACK_FONTS", ())
    assert _ink(captions("VCUT Test", ("\u4f60\u597d",), (128,), 240, 16, 256, GREY)).any()


def test_long_label_ends_in_dots_after_three_lines():
    few = captions("VCUT Test", ("word " * 200,), (128,), 240, 16, 256, GREY)
    more = captions("VCUT Test", ("word " * 900,), (128,), 240, 16, 256, GREY)
    one = captions("VCUT Test", ("word",), (128,), 240, 16, 256, GREY)
    assert torch.equal(few, more)
    assert len(one) < len(few) < 3 * len(one)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\r\n and\ttab ", "two lines and tab"),
        ("null\x00 bell\x07 half\ud800", "null bell half"),
        ("\n \t", ""),
        ("\u4f60\u597d \u00e9", "\u4f60\u597d \u00e9"),
    ],
)
def test_label_is_one_line_without_what_cannot_be_drawn(text, expected):
    assert clean(text) == expected


def _coloured(picture: torch.Tensor, red: int, green: int, blue: int) -> int:
    colour = torch.tensor([red, green, blue]) / 255
    return int(((picture - colour).abs().amax(dim=-1) < 0.02).sum())


BLUE, ORANGE = (0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)


@pytest.mark.parametrize(
    "psnr_db",
    [[20.0], [math.inf], [math.inf] * 3, [20.0, math.inf, 90.0], [20.0] * 1000],
    ids=["one frame", "one equal", "all equal", "some equal", "1000 frames"],
)
def test_plot_shows_both_measures(psnr_db):
    ssim = [1.0 if value == math.inf else 0.5 for value in psnr_db]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = plot("VCUT Test", ("$\\unknown$", "_b"), psnr_db, ssim, "heading")
    assert picture.shape == (1, 600, 1000, 3)
    above, below = picture[0, :325], picture[0, 325:]
    assert _coloured(above, *BLUE) > 20 and _coloured(below, *ORANGE) > 20
    assert _coloured(above, *ORANGE) == _coloured(below, *BLUE) == 0


def _height_of_line(psnr_db: list[float]) -> int:
    picture = plot("VCUT Test", ("a", "b"), psnr_db, [0.9] * len(psnr_db), "heading")[0]
    colour = torch.tensor(BLUE) / 255
    rows = ((picture - colour).abs().amax(dim=-1) < 0.02).any(dim=1).nonzero()
    return int(rows.max() - rows.min())


def test_worse_frame_is_a_dip_in_the_plot():
    assert _height_of_line([30.0] * 4 + [10.0] + [30.0] * 4) > 150


def test_quarter_of_a_decibel_is_no_cliff_in_the_plot():
    assert _height_of_line([30.0] * 4 + [29.75] + [30.0] * 4) < 20
