"""The tiny SVD in ComfyUI: its parts, and the stock graph's job for a first frame of its world."""

from pathlib import Path

from evaluate import CFG, MIN_CFG
from host_nodes import HostNodes
from sampling_jobs import PAPER_STEPS, Job
from tiny_svd.loader import WEIGHTS, load_tiny_svd
from video_world import FPS, NUM_FRAMES, SIZE, Videos


class TinySVD:
    """The model, image encoder and VAE, with ComfyUI's nodes and ours to call on them."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self.nodes = HostNodes()
        self.model, self.clip_vision, self.vae = load_tiny_svd(weights)

    def guided(self, model):
        """Return a clone of a model whose guidance rises over the frames, as SVD's."""
        return self.nodes.patch("VideoLinearCFGGuidance", model, min_cfg=MIN_CFG)

    def job(self, truth: Videos, seed: int, steps: int = PAPER_STEPS) -> Job:
        """Return the job of the only first frame in ``truth``."""
        return self.job_of(truth.frames[0, 0].movedim(0, -1)[None], truth, seed, steps)

    def job_of(self, picture, truth: Videos, seed: int, steps: int = PAPER_STEPS) -> Job:
        """Return the job of a picture (1, H, W, 3) that moves as ``truth`` does."""
        positive, negative, latent = self.nodes.call(
            "SVD_img2vid_Conditioning", clip_vision=self.clip_vision, vae=self.vae,
            init_image=picture, width=SIZE, height=SIZE, video_frames=NUM_FRAMES,
            motion_bucket_id=int(truth.motion_bucket[0]), fps=FPS,
        )  # fmt: skip
        return Job(positive, negative, latent, steps, cfg=CFG, seed=seed)

    def decode(self, latent: dict):
        """Return the frames (T, 3, H, W) in 0..1 of a latent, as VAE Decode gives them."""
        (frames,) = self.nodes.call("VAEDecode", samples=latent, vae=self.vae)
        return frames[..., :3].movedim(-1, 1).float()
