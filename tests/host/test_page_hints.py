"""What newer ComfyUIs are told of the nodes, and older ones are not."""

import asyncio
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


@pytest.mark.skipif(not KNOWS_WORDS, reason="this ComfyUI knows no search words")
@pytest.mark.parametrize(
    ("word", "node_ids"),
    [
        ("faster", {"VCUT_PatchSVDModel", "VCUT_GuidanceScheduler", "VCUT_StepCache"}),
        ("low vram", {"VCUT_FeatureSlicer", "VCUT_LoadSVDCheckpoint", "VCUT_DecodeVideo"}),
        ("oom", {"VCUT_FeatureSlicer", "VCUT_DecodeVideo"}),
        ("longer", {"VCUT_ContinueVideo", "VCUT_JoinVideos"}),
        ("compare", {"VCUT_CompareVideos"}),
    ],
)
def test_words_reach_the_right_nodes(schemas, word, node_ids):
    assert {name for name, schema in schemas.items() if word in schema.search_aliases} == node_ids


@pytest.mark.skipif(not KNOWS_WORDS, reason="this ComfyUI knows no search words")
def test_every_node_is_found_by_svd(schemas):
    assert all("svd" in schema.search_aliases for schema in schemas.values())


@pytest.mark.skipif(not KNOWS_ADVANCED, reason="this ComfyUI folds no inputs away")
def test_inputs_that_few_need_are_folded_away(schemas):
    folded = {input.id for schema in schemas.values() for input in schema.inputs if input.advanced}
    assert folded == {
        "after_cut", "cut_sigma", "start_step", "augmentation_level", "negative_picture",
        "difference_gain",
    }  # fmt: skip
