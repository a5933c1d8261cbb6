"""What each workflow file shows: its model, its settings, the text of its note."""

from dataclasses import dataclass

HUGGING_FACE = "https://huggingface.co/"


@dataclass(frozen=True)
class Checkpoint:
    """A published file of weights. frames: the video length that they were trained for."""

    file: str
    repository: str
    frames: int
    folder: str = "checkpoints"

    @property
    def page(self) -> str:
        """Where a person reads the licence and downloads."""
        return HUGGING_FACE + self.repository

    def metadata(self) -> dict:
        """Return the entry from which ComfyUI's page offers the download."""
        url = f"{self.page}/resolve/main/{self.file}"
        return {"name": self.file, "url": url, "directory": self.folder}


SVD = Checkpoint("svd.safetensors", "stabilityai/stable-video-diffusion-img2vid", 14)
SVD_XT = Checkpoint("svd_xt.safetensors", "stabilityai/stable-video-diffusion-img2vid-xt", 25)
ANIMATE_LCM = Checkpoint(
    "AnimateLCM-SVD-xt-1-1_fp16_comfy.safetensors",
    "Kijai/AnimateLCM-SVD-Comfy",
    25,
    "diffusion_models",
)


@dataclass(frozen=True)
class Sampling:
    """How SamplerCustom samples. schedule: the node that makes the sigmas. widgets: its values."""

    schedule: str
    widgets: dict
    sampler: str = "euler"
    cfg: float = 2.5


ALIGN_YOUR_STEPS = Sampling(
    "AlignYourStepsScheduler", {"model_type": "SVD", "steps": 10, "denoise": 1.0}
)
# Its authors take every 10th of 40 Karras sigmas from 700 to 0.002, at guidance 1; the last of them
# is 0.497 (G-U-N/AnimateLCM, animatelcm_svd/animatelcm_scheduler.py), which the page rounds to 0.5.
FEW_STEPS = Sampling(
    "KarrasScheduler", {"steps": 4, "sigma_max": 700.0, "sigma_min": 0.5, "rho": 7.0}, "lcm", 1.0
)


@dataclass(frozen=True)
class Recipe:
    """One workflow file, and its card in the template browser.

    caption, figure: what the card says, in two or three words each. is_cut: whether VCUT Guidance
    Scheduler ends guidance. unet: few-step weights that replace the checkpoint's.
    """

    title: str
    caption: str
    figure: str
    shows: str
    look_at: str
    checkpoint: Checkpoint = SVD_XT
    temporal: str = "cached"
    is_pruned: bool = True  # loaded by VCUT Load SVD Checkpoint, which needs no patch node
    slicer: str | None = None  # scope of VCUT Feature Slicer, which takes the fewest slices
    is_cut: bool = True
    has_step_cache: bool = False  # VCUT Step Cache computes about half of the steps
    sampling: Sampling | None = None  # instead of KSampler
    unet: Checkpoint | None = None
    is_comparison: bool = False  # sampled twice, without and with VCUT
    continuations: int = 0  # parts that VCUT Continue Video adds to the first video


RECIPES = {
    "svd_xt_vcut_fast": Recipe(
        title="Fast: SVD-XT with VCUT",
        caption="FAST",
        figure="21 of 50 evaluations",
        shows="One picture becomes 25 frames. VCUT Step Cache computes 14 of the 25 steps and "
        "predicts the others; guidance ends at step 17. That is 21 UNet evaluations instead of 50: "
        "on an H200 6.6 seconds instead of 16.2.",
        look_at="The lines under the VCUT nodes: **14 of 25 steps computed** and **21 of 50 UNet "
        "evaluations**. Set **pace** to **careful** to stay nearer to the full run, or to **fast** "
        "to compute 12 steps.",
        has_step_cache=True,
    ),
    "svd_xt_vcut_exact": Recipe(
        title="Exact: the same video with VCUT, faster",
        caption="EXACT",
        figure="same video, less memory",
        shows="The video that SVD-XT makes without VCUT, all 50 UNet evaluations of it. "
        "Cross-attention is computed once and reused, and VCUT Feature Slicer tells ComfyUI what "
        "the model really needs: on cards of 16 and 24 GB cond and uncond then fit into one call, "
        "1.18 times as fast on an H200 limited to that.",
        look_at="The lines under the VCUT nodes: **cross-attention: 64 computed**, and how many "
        "slices were chosen. Bypass both and compare: rounding is all that differs.",
        is_cut=False,
        slicer="feed_forward",
    ),
    "svd_xt_vcut_8gb": Recipe(
        title="8 GB: SVD-XT with VCUT in little memory",
        caption="8 GB",
        figure="5.3 GB with the weights",
        shows="VCUT Feature Slicer computes a slice of the frames or pixels at a time, so 25 "
        "frames of 1024x576 fit beside the weights. VCUT Decode Video decodes them in slices too, "
        "as one video. The loader leaves out 50 million weights that cannot change the picture. "
        "Guidance ends at step 17.",
        look_at="The lines under the VCUT nodes: **slicing: everything**, how many slices were "
        "chosen and the peak that they should give. **slices** 0 chooses anew at every run.",
        slicer="everything",
    ),
    "svd_xt_long": Recipe(
        title="Longer: 67 frames with VCUT",
        caption="67 FRAMES",
        figure="in three parts",
        shows="The graph of svd_xt_vcut_fast makes 25 frames, sliced where memory is short. VCUT "
        "Continue Video samples the next ones while they see the last 4, at cfg 1, and VCUT Join "
        "Videos puts them behind: 25, 46, 67 frames. Copy the last three nodes for more. All is "
        "decoded once, as one video.",
        look_at="The lines under the nodes: **4 frames kept, 21 new**, and **46 + 21 = 67 "
        "frames**. **Motion of all parts** sets motion_bucket_id everywhere: where the parts "
        "differ, the seam shows.",
        slicer="everything",
        has_step_cache=True,
        continuations=2,
    ),
    "svd_compare": Recipe(
        title="Compare: without and with VCUT",
        caption="COMPARE",
        figure="without and with VCUT",
        shows="One picture and one seed, sampled twice: without VCUT above, with it below. VCUT "
        "Compare Videos shows both videos in one place with a line between them, where they "
        "differ and by how much. Both samplers take their seed from one node; change other "
        "settings in both.",
        look_at="The video: does the lower branch keep what you like in the upper one? Then "
        "**PSNR** and **SSIM**: they say how far the videos are apart, not which is better. The "
        "plot says in which frames; the difference is shown 4 times as bright.",
        checkpoint=SVD,
        is_pruned=False,
        is_comparison=True,
    ),
    "svd_vcut": Recipe(
        title="14 frames: SVD with VCUT",
        caption="14 FRAMES",
        figure="41 of 50 evaluations",
        shows="The stock graph for SVD with two nodes more in the model line. Guidance ends at "
        "step 17 of 25, and the cross-attentions are computed once a run. With another number of "
        "steps in KSampler the cut moves in proportion: of 20 steps 13 are guided.",
        look_at="The lines under the VCUT nodes: **guided 16 of 25 steps** and "
        "**41 of 50 UNet evaluations**. Bypass both nodes (Ctrl+B) to compare.",
        checkpoint=SVD,
        is_pruned=False,
    ),
    "svd_xt_align_your_steps": Recipe(
        title="Align Your Steps with VCUT",
        caption="10 STEPS",
        figure="Align Your Steps + VCUT",
        shows="ComfyUI's schedule of Align Your Steps takes 10 steps. With VCUT 16 UNet "
        "evaluations instead of 20: on an H200 5.0 seconds, 6.5 without VCUT, 16.2 for 25 steps. "
        "Further from the full run than svd_xt_vcut_fast, see docs/results.md.",
        look_at="The lines under the VCUT nodes: **guided 6 of 10 steps** and **16 of 20 UNet "
        "evaluations**.",
        sampling=ALIGN_YOUR_STEPS,
    ),
    "svd_xt_few_steps": Recipe(
        title="Few steps: AnimateLCM-SVD with VCUT",
        caption="4 STEPS",
        figure="AnimateLCM + VCUT",
        shows="AnimateLCM-SVD: SVD-XT 1.1 trained for few steps at cfg 1. There is no guidance to "
        "end and no step to spare; VCUT reuses cross-attention and slices where memory is short. "
        "For 8 steps set **sigma_min** to 0.04. We had no such weights to try.",
        look_at="The lines: **32 computed, 96 from cache**, and the slices.",
        sampling=FEW_STEPS,
        is_pruned=False,
        is_cut=False,
        slicer="feed_forward",
        unet=ANIMATE_LCM,
    ),
    "svd_xt_vcut_paper": Recipe(
        title="The paper's setting",
        caption="PAPER",
        figure="temporal: remove",
        shows="SVD-XT with **temporal** set to **remove**, the setting of the arXiv paper: no "
        "cross-attention over time, and guidance ends at step 17. The motion differs from a run "
        "with **cached**.",
        look_at="The lines under the VCUT nodes: **41 of 50 UNet evaluations**, and how many "
        "cross-attentions were removed.",
        temporal="remove",
        is_pruned=False,
    ),
}


def note_text(recipe: Recipe) -> str:
    """Return the Markdown of the workflow's note."""
    checkpoint, unet, more = recipe.checkpoint, recipe.unet, ""
    if unet is not None:
        place = f"ComfyUI/models/{unet.folder}"
        more = f" And **{unet.file}** from [{unet.repository}]({unet.page}) into {place}."
    return f"""## {recipe.title}

{recipe.shows}

**Model**: put **{checkpoint.file}** from [{checkpoint.repository}]({checkpoint.page}) into
ComfyUI/models/checkpoints and press R. Read its licence; if the page asks you to log in and accept
it, ComfyUI's Download button fails until then.{more}

**After the run, look at**

{recipe.look_at}
"""
