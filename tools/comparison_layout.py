"""The shape of the workflow that compares: one picture, one seed, two samplers, one comparison."""

LABELS = {"label_a": "without VCUT", "label_b": "with VCUT"}


def comparison_layout(
    note: str, checkpoint: str, conditioning: dict, sampler: dict, modes: dict, schedule: dict
) -> dict:
    """Return the graph in the form of workflow_layout.layout, the baseline above, VCUT below it.

    The dicts hold widget values: of SVD_img2vid_Conditioning, of both KSamplers, of VCUT Patch SVD
    Model and of VCUT Guidance Scheduler.
    """
    seed = {"value": sampler["seed"], "control_after_generate": "fixed"}
    # Columns: what is loaded, guidance below the conditioning, two of VCUT, samplers, comparison,
    # results. Links cross the middle, where no node stands. Videos stand below what has its own
    # height: their nodes grow downwards. VCUT Compare Videos has room for its slider.
    nodes = [
        ["ImageOnlyCheckpointLoader", [0, 400], 390, 0, {"ckpt_name": checkpoint}],
        ["LoadImage", [0, 560], 390, 340, {"image": "example.png"}],
        ["VideoLinearCFGGuidance", [450, 340], 280, 0, {"min_cfg": 1.0}],
        ["SVD_img2vid_Conditioning", [450, 40], 280, 0, conditioning],
        ["PrimitiveInt", [790, 620], 280, 0, seed, "Seed of both samplers"],
        ["KSampler", [1480, 40], 270, 0, sampler, "KSampler without VCUT"],
        ["VAEDecode", [1480, 340], 270, 0, {}, "VAE Decode without VCUT"],
        ["VCUT_PatchSVDModel", [790, 860], 280, 250, modes],
        ["VCUT_GuidanceScheduler", [1100, 860], 280, 250, schedule],
        ["KSampler", [1480, 730], 270, 0, sampler, "KSampler with VCUT"],
        ["VCUT_DecodeVideo", [1480, 440], 270, 250, {"slices": 0}],
        ["VCUT_CompareVideos", [1820, 40], 340, 540, LABELS | {"difference_gain": 4.0}],
        ["CreateVideo", [2230, 710], 340, 0, {"fps": conditioning["fps"]}],
        ["SaveVideo", [2630, 520], 620, 330, {"filename_prefix": "video/svd_compare"}],
        ["PreviewImage", [2630, 40], 620, 430, {}, "PSNR and SSIM of every frame"],
        ["PreviewImage", [2230, 340], 340, 330, {}, "Difference"],
        ["PreviewAny", [2230, 150], 340, 150, {}, "Summary"],
        ["MarkdownNote", [0, 40], 390, 270, {"": note}, "About this workflow"],
    ]
    links = [
        [0, 0, 2, "model"], [0, 1, 3, "clip_vision"], [1, 0, 3, "init_image"], [0, 2, 3, "vae"],
        [2, 0, 5, "model"], [2, 0, 7, "model"], [7, 0, 8, "model"], [8, 0, 9, "model"],
        *([3, output, k, name] for k in (5, 9)
          for output, name in enumerate(("positive", "negative", "latent_image"))),
        [4, 0, 5, "seed"], [4, 0, 9, "seed"],
        [5, 0, 6, "samples"], [0, 2, 6, "vae"], [9, 0, 10, "samples"], [0, 2, 10, "vae"],
        [6, 0, 11, "video_a"], [10, 0, 11, "video_b"],
        [11, 0, 12, "images"], [12, 0, 13, "video"],
        [11, 1, 15, "images"], [11, 2, 14, "images"], [11, 3, 16, "source"],
    ]  # fmt: skip
    return {"nodes": nodes, "links": links, "groups": [["VCUT", [770, 770, 630, 360], "#3f789e"]]}
