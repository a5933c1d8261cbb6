"""The blueprint: the fast workflow as one node, on the host's page and on the newest."""

import json

import pytest
from blueprint import BLUEPRINT, SHOWN
from comfy_page import add_found, page_of, placeholder_checkpoints, prompt_of, search_nodes
from private_comfyui import prompts
from private_comfyui.environments import PACK
from private_comfyui.install import WORKFLOWS

pytestmark = pytest.mark.browser

WIDGETS = "() => window.app.graph.nodes[0].widgets.map(({name, value}) => [name, value])"
CONNECT = """values => {
    const {graph} = window.app
    const [node] = graph.nodes
    for (const widget of node.widgets)
        if (widget.name in values) widget.value = values[widget.name]
    const add = type => {
        const other = LiteGraph.createNode(type)
        graph.add(other)
        return other
    }
    add('LoadImage').connect(0, node, 0)
    node.connect(0, add('SaveVideo'), 'video')
}"""
SMALL = {"width": 96, "height": 64, "frames": 4, "motion_bucket_id": 40, "seed": 7}


@pytest.fixture(scope="module")
def open_page(server):
    with placeholder_checkpoints(server), page_of(server, []) as page:
        yield page


@pytest.fixture
def page(open_page):
    """The page with nothing but the blueprint, added as an artist adds it."""
    open_page.evaluate("() => window.app.graph.clear()")
    assert search_nodes(open_page, "picture to video")[0] == BLUEPRINT
    add_found(open_page)
    return open_page


def _by_type(prompt: dict) -> dict:
    """Return each node's inputs, with the type of the node for a link; the ids do not matter."""
    types = {node_id: node["class_type"] for node_id, node in prompt.items()}
    return {
        node["class_type"]: {
            name: [types[value[0]], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        for node in prompt.values()
    }


def test_host_offers_the_blueprint_by_its_name(comfyui):
    file = PACK / "subgraphs" / f"{BLUEPRINT}.json"
    offered = comfyui.get("/global_subgraphs")
    (key,) = [key for key, entry in offered.items() if entry["name"] == BLUEPRINT]
    data = comfyui.get(f"/global_subgraphs/{key}")["data"]
    assert json.loads(data) == json.loads(file.read_text(encoding="ascii"))


def test_node_shows_what_an_artist_changes(page):
    values = ["svd_xt.safetensors", 1024, 576, 25, 127, 0]
    names = [name for name, _, _ in SHOWN]
    assert page.evaluate(WIDGETS) == [list(pair) for pair in zip(names, values, strict=True)]


def test_node_computes_what_the_fast_workflow_computes(page, server):
    page.evaluate(CONNECT, {})
    workflow = prompts.load(WORKFLOWS / "svd_xt_vcut_fast.json")
    expected = _by_type(prompts.to_prompt(workflow, server.get("/object_info")))
    computed = _by_type(prompt_of(page))
    for outside in ("LoadImage", "SaveVideo"):
        expected.pop(outside)
        computed.pop(outside)
    assert computed == expected


def test_node_turns_a_picture_into_a_video_of_its_values(page, server):
    page.evaluate(CONNECT, SMALL)
    prompt = prompt_of(page)
    prompts.replace_loader(prompt, "VCUT_LoadTinySVD")
    prompts.set_inputs(prompt, "KSampler", steps=4)
    images = prompts.add_frames_output(prompt)

    run = server.run(prompt)

    values = _by_type(prompt)
    assert values["KSampler"]["seed"] == 7
    assert values["SVD_img2vid_Conditioning"]["motion_bucket_id"] == 40
    assert len(run.files[images]) == 4
    (video,) = prompts.nodes_of(prompt, "SaveVideo")
    assert len(run.files[video]) == 1
