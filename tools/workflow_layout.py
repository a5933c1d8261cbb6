"""Where the nodes of each workflow stand and how they are linked."""

from comparison_layout import comparison_layout
from long_layout import COLUMN, add_continuations
from recipes import Recipe, note_text

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
        widgets = (_conditioning(recipe), _sampler(recipe), modes, SCHEDULE)
        return comparison_layout(note_text(recipe), recipe.checkpoint.file, *widgets)
    has_vcut = recipe.temporal is not None
    # Columns: what is loaded, VCUT, guidance, sampler, video. The conditioning ends where guidance
    # does, so that its links rise to the sampler behind no node.
    in_chain = (not recipe.is_pruned) + 1 + recipe.is_sliced + recipe.has_step_cache
    guide = LEFT + COLUMN * in_chain * has_vcut
    condition, sampler, video = guide - 50 * has_vcut, guide + 320, guide + 630
    nodes = [
        ["ImageOnlyCheckpointLoader", [0, 400], 390, 0, {"ckpt_name": recipe.checkpoint.file}],
        ["LoadImage", [0, 560], 390, 340, {"image": "example.png"}],
        ["VideoLinearCFGGuidance", [guide, 40], 230, 0, {"min_cfg": 1.0}],
        ["SVD_img2vid_Conditioning", [condition, 560], 280, 0, _conditioning(recipe)],
        ["KSampler", [sampler, 40], 270, 0, _sampler(recipe)],
        ["VAEDecode", [sampler, 400], 270, 0, {}]
        if not has_vcut
        else ["VCUT_DecodeVideo", [sampler, 400], 270, TALL, {"slices": 0}],
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
        nodes[0] = ["VCUT_LoadSVDCheckpoint", [0, 390], 390, 200, values]
        nodes[1][1] = [0, 640]
    # What the model goes through, from the loader to VideoLinearCFGGuidance; a column each.
    chain = [0]

    def add(kind: str, values: dict) -> None:
        nodes.append([kind, [LEFT + COLUMN * (len(chain) - 1), 40], 280, TALL, values])
        chain.append(len(nodes) - 1)

    if not recipe.is_pruned:
        add("VCUT_PatchSVDModel", modes)
    if recipe.is_sliced:
        add("VCUT_FeatureSlicer", {"slices": 0, "scope": "everything"})
    add("VCUT_GuidanceScheduler", SCHEDULE)
    if recipe.has_step_cache:
        add("VCUT_StepCache", {"pace": "balanced"})
    chain.append(2)
    links[0:1] = [[a, 0, b, "model"] for a, b in zip(chain, chain[1:], strict=False)]
    groups = [["VCUT", [LEFT - 20, -50, COLUMN * in_chain + 10, 360], "#3f789e"]]
    if recipe.continuations:
        add_continuations(
            nodes, links, recipe.continuations, _conditioning(recipe), _sampler(recipe)
        )
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
