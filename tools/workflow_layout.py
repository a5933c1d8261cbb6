"""Where the nodes of each workflow stand and how they are linked."""

from itertools import pairwise

from comparison_layout import comparison_layout
from long_layout import COLUMN, add_continuations
from recipes import Recipe, Sampling, note_text

SEED = 0
LEFT = 450  # where the columns right of what is loaded begin
TALL = 250  # a VCUT node with room for the line that a run writes on it
SCHEDULE = {
    "cut_step": 17, "steps": 25, "after_cut": "average", "cut_sigma": 0.0, "start_step": 1,
}  # fmt: skip


def layout(recipe: Recipe) -> dict:
    """Return the graph for the page: nodes in order of their ids, links, groups.

    A node: [type, position, width, height or 0 for its own, widget values by name, title or none].
    A link: [from index, output, to index, input].
    """
    modes = {"temporal": recipe.temporal, "spatial": "cached"}
    if recipe.is_comparison:
        widgets = (_conditioning(recipe), _sampler(), modes, SCHEDULE)
        return comparison_layout(note_text(recipe), recipe.checkpoint.file, *widgets)
    # Columns: what is loaded, VCUT, guidance, sampler, video. The conditioning ends where guidance
    # does, so that its links rise to the sampler behind no node.
    chain = _chain(recipe, modes)
    guide = LEFT + COLUMN * len(chain)
    condition, sampler, video = guide - 50, guide + 320, guide + 630
    nodes = [
        ["ImageOnlyCheckpointLoader", [0, 400], 390, 0, {"ckpt_name": recipe.checkpoint.file}],
        ["LoadImage", [0, 560], 390, 340, {"image": "example.png"}],
        ["VideoLinearCFGGuidance", [guide, 40], 230, 0, {"min_cfg": 1.0}],
        ["SVD_img2vid_Conditioning", [condition, 560], 280, 0, _conditioning(recipe)],
        ["KSampler", [sampler, 40], 270, 0, _sampler()],
        ["VCUT_DecodeVideo", [sampler, 400], 270, TALL, {"slices": 0}],
        ["CreateVideo", [video, 40], 270, 0, {"fps": 6}],
        ["SaveVideo", [video, 180], 270, 290, {"filename_prefix": "video/svd"}],
        ["MarkdownNote", [0, 40], 390, 250, {"": note_text(recipe)}, "About this workflow"],
    ]
    links = [
        [0, 1, 3, "clip_vision"], [1, 0, 3, "init_image"], [0, 2, 3, "vae"],
        [3, 0, 4, "positive"], [3, 1, 4, "negative"], [3, 2, 4, "latent_image"],
        [4, 0, 5, "samples"], [0, 2, 5, "vae"], [5, 0, 6, "images"], [6, 0, 7, "video"],
    ]  # fmt: skip
    if recipe.is_pruned:
        values = {"ckpt_name": recipe.checkpoint.file, "temporal": recipe.temporal}
        nodes[0] = ["VCUT_LoadSVDCheckpoint", [0, 390], 390, 200, values]
        nodes[1][1] = [0, 640]
    first = len(nodes)
    nodes += [
        [kind, [LEFT + COLUMN * place, 40], 280, TALL, values]
        for place, (kind, values) in enumerate(chain)
    ]
    line = [*range(first, len(nodes)), 2, 4]
    if recipe.unet is None:
        line.insert(0, 0)
    links += [[a, 0, b, "model"] for a, b in pairwise(line)]
    if recipe.sampling is not None:
        _sample_custom(nodes, links, guide, recipe.sampling)
    own = [place for place, (kind, _) in enumerate(chain) if kind.startswith("VCUT_")]
    bounds = [LEFT - 20 + COLUMN * own[0], -50, COLUMN * len(own) + 10, 360]
    groups = [["VCUT", bounds, "#3f789e"]]
    if recipe.continuations:
        add_continuations(nodes, links, recipe.continuations, _conditioning(recipe), _sampler())
    return {"nodes": nodes, "links": links, "groups": groups}


def _chain(recipe: Recipe, modes: dict) -> list[tuple[str, dict]]:
    """Return what stands between the loader and VideoLinearCFGGuidance, a column each."""
    chain: list[tuple[str, dict]] = []
    if recipe.unet is not None:
        chain.append(("UNETLoader", {"unet_name": recipe.unet.file, "weight_dtype": "default"}))
    if not recipe.is_pruned:
        chain.append(("VCUT_PatchSVDModel", modes))
    if recipe.slicer is not None:
        chain.append(("VCUT_FeatureSlicer", {"slices": 0, "scope": recipe.slicer}))
    if recipe.is_cut:
        chain.append(("VCUT_GuidanceScheduler", SCHEDULE))
    if recipe.has_step_cache:
        chain.append(("VCUT_StepCache", {"pace": "balanced"}))
    return chain


def _sample_custom(nodes: list, links: list, guide: float, sampling: Sampling) -> None:
    """Replace the KSampler by SamplerCustom with a schedule of its own."""
    position, width = nodes[4][1:3]
    values = {"add_noise": True, "noise_seed": SEED, "control_after_generate": "fixed"}
    nodes[4] = ["SamplerCustom", position, width, 0, values | {"cfg": sampling.cfg}]
    schedule, name = len(nodes), len(nodes) + 1
    nodes += [
        [sampling.schedule, [guide, 160], 230, 0, sampling.widgets],
        ["KSamplerSelect", [guide, 350], 230, 0, {"sampler_name": sampling.sampler}],
    ]
    links += [[schedule, 0, 4, "sigmas"], [name, 0, 4, "sampler"]]


def _conditioning(recipe: Recipe) -> dict:
    return {
        "width": 1024, "height": 576, "video_frames": recipe.checkpoint.frames,
        "motion_bucket_id": 127, "fps": 6, "augmentation_level": 0,
    }  # fmt: skip


def _sampler() -> dict:
    return {
        "seed": SEED, "control_after_generate": "fixed", "steps": 25, "cfg": 2.5,
        "sampler_name": "euler", "scheduler": "karras", "denoise": 1,
    }  # fmt: skip
