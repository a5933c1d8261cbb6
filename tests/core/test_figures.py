import sys

import pytest
from vcut.plots.figures import new_figure, picture_of


def test_figure_becomes_a_picture_of_its_size_with_what_was_drawn():
    figure = new_figure("VCUT Test", 200, 100)
    figure.patch.set_facecolor((1.0, 0.0, 0.0))
    picture = picture_of(figure)
    assert picture.shape == (1, 100, 200, 3)
    assert picture[0, 50, 100].tolist() == [1.0, 0.0, 0.0]


def test_picture_has_the_size_that_was_asked_for_whatever_it_is_in_inches():
    # 812 pixels were 811 with matplotlib 3.10: 8.12 inches times 100 is a little less than 812.
    sizes = [(width, 812 - width // 10) for width in range(800, 830)]
    pictures = [picture_of(new_figure("VCUT Test", *size)) for size in sizes]
    assert [(picture.shape[2], picture.shape[1]) for picture in pictures] == sizes


def test_missing_matplotlib_is_one_sentence_that_names_the_node(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeError, match="^VCUT Test: expected the Python package matplotlib"):
        new_figure("VCUT Test", 200, 100)
