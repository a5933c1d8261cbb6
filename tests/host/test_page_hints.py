"""What newer ComfyUIs are told of the nodes, and older ones are not."""

import asyncio
import sys
from inspect import signature

import pytest
from comfy_api.latest import io
from vcut.nodes.extension import VCUTExtension
from vcut.nodes.page_hints import advanced, search_words

KNOWS_WORDS = "search_aliases" in io.Schema.__dataclass_fields__
KNOWS_ADVANCED = "advanced" in signature(io.Int.Input).parameters


@pytest.fixture(scope="module")
def schemas() -> dict:
    nodes = asyncio.run(VCUTExtension().get_node_list())
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in nodes)}


def test_nothing_is_told_that_the_host_does_not_know():
    assert search_words("svd") == ({"search_aliases": ["svd"]} if KNOWS_WORDS else {})
    assert advanced() == ({"advanced": True} if KNOWS_ADVANCED else {})


@pytest.fixture
def names(monkeypatch) -> dict[str, str]:
    """What pages search for each node: its display name, and its words where the host knows any."""
    found = {}
    for node in asyncio.run(VCUTExtension().get_node_list()):
        words = []
        monkeypatch.setattr(sys.modules[node.__module__], "search_words", _take_into(words))
        schema = node.define_schema()
        found[schema.node_id] = " | ".join([schema.display_name, *words]).lower()
    return found


def _take_into(words: list):
    return lambda *given: words.extend(given) or search_words(*given)


@pytest.mark.parametrize(
    ("word", "node_ids"),
    [
        ("video", {"PatchSVDModel", "GuidanceScheduler", "StepCache", "FeatureSlicer",
                   "LoadSVDCheckpoint", "DecodeVideo", "ContinueVideo", "JoinVideos",
                   "CompareVideos"}),
        ("faster", {"PatchSVDModel", "GuidanceScheduler", "StepCache"}),
        ("speed", {"PatchSVDModel", "GuidanceScheduler", "StepCache", "CostReport", "RunReport"}),
        ("memory", {"FeatureSlicer", "LoadSVDCheckpoint", "DecodeVideo", "CostReport"}),
        ("vram", {"FeatureSlicer", "LoadSVDCheckpoint", "DecodeVideo", "CostReport"}),
        ("low vram", {"FeatureSlicer", "LoadSVDCheckpoint", "DecodeVideo"}),
        ("oom", {"FeatureSlicer", "DecodeVideo"}),
        ("longer", {"ContinueVideo", "JoinVideos"}),
        ("compare", {"CompareVideos"}),
    ],
)  # fmt: skip
def test_words_reach_the_right_nodes(names, word, node_ids):
    assert {name for name, text in names.items() if word in text} == {f"VCUT_{n}" for n in node_ids}


def test_every_node_is_found_by_svd(names):
    assert all("svd" in text for text in names.values())


def test_words_reach_the_page_where_the_host_knows_them(schemas):
    words = [getattr(schema, "search_aliases", None) for schema in schemas.values()]
    assert all(words) if KNOWS_WORDS else not any(words)


@pytest.mark.skipif(not KNOWS_ADVANCED, reason="this ComfyUI folds no inputs away")
def test_inputs_that_few_need_are_folded_away(schemas):
    folded = {input.id for schema in schemas.values() for input in schema.inputs if input.advanced}
    assert folded == {
        "after_cut", "cut_sigma", "start_step", "augmentation_level", "negative_picture",
        "difference_gain",
    }  # fmt: skip
