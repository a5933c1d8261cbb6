"""Makes videos longer than the tiny SVD's own 14 frames, in several ways, and measures them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from sampling_jobs import Job, one_sampler
from tiny_svd.loader import load_tiny_svd
from tiny_svd_jobs import TinySVD
from torch import Tensor
from vcut.nodes.continue_video import OVERLAP
from video_truth import centroids, psnr
from video_world import FPS, NUM_FRAMES, Videos

LONG = 54  # frames: the first video and four continuations with an overlap of 4
SHORT = 34  # frames: two continuations
TUNING_STEPS = 200
EDGES = (NUM_FRAMES, SHORT, LONG)  # the spans that are measured lie between these
SAVINGS = ("VCUT_PatchSVDModel", "VCUT_GuidanceScheduler", "VCUT_StepCache")


@dataclass(frozen=True)
class Variant:
    """One way to a long video.

    new: frames that a continuation adds. is_short: measured up to 34 frames only. saves: whether
    the model goes through the pack's nodes. at_once: frames of an evaluation.
    """

    name: str
    make: Callable
    new: int
    is_short: bool = False
    saves: bool = False
    at_once: int = NUM_FRAMES

    @property
    def frames(self) -> int:
        """The length that it is measured at."""
        return SHORT if self.is_short else LONG


@dataclass
class Made:
    """A video (T, 3, H, W) in 0..1, where each continuation begins, and what it took.

    evaluations: by the UNet, for the continuations alone.
    """

    pixels: Tensor
    seams: list[int]
    evaluations: int


class LongVideos:
    """The tiny SVD with what all variants of one first frame share."""

    def __init__(self, tuned_weights: Path) -> None:
        self.tiny = TinySVD()
        self._tuned_weights = tuned_weights
        saving = self.tiny.model
        for node_id in SAVINGS:
            saving = self.tiny.nodes.patch(node_id, saving)
        self._models = {True: self.tiny.guided(saving), False: self.tiny.guided(self.tiny.model)}
        self._firsts: dict[bool, Tensor] = {}

    @cached_property
    def tuned(self):
        """The model tuned for a clean prefix."""
        model, *_ = load_tiny_svd()
        model.model.diffusion_model.load_state_dict(torch.load(self._tuned_weights))
        return model

    def start(self, truth: Videos, seed: int) -> None:
        """Take a first frame, the only one of ``truth``."""
        self.truth, self.seed = truth, seed
        self._firsts.clear()

    def first(self, saves: bool = False) -> Tensor:
        """Return the latent (14, 4, 8, 8) of the first video, guided."""
        if saves not in self._firsts:
            job = self.tiny.job(self.truth, self.seed)
            self._firsts[saves] = self.sample(job, 0, guided=True, saves=saves)
        return self._firsts[saves]

    def decode(self, samples: Tensor) -> Tensor:
        """Return the frames of a latent, decoded as one video."""
        (frames,) = self.tiny.nodes.call(
            "VCUT_DecodeVideo", samples={"samples": samples}, vae=self.tiny.vae
        )
        return frames[..., :3].movedim(-1, 1).float()

    def sample(self, job: Job, number: int, guided: bool, saves: bool = False) -> Tensor:
        """Return the latent of a continuation; its seed follows from its number."""
        job = replace(job, seed=job.seed + 1000 * number, cfg=job.cfg if guided else 1.0)
        return one_sampler(self.tiny.nodes, self._models[saves], job)["samples"]


def counted(make: Callable) -> Callable:
    """Let ``make(videos, variant, ...)``, which returns pixels and seams, count its evaluations."""

    def run(videos: LongVideos, variant: Variant, **options) -> Made:
        from tiny_svd.demo_nodes import watch_evaluations

        videos.first(variant.saves)  # not counted
        evaluations = 0

        def count(cond_or_uncond: list[int]) -> None:
            nonlocal evaluations
            evaluations += len(cond_or_uncond)

        model = videos.tuned if options.get("tuned") else videos.tiny.model
        with watch_evaluations(model.model.diffusion_model, count):
            pixels, seams = make(videos, variant, **options)
        return Made(pixels[: variant.frames], seams, evaluations)

    return run


@counted
def naive_chain(videos: LongVideos, variant: Variant, guided: bool) -> tuple:
    """The last frame is the next picture, whose copy is then left out."""
    video, seams = videos.tiny.decode({"samples": videos.first()}), []
    while len(video) < variant.frames:
        picture = video[-1].movedim(0, -1)[None]
        job = videos.tiny.job_of(picture, videos.truth, videos.seed)
        new = videos.tiny.decode({"samples": videos.sample(job, len(seams) + 1, guided)})
        seams.append(len(video))
        video = torch.cat([video, new[1:]])
    return video, seams


@counted
def pinned(
    videos: LongVideos,
    variant: Variant,
    guided: bool = False,
    anchored: bool = False,
    last_picture: bool = False,
    **inputs,
) -> tuple:
    """VCUT Continue Video and VCUT Join Videos.

    anchored: each latent channel of a new frame has the mean that it has in frame 1. last_picture:
    picture and embedding are of the last overlap frame.
    """
    overlap, nodes = NUM_FRAMES - variant.new, videos.tiny.nodes
    samples, seams = videos.first(variant.saves), []
    while len(samples) < variant.frames:
        shared = {
            "clip_vision": videos.tiny.clip_vision, "vae": videos.tiny.vae,
            "samples": {"samples": samples}, "video_frames": NUM_FRAMES,
            "motion_bucket_id": int(videos.truth.motion_bucket[0]), "fps": FPS, **inputs,
        }  # fmt: skip
        *conds, latent = nodes.call("VCUT_ContinueVideo", overlap=overlap, **shared)
        if last_picture:
            conds = nodes.call("VCUT_ContinueVideo", overlap=1, **shared)[:2]
        job = videos.tiny.job(videos.truth, videos.seed)
        job = replace(job, positive=conds[0], negative=conds[1], latent=latent)
        new = videos.sample(job, len(seams) + 1, guided, variant.saves)
        if anchored:
            new = new + (samples[:1] - new).mean((2, 3), keepdim=True)
        seams.append(len(samples))
        (joined,) = nodes.call(
            "VCUT_JoinVideos", samples={"samples": samples},
            continuation={"samples": new, "noise_mask": latent["noise_mask"]}, overlap=overlap,
        )  # fmt: skip
        samples = joined["samples"]
    return videos.decode(samples), seams


@counted
def clean_prefix(
    videos: LongVideos, variant: Variant, causal: bool = False, tuned: bool = False
) -> tuple:
    """As VCUT Continue Video, but the overlap is given clean, as Ca2-VDM does."""
    from rivals.clean_prefix import with_clean_prefix

    nodes, samples, seams = videos.tiny.nodes, videos.first(), []
    model = videos.tuned if tuned else videos.tiny.model
    while len(samples) < variant.frames:
        positive, negative, latent = nodes.call(
            "VCUT_ContinueVideo", clip_vision=videos.tiny.clip_vision, vae=videos.tiny.vae,
            samples={"samples": samples}, overlap=OVERLAP, video_frames=NUM_FRAMES,
            motion_bucket_id=int(videos.truth.motion_bucket[0]), fps=FPS,
        )  # fmt: skip
        prefix = model.model.process_latent_in(samples[-OVERLAP:])
        job = replace(
            videos.tiny.job(videos.truth, videos.seed + 1000 * (len(seams) + 1)),
            positive=positive, negative=negative, latent=latent, cfg=1.0,
        )  # fmt: skip
        new = one_sampler(nodes, with_clean_prefix(model, prefix, causal), job)["samples"]
        seams.append(len(samples))
        samples = torch.cat([samples, new[OVERLAP:]])
    return videos.decode(samples), seams


@counted
def at_once(videos: LongVideos, variant: Variant, windows: bool) -> tuple:
    """All frames in one run, guided, as they are or in the host's context windows."""
    job = videos.tiny.job(videos.truth, videos.seed)
    latent = {"samples": torch.zeros(variant.frames, *job.latent["samples"].shape[1:])}
    model = videos.tiny.guided(videos.tiny.model)
    if windows:
        model = videos.tiny.nodes.patch(
            "ContextWindowsManual", model, context_length=NUM_FRAMES, context_overlap=4
        )
        # ComfyUI 0.3.75 fails with SVD where there are not as many sigmas as frames.
        job = replace(job, steps=variant.frames - 1)
    made = one_sampler(videos.tiny.nodes, model, replace(job, latent=latent))
    return videos.decode(made["samples"]), [NUM_FRAMES]


VARIANTS = (
    Variant("last frame as the picture, guided", partial(naive_chain, guided=True), 13),
    Variant("last frame as the picture, unguided", partial(naive_chain, guided=False), 13),
    Variant("VCUT, overlap 4", pinned, 10),
    Variant("VCUT, overlap 4, all savings", pinned, 10, saves=True),
    Variant("overlap 1", pinned, 13, is_short=True),
    Variant("overlap 2", pinned, 12, is_short=True),
    Variant("overlap 6", pinned, 8, is_short=True),
    Variant("overlap 4, guided", partial(pinned, guided=True), 10, is_short=True),
    Variant(
        "overlap 4, guided, the negative keeps the picture",
        partial(pinned, guided=True, negative_picture="keep"), 10, is_short=True,
    ),
    Variant(
        "overlap 4, picture of its last frame", partial(pinned, last_picture=True), 10,
        is_short=True,
    ),
    Variant("overlap 4, anchored colour", partial(pinned, anchored=True), 10, is_short=True),
    Variant("overlap 4 given clean (Ca2-VDM)", clean_prefix, 10, is_short=True),
    Variant(
        "overlap 4 given clean and cached", partial(clean_prefix, causal=True), 10,
        is_short=True, at_once=10,
    ),
    Variant(
        "overlap 4 given clean and cached, tuned", partial(clean_prefix, causal=True, tuned=True),
        10, is_short=True, at_once=10,
    ),
    Variant("34 at once", partial(at_once, windows=False), SHORT, is_short=True, at_once=SHORT),
    Variant(
        "34 in context windows, 33 steps", partial(at_once, windows=True), SHORT, is_short=True
    ),
)  # fmt: skip
MAIN = tuple(variant.name for variant in VARIANTS if not variant.is_short)
NAIVE, UNGUIDED, OURS, SAVING = MAIN


def measure(made: Made, variant: Variant, truth: Videos) -> dict:
    """Return what is told of one video; lists have a value for each frame."""
    true = truth.frames[0, : len(made.pixels)]
    colour_error = 255 * (made.pixels.mean((2, 3)) - true.mean((2, 3))).abs().mean(1)
    step = made.pixels.diff(dim=0).square().mean((1, 2, 3)).sqrt()
    is_seam = torch.zeros(len(step), dtype=torch.bool)
    is_seam[[seam - 1 for seam in made.seams if seam <= len(step)]] = True
    centre, _ = centroids(made.pixels[None], truth.colour)
    true_centre, _ = centroids(true[None], truth.colour)
    way, true_way = (c[0, -1] - c[0, NUM_FRAMES - 1] for c in (centre, true_centre))
    # All frames of the continuations, cut off or not.
    new_frames = len(made.seams) * variant.new
    return {
        "psnr": [round(value, 3) for value in psnr(true, made.pixels).tolist()],
        "colour_error": [round(value, 3) for value in colour_error.tolist()],
        "seam": (step[is_seam].mean() / step[~is_seam].mean()).item(),
        "speed": (way @ true_way / (true_way @ true_way)).item(),
        "per_new_frame": variant.at_once * made.evaluations / new_frames,
    }
