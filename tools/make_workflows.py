"""Makes workflows/*.json, their thumbnails and the blueprint in ComfyUI's real page.

python3 tools/make_workflows.py [name ...]
"""

import json
import re
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
FOLDED = "svd_xt_vcut_fast"  # into the blueprint
sys.path.insert(0, str(ROOT / "demo"))

from blueprint import save_blueprint  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import current_host, run_inside  # noqa: E402
from recipes import RECIPES, Recipe  # noqa: E402
from workflow_layout import layout  # noqa: E402

COMFYUI_VERSION = "0.3.75"  # the host that the workflows are made on

# What to call the number of a node that feeds several: by the node's title.
NUMBERS = {"Motion of all parts": "motion_bucket_id", "Seed of both samplers": "seed"}
READABLE = 0.65  # the page draws no text below 0.6
MENUS = (90, 150)  # pixels that they take at the left and at the top
WINDOW = (1480, 820)  # pixels that a window of 1600x1000 leaves for the graph

BUILD = """({nodes, links, groups}) => {
    const graph = window.app.graph
    graph.clear()
    const made = nodes.map(([type, position, width, height, values, title]) => {
        const node = LiteGraph.createNode(type)
        graph.add(node)
        node.pos = position
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets.find(widget => name === '' || widget.name === name)
            if (!widget) throw new Error(`${type} has no widget ${name}`)
            widget.value = value
            widget.callback?.(value)
        }
        if (title) node.title = title
        node.setSize([width, height || node.computeSize()[1]])
        return node
    })
    for (const [from, output, to, name] of links) {
        const slot = made[to].inputs.findIndex(input => input.name === name)
        if (slot < 0) throw new Error(`${made[to].type} has no input ${name}`)
        made[from].connect(output, made[to], slot)
    }
    for (const [title, bounds, colour] of groups) {
        const group = new LiteGraph.LGraphGroup(title)
        group.pos = bounds.slice(0, 2)
        group.size = bounds.slice(2)
        group.color = colour
        graph.add(group)
    }
}"""


def build(page, recipe: Recipe) -> dict:
    """Build ``recipe`` in the page and return what the page serialises."""
    from comfy_page import load_workflow, serialized

    page.evaluate(BUILD, layout(recipe))
    load_workflow(page, serialized(page))  # which settles the order of execution
    return serialized(page)


def finish(workflow: dict, name: str, recipe: Recipe) -> dict:
    """Return ``workflow`` with its provenance, and without what depends on the browser's window."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"vcut-svd/workflows/{name}"))
    workflow["extra"]["ds"] = first_view(workflow["nodes"])
    workflow["extra"]["linearData"] = app_view(workflow["nodes"])
    for node in workflow["nodes"]:
        properties = node["properties"]
        if node["type"].startswith("VCUT_"):
            properties.update(cnr_id="vcut-svd", ver=pack_version())
        elif node["type"] != "MarkdownNote":  # drawn by the page, it has no pack
            properties.update(cnr_id="comfy-core", ver=COMFYUI_VERSION)
        if node["type"] in ("ImageOnlyCheckpointLoader", "VCUT_LoadSVDCheckpoint"):
            properties["models"] = [recipe.checkpoint.metadata()]
        if node["type"] == "UNETLoader":
            properties["models"] = [recipe.unet.metadata()]
        if node.get("title") in NUMBERS:
            node["inputs"][0]["label"] = NUMBERS[node["title"]]
    return workflow


def first_view(nodes: list[dict]) -> dict:
    """Return the view that a workflow opens with: all of it, or as much as stays readable.

    Left alone ComfyUI fits the whole graph into the window, large ones as grey boxes.
    """
    left = min(node["pos"][0] for node in nodes)
    top = min(node["pos"][1] for node in nodes)
    width = max(node["pos"][0] + node["size"][0] for node in nodes) - left
    height = max(node["pos"][1] + node["size"][1] for node in nodes) - top
    scale = max(READABLE, min(1.0, WINDOW[0] / width, WINDOW[1] / height))
    offset = [
        round(start / scale - corner) for start, corner in zip(MENUS, (left, top), strict=True)
    ]
    return {"scale": round(scale, 3), "offset": offset}


def app_view(nodes: list[dict]) -> dict:
    """Return what newer pages show of a workflow as an app: picture, motion, seed and the video.

    Older pages keep it and show nothing of it.
    """
    by_title = {node.get("title") or node["type"]: node["id"] for node in reversed(nodes)}
    wanted = (
        ("LoadImage", "image"),
        ("Motion of all parts", "value"),
        ("SVD_img2vid_Conditioning", "motion_bucket_id"),
        ("Seed of both samplers", "value"),
        ("KSampler", "seed"),
        ("SamplerCustom", "noise_seed"),
    )
    inputs = [[by_title[title], name] for title, name in wanted if title in by_title]
    linked = {
        (node["id"], entry["name"])
        for node in nodes
        for entry in node.get("inputs", ())
        if entry.get("link") is not None
    }
    inputs = [entry for entry in inputs if tuple(entry) not in linked]
    return {"inputs": inputs, "outputs": [by_title["SaveVideo"]]}


def pack_version() -> str:
    """Return the version in pyproject.toml."""
    # No tomllib on Python 3.10.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def make(page, server, name: str) -> None:
    """Write the workflow ``name`` and its thumbnail."""
    from thumbnails import save_thumbnail

    recipe = RECIPES[name]
    workflow = finish(build(page, recipe), name, recipe)
    text = json.dumps(workflow, indent=2) + "\n"
    (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
    save_thumbnail(server, workflow, recipe.caption, recipe.figure, WORKFLOWS / f"{name}.jpg")
    if name == FOLDED:
        save_blueprint(page, workflow, SUBGRAPHS)


def main() -> int:
    """Make the workflows named on the command line, or all."""
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
    except HostError as error:
        print(f"VCUT: {error}", file=sys.stderr)  # noqa: T201
        return 1
    if exit_code is not None:
        return exit_code
    from comfy_page import page_of, placeholder_checkpoints, upload_example_picture
    from private_comfyui.serve import ComfyServer

    host = current_host()
    with ComfyServer(host) as server, placeholder_checkpoints(server):
        upload_example_picture(server, host)
        errors = []
        with page_of(server, errors) as page:
            for name in sys.argv[1:] or RECIPES:
                make(page, server, name)
            for error in errors:
                print(f"VCUT: the page says: {error}", file=sys.stderr)  # noqa: T201
            return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
