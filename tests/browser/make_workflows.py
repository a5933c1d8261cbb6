"""Makes workflows/*.json and their thumbnails in ComfyUI's real page.

python3 tests/browser/make_workflows.py [name ...]
"""

import json
import re
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
sys.path.insert(0, str(WORKFLOWS))

from comparison_layout import comparison_layout  # noqa: E402
from host_install import HostError, current_host, run_inside  # noqa: E402

HUGGING_FACE = "https://huggingface.co/stabilityai/"
COMFYUI_VERSION = "0.3.75"  # the host that the workflows are made on
COLUMN = 310  # from one VCUT node to the next
TALL = 250  # a VCUT node with room for the line that a run writes on it
SCHEDULE = {
    "cut_step": 17, "steps": 25, "after_cut": "average", "cut_sigma": 0.0, "start_step": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A published SVD model. frames: the clip length that it was trained for."""

    file: str
    repository: str
    frames: int

    @property
    def page(self) -> str:
        """Where a person accepts the licence and downloads."""
        return HUGGING_FACE + self.repository

    def metadata(self) -> dict:
        """Return the entry from which ComfyUI's page offers the download."""
        url = f"{self.page}/resolve/main/{self.file}"
        return {"name": self.file, "url": url, "directory": "checkpoints"}


SVD = Checkpoint("svd.safetensors", "stable-video-diffusion-img2vid", 14)
SVD_XT = Checkpoint("svd_xt.safetensors", "stable-video-diffusion-img2vid-xt", 25)


@dataclass(frozen=True)
class Recipe:
    """One workflow file. temporal: None leaves both VCUT nodes out."""

    title: str
    shows: str
    look_at: str
    checkpoint: Checkpoint = SVD
    steps: int = 25
    temporal: str | None = "cached"
    is_pruned: bool = False  # loaded by VCUT Load SVD Checkpoint, which needs no patch node
    is_sliced: bool = False  # run by VCUT Feature Slicer in the fewest slices that fit
    is_comparison: bool = False  # sampled twice, without and with VCUT


RECIPES = {
    "svd_baseline": Recipe(
        title="SVD without VCUT",
        shows="The stock graph for Stable Video Diffusion: one picture becomes 14 frames. "
        "It is here to compare with svd_vcut: same model, same seed, same settings.",
        look_at="The time of the run, in the queue panel. Every one of the 25 steps is guided: "
        "50 UNet evaluations.",
        temporal=None,
    ),
    "svd_vcut": Recipe(
        title="SVD with VCUT",
        shows="The graph of svd_baseline with two nodes more in the model line. Guidance ends at "
        "step 17 of 25, and the cross-attentions are evaluated once a run.",
        look_at="The line under the VCUT nodes: **guided 1-16 of 25** and "
        "**41 of 50 UNet evaluations**. Bypass both nodes (Ctrl+B) to compare.",
    ),
    "svd_xt_vcut": Recipe(
        title="SVD-XT with VCUT",
        shows="One picture becomes 25 frames. Guidance ends at step 17 of 25, and the "
        "cross-attentions are evaluated once a run.",
        look_at="The line under the VCUT nodes: **guided 1-16 of 25** and "
        "**41 of 50 UNet evaluations**. Bypass both nodes (Ctrl+B) to compare.",
        checkpoint=SVD_XT,
    ),
    "svd_xt_vcut_paper": Recipe(
        title="SVD-XT with VCUT, as in the paper",
        shows="The graph of svd_xt_vcut with **temporal** set to **remove**, the setting of the "
        "arXiv paper: no cross-attention over time. The motion differs from svd_xt_vcut.",
        look_at="The line under the VCUT nodes: **41 of 50 UNet evaluations**, and how many "
        "cross-attentions were removed. Then the motion beside svd_xt_vcut.",
        checkpoint=SVD_XT,
        temporal="remove",
    ),
    "svd_xt_vcut_low_memory": Recipe(
        title="SVD-XT with VCUT, fewer weights",
        shows="The graph of svd_xt_vcut with VCUT Load SVD Checkpoint, which leaves out the 50 "
        "million weights that cannot change the picture. Same result, 101 MB less on the GPU.",
        look_at="The lines under the VCUT nodes: **41 of 50 UNet evaluations**. Set **temporal** "
        "to **remove** in the loader to leave out 25 million weights more.",
        checkpoint=SVD_XT,
        is_pruned=True,
    ),
    "svd_xt_vcut_8gb": Recipe(
        title="SVD-XT with VCUT on 8 GB",
        shows="The graph of svd_xt_vcut_low_memory with VCUT Feature Slicer: intermediate "
        "results exist for a slice of the frames or pixels only, so 25 frames of 1024x576 fit "
        "beside the weights. Same picture. VAE Decode takes as many frames at a time as fit.",
        look_at="The lines under the VCUT nodes: **slicing everything**, how many slices were "
        "chosen and the peak that they should give. **slices** 0 chooses anew at every run.",
        checkpoint=SVD_XT,
        is_pruned=True,
        is_sliced=True,
    ),
    "svd_vcut_20_steps": Recipe(
        title="SVD with VCUT, 20 steps",
        shows="The graph of svd_vcut with 20 steps in KSampler. The scheduler still says 17 of "
        "25, so the cut moves in proportion: 13 of the 20 steps are guided.",
        look_at="The line under the VCUT nodes: **guided 1-13 of 20** and "
        "**33 of 40 UNet evaluations**.",
        steps=20,
    ),
    "svd_compare": Recipe(
        title="SVD without and with VCUT, compared",
        shows="One picture and one seed, sampled twice: as in svd_baseline above, as in svd_vcut "
        "below. VCUT Compare Videos shows both clips side by side, where they differ and by how "
        "much. Both samplers take their seed from one node; change other settings in both.",
        look_at="The video: does the lower branch keep what you like in the upper one? Then "
        "**PSNR** and **SSIM**: they say how far the clips are apart, not which is better. The "
        "plot says in which frames; the difference is shown 4 times as bright.",
        is_comparison=True,
    ),
}


def note_text(recipe: Recipe) -> str:
    """Return the Markdown of the workflow's note."""
    checkpoint = recipe.checkpoint
    return f"""## {recipe.title}

{recipe.shows}

**Model**

1. Accept the licence at [{checkpoint.repository}]({checkpoint.page}).
2. Download **{checkpoint.file}** there.
3. Put it into ComfyUI/models/checkpoints and press R.

**After the run, look at**

{recipe.look_at}
"""


def layout(recipe: Recipe) -> dict:
    """Return the graph for the page: nodes in order of their ids, links, groups.

    A node: [type, position, width, height or 0 for its own, widget values by name, title or none].
    A link: [from index, output, to index, input].
    """
    modes = {"temporal": recipe.temporal, "spatial": "cached"}
    if recipe.is_comparison:
        widgets = (_conditioning(recipe), _sampler(recipe), modes, SCHEDULE)
        return comparison_layout(note_text(recipe), recipe.checkpoint.file, *widgets)
    has_vcut = recipe.temporal is not None
    # Columns: what is loaded, VCUT (two nodes wide), guidance, sampler, video.
    guide, condition, sampler, video = (
        (1080, 760, 1350, 1660) if has_vcut else (450, 450, 770, 1080)
    )
    if recipe.is_sliced:
        guide, condition, sampler, video = (x + COLUMN for x in (guide, condition, sampler, video))
    nodes = [
        ["ImageOnlyCheckpointLoader", [0, 400], 390, 0, {"ckpt_name": recipe.checkpoint.file}],
        ["LoadImage", [0, 560], 390, 340, {"image": "example.png"}],
        ["VideoLinearCFGGuidance", [guide, 40], 230, 0, {"min_cfg": 1.0}],
        ["SVD_img2vid_Conditioning", [condition, 560], 280, 0, _conditioning(recipe)],
        ["KSampler", [sampler, 40], 270, 0, _sampler(recipe)],
        ["VAEDecode", [sampler, 400], 270, 0, {}],
        ["CreateVideo", [video, 40], 270, 0, {"fps": 6}],
        ["SaveVideo", [video, 180], 270, 290, {"filename_prefix": "video/svd"}],
        ["MarkdownNote", [0, 40], 390, 250, {"": note_text(recipe)}, "About this workflow"],
    ]
    links = [
        [0, 0, 2, "model"], [2, 0, 4, "model"],
        [0, 1, 3, "clip_vision"], [1, 0, 3, "init_image"], [0, 2, 3, "vae"],
        [3, 0, 4, "positive"], [3, 1, 4, "negative"], [3, 2, 4, "latent_image"],
        [4, 0, 5, "samples"], [0, 2, 5, "vae"], [5, 0, 6, "images"], [6, 0, 7, "video"],
    ]  # fmt: skip
    if not has_vcut:
        return {"nodes": nodes, "links": links, "groups": []}
    if recipe.is_pruned:
        values = {"ckpt_name": recipe.checkpoint.file, "temporal": recipe.temporal}
        nodes[0] = ["VCUT_LoadSVDCheckpoint", [450, 40], 280, TALL, values]
    nodes.append(["VCUT_GuidanceScheduler", [760, 40], 280, TALL, SCHEDULE])
    links[0:1] = [[0, 0, 9, "model"], [9, 0, 2, "model"]]
    if not recipe.is_pruned:
        nodes.append(["VCUT_PatchSVDModel", [450, 40], 280, TALL, modes])
        links[0:1] = [[0, 0, 10, "model"], [10, 0, 9, "model"]]
    width = 630
    if recipe.is_sliced:  # between the loader and the scheduler
        nodes[9][1] = [760 + COLUMN, 40]
        values = {"slices": 0, "scope": "everything"}
        nodes.append(["VCUT_FeatureSlicer", [760, 40], 280, TALL, values])
        links[0:1] = [[0, 0, 10, "model"], [10, 0, 9, "model"]]
        width += COLUMN
    groups = [["VCUT", [430, -50, width, 360], "#3f789e"]]
    return {"nodes": nodes, "links": links, "groups": groups}


def _conditioning(recipe: Recipe) -> dict:
    return {
        "width": 1024, "height": 576, "video_frames": recipe.checkpoint.frames,
        "motion_bucket_id": 127, "fps": 6, "augmentation_level": 0,
    }  # fmt: skip


def _sampler(recipe: Recipe) -> dict:
    return {
        "seed": 0, "control_after_generate": "fixed", "steps": recipe.steps, "cfg": 2.5,
        "sampler_name": "euler", "scheduler": "karras", "denoise": 1,
    }  # fmt: skip


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
    workflow["extra"].pop("ds", None)  # without it ComfyUI fits the whole graph into the window
    for node in workflow["nodes"]:
        properties = node["properties"]
        if node["type"].startswith("VCUT_"):
            properties.update(cnr_id="vcut-svd", ver=pack_version())
        elif node["type"] != "MarkdownNote":  # drawn by the page, it has no pack
            properties.update(cnr_id="comfy-core", ver=COMFYUI_VERSION)
        if node["type"] in ("ImageOnlyCheckpointLoader", "VCUT_LoadSVDCheckpoint"):
            properties["models"] = [recipe.checkpoint.metadata()]
    return workflow


def pack_version() -> str:
    """Return the version in pyproject.toml."""
    # No tomllib on Python 3.10.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def make(page, server, name: str) -> None:
    """Write the workflow ``name`` and its thumbnail."""
    from comfy_page import load_workflow
    from thumbnails import save_thumbnail

    recipe = RECIPES[name]
    workflow = finish(build(page, recipe), name, recipe)
    text = json.dumps(workflow, indent=2) + "\n"
    (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
    load_workflow(page, workflow)  # the picture shows the file, not what it was made from
    save_thumbnail(page, server, workflow, WORKFLOWS / f"{name}.jpg")


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
    from host import ComfyServer

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
