"""A real ComfyUI in this process, with the tiny SVD loaded in it."""

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from private_comfyui.install import current_host
from private_comfyui.launch import make_comfyui_importable

COMFYUI = current_host().comfyui
make_comfyui_importable(COMFYUI)

import nodes as comfy_nodes  # noqa: E402

assert comfy_nodes.__file__.startswith(str(COMFYUI)), comfy_nodes.__file__

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning  # noqa: E402
from full_size_svd import UNET  # noqa: E402
from host_nodes import HostNodes  # noqa: E402
from tiny_svd.demo_nodes import watch_evaluations  # noqa: E402
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

        A deepest level of 1x1 would be chaotic: GroupNorm over two values turns the last bit of
        rounding into a sign. At 96 pixels it is 3x3.
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
def nodes():
    """ComfyUI's nodes and ours, called by id; inputs that a newer host added take its defaults."""
    return HostNodes()


@pytest.fixture(scope="session")
def with_windows(nodes):
    """Return a function: model -> clone sampled in windows of two frames that share one."""
    # ComfyUI 0.33.0 puts a frame more into each window by default and does not tell SVD, whose
    # temporal layers then mix conds, or fail where there is one cond.
    known = nodes.inputs_of("ContextWindowsManual")
    plain = {"causal_window_fix": False} if "causal_window_fix" in known else {}

    def patch(model, **inputs):
        inputs = {"context_length": 2, "context_overlap": 1, **plain, **inputs}
        return nodes.patch("ContextWindowsManual", model, **inputs)

    return patch


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
def lora(tiny):
    """Weight patches on to_v and to_out of every attn2, as a LoRA's loader adds them."""
    generator = torch.Generator().manual_seed(2)
    patches = {}
    for path in tiny.cross_attention_paths("spatial", "temporal"):
        for name in ("to_v.weight", "to_out.0.weight"):
            shape = tiny.model.get_model_object(f"{path}.{name}").shape
            change = torch.randn(shape, generator=generator) / shape[1] ** 0.5
            patches[f"{path}.{name}"] = ("diff", (change,))
    return patches


@pytest.fixture(scope="session")
def traced():
    """Return a function: model -> (clone, list that fills with each call's cond_or_uncond)."""

    def make(model):
        trace = []

        def record(executor, *args, **kwargs):
            unet = executor.class_obj.model_patcher.model.diffusion_model
            with watch_evaluations(unet, trace.append):
                return executor(*args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", record)
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


@pytest.fixture(scope="session")
def make_full_size():
    """Return a function: SVD at full size on the meta device, shapes that take no memory."""

    def make():
        config = comfy.supported_models.SVD_img2vid(UNET)
        config.set_inference_dtype(torch.float16, None)
        model = comfy.model_base.SVD_img2vid(config, device="meta")
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    return make


@pytest.fixture
def full_size(make_full_size):
    """A ModelPatcher of SVD at full size without its weights, this test's own."""
    return make_full_size()


class ReferenceGuider(comfy.samplers.CFGGuider):
    """Guides between two sigmas; elsewhere cond alone with a scaled embedding. No VCUT in it."""

    begins = math.inf
    limit = 0.0
    scale = 1.0

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        if self.limit < timestep[0] < self.begins:
            return super().predict_noise(x, timestep, model_options, seed)
        cond = [self._scaled(entry) for entry in self.conds["positive"]]
        denoised, _ = comfy.samplers.calc_cond_batch(
            self.inner_model, [cond, None], x, timestep, model_options
        )
        prediction = denoised
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({
                "denoised": denoised, "cond": cond, "uncond": self.conds["negative"],
                "cond_scale": self.cfg, "model": self.inner_model, "uncond_denoised": prediction,
                "cond_denoised": prediction, "sigma": timestep, "model_options": model_options,
                "input": x,
            })  # fmt: skip
        return denoised

    def _scaled(self, entry: dict) -> dict:
        model_conds = dict(entry["model_conds"])
        embedding = model_conds["c_crossattn"]
        model_conds["c_crossattn"] = type(embedding)(embedding.cond * self.scale)
        return {**entry, "model_conds": model_conds}


@pytest.fixture(scope="session")
def sample_cut_reference(tiny):
    """Return a function: what a run guided up to a step must give, computed without VCUT."""

    def sample(
        model, *, steps, last_guided_step, num_unguided_first=0, scale=0.5, cfg=2.5,
        sampler="euler", scheduler="karras", seed=0, conditioning=None,
    ):  # fmt: skip
        guider = ReferenceGuider(model)
        schedule = comfy.samplers.KSampler(
            model, steps=steps, device="cpu", sampler=sampler, scheduler=scheduler
        )
        guider.limit = float(schedule.sigmas[last_guided_step]) * (1 + 1e-5)
        if num_unguided_first:
            guider.begins = float(schedule.sigmas[num_unguided_first]) * (1 + 1e-5)
        guider.scale = scale
        guider.set_cfg(cfg)
        positive, negative, latent = conditioning or tiny.conditioning()
        guider.set_conds(positive, negative)
        noise = comfy.sample.prepare_noise(latent["samples"], seed)
        sampler = comfy.samplers.sampler_object(sampler)
        return guider.sample(noise, latent["samples"], sampler, schedule.sigmas, seed=seed)

    return sample


@pytest.fixture(scope="session")
def with_vcut():
    """Return a function: model -> clone with both nodes, never cut and cached unless told."""
    # Imported here: the pack needs ComfyUI importable first.
    from vcut.comfy_adapter import with_technique
    from vcut.vcut_core.cross_attention import CrossAttentionConfig
    from vcut.vcut_core.guidance_cut import MAX_STEPS, GuidanceConfig

    def patch(model, cut_step=MAX_STEPS, steps=1, after_cut="average", **options):
        layers = CrossAttentionConfig(options.pop("temporal", "cached"))
        guidance = GuidanceConfig(cut_step, steps, after_cut, **options)
        return with_technique(with_technique(model, layers), guidance)

    return patch


# Of one level, with four video transformers: quick to build, copy and compile.
SMALL_UNET = {
    **UNET,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "context_dim": 64,
}


@pytest.fixture(scope="session")
def make_small_svd():
    """Return a function that builds a small SVD of ComfyUI's classes with seeded weights.

    base: ComfyUI's config class; its adm_in_channels is kept. dtype: of the weights; manual_cast:
    what the host casts them to when used. unet: changes to the UNet's config.
    """

    def make(
        base=comfy.supported_models.SVD_img2vid, seed=0, dtype=torch.float32, manual_cast=None,
        **unet,
    ):  # fmt: skip
        extra = {**base.unet_extra_config, "num_head_channels": 32}
        config_class = type(f"Small{base.__name__}", (base,), {"unet_extra_config": extra})
        adm = base.unet_config["adm_in_channels"]
        config = config_class({**SMALL_UNET, "adm_in_channels": adm, **unet})
        config.set_inference_dtype(dtype, manual_cast)
        model = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.diffusion_model.named_parameters():
            weight.data.copy_(_small_weight(name, weight.shape, generator))
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    return make


def _small_weight(name: str, shape: torch.Size, generator) -> torch.Tensor:
    random = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * random
    if len(shape) < 2:
        return 1 + 0.1 * random
    gain = 0.1 if name == "out.2.weight" else 1.0  # a small last layer keeps the sampler stable
    return gain * random / shape[1:].numel() ** 0.5
