"""The picture of VCUT Cost Report: read back from its pixels."""

import pytest
import torch
from vcut.plots.cost_picture import (
    HEADLINE,
    QUIET_TEXT,
    SIZE,
    SMALLEST,
    SUBLINE,
    TEXT,
    WITH,
    WITHOUT,
    draw_costs,
)  # fmt: skip
from vcut.vcut_core.cost_report import NOTHING_SAVED, SLICER_IS_OFF, SLICES_SAVE_NOTHING

LARGE_PREVIEW, SMALL_PREVIEW = 400, 209  # pixels: a preview made larger, and one left as it comes
COSTS = {
    "feed-forward": 400.0,
    "spatial convolution": 200.0,
    "temporal convolution": 100.0,
    "self-attention, linear": 150.0,
    "cross-attention, linear": 90.0,
    "projections": 50.0,
    "embeddings": 10.0,
}
HALF = {name: cost / 2 for name, cost in COSTS.items()}


def _draw(with_settings=HALF, headline=("50 % less to compute",)):
    title = "16384x16384, 4096 frames, 10000 steps"
    picture = draw_costs("VCUT Test", title, headline, COSTS, with_settings, "TMACs")
    assert picture.shape == (1, SIZE, SIZE, 3)
    return picture[0]


def _channels(color: str) -> torch.Tensor:
    return torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _bars(picture, color: str) -> list[int]:
    """Return the lengths in pixels of the bars of a colour, from the top; the legend left out."""
    lengths = ((picture - _channels(color)).abs().amax(-1) < 0.01).sum(1)[260:].tolist()
    found, last = [], 0
    for length in lengths:
        if length > 5 and last <= 5:
            found.append(length)
        last = length
    return found


def test_all_bars_are_on_one_scale():
    # The whole is 1000; convolution is 300 in sum, attention 150 and 90, the rest 60.
    expected = [1000, 400, 300, 150, 90, 60]
    without, with_settings = _bars(_draw(), WITHOUT), _bars(_draw(), WITH)
    assert without[0] == pytest.approx(SIZE - 48, abs=2)
    pixels = without[0] / 1000
    assert without == pytest.approx([cost * pixels for cost in expected], abs=2)
    assert with_settings == pytest.approx([cost * pixels / 2 for cost in expected], abs=2)


def test_component_that_only_the_settings_have_is_counted():
    picture = _draw(HALF | {"affine maps, once a run": 500.0})
    assert _bars(picture, WITH)[0] == _bars(picture, WITHOUT)[0]  # 500 + 500


@pytest.mark.parametrize(
    "headline",
    [
        (NOTHING_SAVED, SLICER_IS_OFF),
        (NOTHING_SAVED, SLICES_SAVE_NOTHING),
        ("100 % smaller activations", "activations 999.9 instead of 9999.9 GB", "nothing less"),
        ("0.0012 % less to compute", "10000 of 20000 evaluations"),
    ],
)
def test_no_text_is_cut_off_at_the_right(headline):
    assert (_draw(headline=headline)[:, -5:] == 1).all()


def test_text_is_large_enough_where_the_page_shows_it():
    assert SMALLEST * LARGE_PREVIEW / SIZE >= 12
    assert HEADLINE * SMALL_PREVIEW / SIZE >= 12 and SUBLINE > SMALLEST


@pytest.mark.parametrize("color", [TEXT, QUIET_TEXT, WITH])
def test_contrast_with_the_white_ground_is_enough(color):
    # WCAG 2: (1 + 0.05) over the relative luminance of the colour, and 0.05.
    linear = ((_channels(color) + 0.055) / 1.055) ** 2.4
    luminance = float(linear @ torch.tensor([0.2126, 0.7152, 0.0722]))
    assert 1.05 / (luminance + 0.05) >= 4.5
