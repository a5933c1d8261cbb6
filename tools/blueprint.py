"""The blueprint: a workflow as one node, which ComfyUI's page offers beside the other nodes."""

import json
import uuid
from pathlib import Path

BLUEPRINT = "Picture to video (SVD, VCUT)"  # as the page names it, after its file
DESCRIPTION = (
    "One picture becomes a video, with Stable Video Diffusion made faster by VCUT: 21 UNet "
    "evaluations instead of 50. Connect Load Image before it and Save Video behind it."
)
CATEGORY = "Video generation and editing/Image to video"  # where ComfyUI's own blueprints are
OUTSIDE = ("LoadImage", "SaveVideo", "MarkdownNote")  # what stays around the node
SHOWN = (  # on the node: its name for an input of a node within
    ("checkpoint", "VCUT_LoadSVDCheckpoint", "ckpt_name"),
    ("width", "SVD_img2vid_Conditioning", "width"),
    ("height", "SVD_img2vid_Conditioning", "height"),
    ("frames", "SVD_img2vid_Conditioning", "video_frames"),
    ("motion_bucket_id", "SVD_img2vid_Conditioning", "motion_bucket_id"),
    ("seed", "KSampler", "seed"),
)

FOLD = """({name, outside, shown}) => {
    const {graph} = window.app
    for (const group of [...graph.groups]) graph.remove(group)
    const inside = graph.nodes.filter(node => !outside.includes(node.type))
    const {subgraph, node} = graph.convertToSubgraph(new Set(inside))
    subgraph.name = node.title = name
    node.pos = [0, 0]
    const inner = type => subgraph.nodes.find(other => other.type === type)
    subgraph.renameInput(subgraph.inputs[0], 'picture')
    for (const [shownAs, type, input] of shown) {
        const slot = inner(type).inputs.find(slot => slot.name === input)
        subgraph.addInput(shownAs, slot.type).connect(slot, inner(type))
    }
    const [images] = inner('VCUT_DecodeVideo').outputs
    subgraph.addOutput('IMAGE', 'IMAGE').connect(images, inner('VCUT_DecodeVideo'))
    for (const other of graph.nodes.filter(other => other !== node)) graph.remove(other)
    node.properties.proxyWidgets = shown.map(([shownAs]) => ['-1', shownAs])
    node.setSize([320, node.computeSize()[1]])
}"""


def save_blueprint(page, workflow: dict, folder: Path) -> None:
    """Save ``workflow`` folded into one node as a blueprint in ``folder``."""
    from comfy_page import load_workflow, serialized

    load_workflow(page, workflow)
    page.evaluate(FOLD, {"name": BLUEPRINT, "outside": OUTSIDE, "shown": SHOWN})
    load_workflow(page, serialized(page))  # which settles what the page adds to the node
    blueprint = serialized(page)
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    subgraph |= {"category": CATEGORY, "description": DESCRIPTION}
    blueprint["extra"] = {"BlueprintDescription": DESCRIPTION}  # where ComfyUI 0.3.75 reads it
    text = json.dumps(blueprint, indent=2) + "\n"
    # The page makes new ids each time.
    for number, named in enumerate(
        (blueprint, subgraph, *subgraph["inputs"], *subgraph["outputs"])
    ):
        new = uuid.uuid5(uuid.NAMESPACE_URL, f"vcut-svd/subgraphs/{number}")
        text = text.replace(named["id"], str(new))
    folder.mkdir(exist_ok=True)
    (folder / f"{BLUEPRINT}.json").write_text(text, encoding="utf-8")
