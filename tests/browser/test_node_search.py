"""Which nodes an artist's words find in the page's node search, on both pages."""

import pytest
from blueprint import BLUEPRINT
from comfy_page import page_of, search_nodes

pytestmark = pytest.mark.browser

FIRST = 8  # of what is offered: about what is in sight
BY_NAME = {  # on every host: the page searches ids and display names, not descriptions
    "svd": {"VCUT Patch SVD Model", "VCUT Load SVD Checkpoint", BLUEPRINT},
    "compare": {"VCUT Compare Videos"},
    "picture to video": {BLUEPRINT},
}
BY_WORDS = {  # on hosts that know search words
    "faster": {"VCUT Patch SVD Model", "VCUT Guidance Scheduler", "VCUT Step Cache"},
    "speed": {"VCUT Patch SVD Model", "VCUT Guidance Scheduler", "VCUT Step Cache"},
    "memory": {"VCUT Feature Slicer", "VCUT Decode Video", "VCUT Load SVD Checkpoint"},
    "vram": {"VCUT Feature Slicer", "VCUT Decode Video"},
    "low vram": {"VCUT Feature Slicer", "VCUT Decode Video", "VCUT Load SVD Checkpoint"},
    "oom": {"VCUT Feature Slicer", "VCUT Decode Video"},
    "longer": {"VCUT Continue Video", "VCUT Join Videos"},
}


@pytest.fixture(scope="module")
def page(server):
    with page_of(server, []) as page:
        yield page


@pytest.mark.parametrize("word", BY_NAME)
def test_word_in_a_name_finds_the_node(page, word):
    assert BY_NAME[word] <= set(search_nodes(page, word)[:FIRST])


@pytest.mark.parametrize("word", BY_WORDS)
def test_word_of_an_artist_finds_the_node(page, server, word):
    if "search_aliases" not in server.get("/object_info/VCUT_StepCache")["VCUT_StepCache"]:
        pytest.skip("this ComfyUI knows no search words")
    assert BY_WORDS[word] <= set(search_nodes(page, word)[:FIRST])
