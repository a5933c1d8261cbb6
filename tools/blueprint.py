"""The blueprint: a workflow as one node, which ComfyUI's page offers beside the other nodes."""

import json
import uuid
from pathlib import Path

BLUEPRINT = "Picture to video (SVD, VCUT)"  # as the page names it, after its file
OUTSIDE = ("LoadImage", "SaveVideo", "MarkdownNote")  # what stays around the node
SHOWN = (  # on the node: inputs of the nodes within
    ("VCUT_LoadSVDCheckpoint", "ckpt_name"),
    ("SVD_img2vid_Conditioning", "motion_bucket_id"),
    ("KSampler", "seed"),
)

FOLD = """({name, outside, shown}) => {
    const {graph} = window.app
    for (const group of [...graph.groups]) graph.remove(group)
    const inside = graph.nodes.filter(node => !outside.includes(node.type))
    const {subgraph, node} = graph.convertToSubgraph(new Set(inside))
    subgraph.name = node.title = name
    node.pos = [0, 0]
    node.properties.proxyWidgets = shown.map(([type, widget]) =>
        [String(subgraph.nodes.find(inner => inner.type === type).id), widget])
    for (const other of graph.nodes.filter(other => other !== node)) graph.remove(other)
}"""


def save_blueprint(page, workflow: dict, folder: Path) -> None:
    """Save ``workflow`` folded into one node as a blueprint in ``folder``."""
    from comfy_page import load_workflow, serialized

    load_workflow(page, workflow)
    page.evaluate(FOLD, {"name": BLUEPRINT, "outside": OUTSIDE, "shown": SHOWN})
    load_workflow(page, serialized(page))  # which settles what the page adds to the node
    blueprint = serialized(page)
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    del blueprint["extra"]["ds"]
    text = json.dumps(blueprint, indent=2) + "\n"
    # The page makes new ids each time.
    for number, named in enumerate(
        (blueprint, subgraph, *subgraph["inputs"], *subgraph["outputs"])
    ):
        new = uuid.uuid5(uuid.NAMESPACE_URL, f"vcut-svd/subgraphs/{number}")
        text = text.replace(named["id"], str(new))
    folder.mkdir(exist_ok=True)
    (folder / f"{BLUEPRINT}.json").write_text(text, encoding="utf-8")
