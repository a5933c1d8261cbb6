"""The blueprint: the fast workflow as one node."""

import json

import pytest
from blueprint import BLUEPRINT, SHOWN
from comfy_page import load_workflow
from private_comfyui.install import PACK

pytestmark = pytest.mark.browser

RUN_ON_A_PICTURE = """async () => {
    const {graph} = window.app
    const node = graph.nodes[0]
    const add = type => {
        const other = LiteGraph.createNode(type)
        graph.add(other)
        return other
    }
    add('LoadImage').connect(0, node, 0)
    node.connect(0, add('SaveVideo'), 'video')
    const ended = new Promise(end => {
        for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
            window.app.api.addEventListener(event, () => end(event), {once: true})
    })
    await window.app.queuePrompt(0)
    return ended
}"""


def _blueprint() -> dict:
    file = PACK / "subgraphs" / f"{BLUEPRINT}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _small(blueprint: dict) -> dict:
    """Return the blueprint on the tiny SVD."""
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    for node in subgraph["nodes"]:
        if node["type"] == "VCUT_LoadSVDCheckpoint":
            node["type"] = "VCUT_LoadTinySVD"
            node["inputs"], node["widgets_values"] = [], []
        if node["type"] == "SVD_img2vid_Conditioning":
            node["widgets_values"][:3] = [64, 64, 4]
    (node,) = blueprint["nodes"]
    shown = node["properties"]["proxyWidgets"]
    node["properties"]["proxyWidgets"] = [entry for entry in shown if entry[1] != "ckpt_name"]
    return blueprint


def test_host_offers_the_blueprint_by_its_name(comfyui):
    offered = comfyui.get("/global_subgraphs")
    (key,) = [key for key, entry in offered.items() if entry["name"] == BLUEPRINT]
    assert json.loads(comfyui.get(f"/global_subgraphs/{key}")["data"]) == _blueprint()


def test_blueprint_shows_checkpoint_motion_and_seed(page):
    names = "() => window.app.graph.nodes[0].widgets.map(widget => widget.name)"
    load_workflow(page, _blueprint())
    # This page writes the inner node's number before each name.
    assert [name.split(": ")[-1] for name in page.evaluate(names)] == [name for _, name in SHOWN]


def test_blueprint_turns_a_picture_into_a_video(page):
    load_workflow(page, _small(_blueprint()))
    assert page.evaluate(RUN_ON_A_PICTURE) == "execution_success"
