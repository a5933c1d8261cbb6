"""What each workflow file shows: its model, its settings, the text of its note."""

from dataclasses import dataclass

HUGGING_FACE = "https://huggingface.co/stabilityai/"


@dataclass(frozen=True)
class Checkpoint:
    """A published SVD model. frames: the video length that it was trained for."""

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
    has_step_cache: bool = False  # VCUT Step Cache computes about half of the steps
    is_comparison: bool = False  # sampled twice, without and with VCUT
    continuations: int = 0  # parts that VCUT Continue Video adds to the first video


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
        look_at="The lines under the VCUT nodes: **guided 16 of 25 steps** and "
        "**41 of 50 UNet evaluations**. Bypass both nodes (Ctrl+B) to compare.",
    ),
    "svd_xt_vcut": Recipe(
        title="SVD-XT with VCUT",
        shows="One picture becomes 25 frames. Guidance ends at step 17 of 25, and the "
        "cross-attentions are evaluated once a run.",
        look_at="The lines under the VCUT nodes: **guided 16 of 25 steps** and "
        "**41 of 50 UNet evaluations**. Bypass both nodes (Ctrl+B) to compare.",
        checkpoint=SVD_XT,
    ),
    "svd_xt_vcut_paper": Recipe(
        title="SVD-XT with VCUT, as in the paper",
        shows="The graph of svd_xt_vcut with **temporal** set to **remove**, the setting of the "
        "arXiv paper: no cross-attention over time. The motion differs from svd_xt_vcut.",
        look_at="The lines under the VCUT nodes: **41 of 50 UNet evaluations**, and how many "
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
    "svd_xt_vcut_fast": Recipe(
        title="SVD-XT with VCUT, fast",
        shows="The graph of svd_xt_vcut_low_memory with VCUT Step Cache: only 14 of the 25 steps "
        "are computed, the others are predicted. With guidance up to step 16 that is 21 UNet "
        "evaluations instead of 50.",
        look_at="The lines under the VCUT nodes: **14 of 25 steps computed** and **21 of 50 UNet "
        "evaluations**. Set **pace** to **careful** to stay nearer to the full run, or to **fast** "
        "to compute 12 steps.",
        checkpoint=SVD_XT,
        is_pruned=True,
        has_step_cache=True,
    ),
    "svd_xt_vcut_8gb": Recipe(
        title="SVD-XT with VCUT on 8 GB",
        shows="The graph of svd_xt_vcut_low_memory with VCUT Feature Slicer: intermediate "
        "results exist for a slice of the frames or pixels only, so 25 frames of 1024x576 fit "
        "beside the weights: 2.3 GB in 8 slices. VCUT Decode Video decodes them in slices too: "
        "2.1 GB in 13 slices, while 3.8 GB wait in system memory.",
        look_at="The lines under the VCUT nodes: **slicing: everything**, how many slices were "
        "chosen and the peak that they should give. **slices** 0 chooses anew at every run.",
        checkpoint=SVD_XT,
        is_pruned=True,
        is_sliced=True,
    ),
    "svd_xt_long": Recipe(
        title="SVD-XT with VCUT, 67 frames",
        shows="The graph of svd_xt_vcut_fast makes 25 frames, sliced where memory is short. VCUT "
        "Continue Video samples the next ones while they see the last 4, at cfg 1, and VCUT Join "
        "Videos puts them behind: 25, 46, 67 frames. Copy the last three nodes for more. All is "
        "decoded once, as one video.",
        look_at="The lines under the nodes: **4 frames kept, 21 new**, and **46 + 21 = 67 "
        "frames**. **Motion of all parts** sets motion_bucket_id everywhere: where the parts "
        "differ, the seam shows.",
        checkpoint=SVD_XT,
        is_pruned=True,
        is_sliced=True,
        has_step_cache=True,
        continuations=2,
    ),
    "svd_vcut_20_steps": Recipe(
        title="SVD with VCUT, 20 steps",
        shows="The graph of svd_vcut with 20 steps in KSampler. The scheduler still says 17 of "
        "25, so the cut moves in proportion: 13 of the 20 steps are guided.",
        look_at="The lines under the VCUT nodes: **guided 13 of 20 steps** and "
        "**33 of 40 UNet evaluations**.",
        steps=20,
    ),
    "svd_compare": Recipe(
        title="SVD without and with VCUT, compared",
        shows="One picture and one seed, sampled twice: as in svd_baseline above, as in svd_vcut "
        "below. VCUT Compare Videos shows both videos side by side, where they differ and by how "
        "much. Both samplers take their seed from one node; change other settings in both.",
        look_at="The video: does the lower branch keep what you like in the upper one? Then "
        "**PSNR** and **SSIM**: they say how far the videos are apart, not which is better. The "
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

1. Log in and accept the licence at [{checkpoint.repository}]({checkpoint.page}). Before that,
   ComfyUI's Download button fails.
2. Download **{checkpoint.file}** there.
3. Put it into ComfyUI/models/checkpoints and press R.

**After the run, look at**

{recipe.look_at}
"""
