"""A real ComfyUI in this process, with the tiny SVD loaded in it."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from host_install import current_host
from host_launcher import make_comfyui_importable

COMFYUI = current_host().comfyui
make_comfyui_importable(COMFYUI)

import nodes as comfy_nodes  # noqa: E402

assert comfy_nodes.__file__.startswith(str(COMFYUI)), comfy_nodes.__file__

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning  # noqa: E402
from tiny_svd.loader import load_tiny_svd  # noqa: E402

STACKS = {"spatial": ".transformer_blocks.", "temporal": ".time_stack."}


@dataclass
class TinySVD:
    """The tiny model and one picture's conditioning, as the stock nodes make them."""

    model: object
    clip_vision: object
    vae: object

    def conditioning(self, seed: int = 0, frames: int = 4, size: int = 96, pictures: int = 1):
        """Return (positive, negative, latent) for seeded random pictures of size x size.

        From 96 pixels on, the deepest level is more than 1x1: below, its GroupNorm spans two
        values and turns the last bit of rounding into a sign.
        """
        generator = torch.Generator().manual_seed(seed)
        picture = torch.rand(pictures, size, size, 3, generator=generator)
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

    def sample_with(self, guider, latent, *, steps: int, cfg=None, seed: int = 0):
        """Return the latent that ``guider`` makes with euler on a karras schedule."""
        if cfg is not None:
            guider.set_cfg(cfg)
        noise = comfy.sample.prepare_noise(latent["samples"], seed)
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, latent["samples"], sampler, self.sigmas(steps), seed=seed)

    def sigmas(self, steps: int, scheduler: str = "karras"):
        """Return the schedule of a whole run, length steps + 1."""
        sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)

    def cross_attention_paths(self, *kinds: str) -> list[str]:
        """Return the paths of attn2 from the model, found by their names alone."""
        return [
            f"diffusion_model.{name}"
            for name, _ in self.model.model.diffusion_model.named_modules()
            if name.endswith(".attn2") and any(STACKS[kind] in name for kind in kinds)
        ]

    @contextmanager
    def hooked(self, hook, *kinds: str):
        """Put a forward hook on the model's own attn2 layers, whichever clone is loaded now."""
        layers = [self.model.get_model_object(path) for path in self.cross_attention_paths(*kinds)]
        handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture(scope="session")
def tiny() -> TinySVD:
    return TinySVD(*load_tiny_svd())


@pytest.fixture(scope="session")
def unpatched(tiny):
    """What the model makes in 25 steps without VCUT, sampled once for all tests."""
    return tiny.sample(steps=25)


@pytest.fixture(scope="session")
def biased(tiny):
    """A clone with a bias on every cross-attention, so that L(0) is not 0 and L not linear."""
    clone = tiny.model.clone()
    generator = torch.Generator().manual_seed(1)
    patches = {}
    for path in tiny.cross_attention_paths("spatial", "temporal"):
        width = tiny.model.get_model_object(path).to_out[0].bias.shape[0]
        bias = torch.randn(width, generator=generator)
        patches[f"{path}.to_out.0.bias"] = ("diff", (bias,))
    assert len(clone.add_patches(patches)) == 32
    return clone


@pytest.fixture(scope="session")
def traced():
    """Return a function: model -> (clone, list that fills with each call's cond_or_uncond)."""

    def make(model):
        trace = []

        def record(executor, x, timesteps, context, y, control, transformer_options, **rest):
            trace.append(list(transformer_options["cond_or_uncond"]))
            return executor(x, timesteps, context, y, control, transformer_options, **rest)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", record)
        return clone, trace

    return make


@pytest.fixture
def summaries(caplog):
    """Return a function that lists the summary lines of the runs so far."""
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        records = [record for record in caplog.records if "comfy_adapter" in record.name]
        return [r.getMessage() for r in records if r.levelno == logging.INFO]

    return lines


@pytest.fixture
def split_conds(tiny, monkeypatch):
    """Make ComfyUI believe that cond and uncond do not fit into memory together."""
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda *args, **kwargs: 1e30)


@pytest.fixture(scope="session")
def difference():
    """Return a function: the norm of a - b relative to that of b."""
    return lambda a, b: ((a - b).norm() / b.norm()).item()
