"""A real ComfyUI in this process, with the tiny SVD loaded in it."""

import sys
from dataclasses import dataclass

import pytest
from host_install import current_host
from host_launcher import has_accelerator, make_torchvision_importable

COMFYUI = current_host().comfyui
sys.path.insert(0, str(COMFYUI))

make_torchvision_importable()
from comfy.cli_args import args  # noqa: E402

args.cpu = not has_accelerator()
import utils.extra_config  # noqa: E402, F401  ComfyUI's utils; its nodes.py would hide the folder

import nodes as comfy_nodes  # noqa: E402, I001

assert comfy_nodes.__file__.startswith(str(COMFYUI)), comfy_nodes.__file__

import torch  # noqa: E402
from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning  # noqa: E402
from tiny_svd.loader import load_tiny_svd  # noqa: E402


@dataclass
class TinySVD:
    """The tiny model and one picture's conditioning, as the stock nodes make them."""

    model: object
    clip_vision: object
    vae: object

    def conditioning(self, seed: int = 0, frames: int = 4, size: int = 96):
        """Return (positive, negative, latent) for a seeded random picture of size x size.

        From 96 pixels on, the deepest level is more than 1x1: below, its GroupNorm spans two
        values and turns the last bit of rounding into a sign.
        """
        generator = torch.Generator().manual_seed(seed)
        picture = torch.rand(1, size, size, 3, generator=generator)
        return SVD_img2vid_Conditioning().encode(
            self.clip_vision, picture, self.vae, size, size, frames, 127, 6, 0.0
        )

    def sample(
        self,
        model=None,
        *,
        steps: int = 25,
        cfg: float = 2.5,
        sampler: str = "euler",
        scheduler: str = "karras",
        seed: int = 0,
        conditioning=None,
        **options,
    ):
        """Return the latent (T, 4, H/8, W/8) that the stock KSampler makes."""
        positive, negative, latent = conditioning or self.conditioning()
        (output,) = comfy_nodes.common_ksampler(
            model or self.model, seed, steps, cfg, sampler, scheduler, positive, negative, latent,
            **options,
        )  # fmt: skip
        return output["samples"]


@pytest.fixture(scope="session")
def tiny() -> TinySVD:
    return TinySVD(*load_tiny_svd())
