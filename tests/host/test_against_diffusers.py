"""VCUT on ComfyUI beside a second implementation of the UNet: Hugging Face diffusers.

Both run the tiny SVD for 25 steps from the same noise, conditioning and schedule. What the paper
does to the model is written into diffusers' own layers, literally.
"""

from functools import cache

import comfy.sample
import pytest
import torch

pytest.importorskip("diffusers", reason="needs Hugging Face diffusers, which this host lacks")

from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline  # noqa: E402
from diffusers.models import AutoencoderKLTemporalDecoder  # noqa: E402
from vcut.tests.support.diffusers_unet import (  # noqa: E402
    EDMSampler,
    averaged_with_zero_embedding,
    build_unet,
    remove_temporal_cross_attention,
)

# Said by numpy of what diffusers does with its unused betas.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS, CFG = 25, 2.5
ROUNDING = 2e-6  # relative, of fp32 after 25 steps
FPS, MOTION_BUCKET, AUGMENTATION = 6, 127, 0.0  # of tiny.conditioning
SVD_SCHEDULER = {  # what shapes sigmas in SVD's scheduler_config.json, beside use_karras_sigmas
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
}


@pytest.fixture(scope="module")
def inputs(tiny):
    """(noise (T, 4, h, w), picture (1, 4, h, w), embedding (1, 1, D)) of the default run."""
    [[embedding, options]], _, latent = tiny.conditioning()
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    return noise, options["concat_latent_image"], embedding


@pytest.fixture(scope="module")
def make_unet(tiny):
    """Return a function: the tiny SVD's UNet in diffusers, a new one."""
    model = tiny.model.model
    return lambda: build_unet(
        model.diffusion_model.state_dict(),
        levels=len(model.model_config.unet_config["channel_mult"]),
        layers=model.model_config.unet_config["num_res_blocks"][0],
        head_width=model.model_config.unet_extra_config["num_head_channels"],
    )


@pytest.fixture(scope="module")
def guided_run(tiny, inputs, make_unet):
    """Return a function: without temporal layers? -> (sampler, latent at every sigma)."""

    @cache
    def run(without_temporal):
        noise, picture, embedding = inputs
        unet = make_unet()
        if without_temporal:
            remove_temporal_cross_attention(unet)
        numbers = torch.tensor([[FPS - 1, MOTION_BUCKET, AUGMENTATION]])
        sampler = EDMSampler(unet, picture, embedding, numbers)
        sigmas = tiny.sigmas(STEPS)
        return sampler, sampler.latents(noise * (1 + sigmas[0] ** 2) ** 0.5, sigmas, CFG)

    return run


@pytest.fixture(scope="module")
def sample_reference(tiny, guided_run):
    """Return a function: what diffusers' layers make, as ComfyUI's latent (T, 4, h, w)."""

    def sample(temporal="cached", cut_step=None):
        sampler, latents = guided_run(temporal == "remove")
        if cut_step is not None:
            start, sigmas = latents[cut_step - 1], tiny.sigmas(STEPS)[cut_step - 1 :]
            with averaged_with_zero_embedding(sampler.unet):
                latents = sampler.latents(start, sigmas)
        return tiny.model.model.latent_format.process_out(latents[-1])

    return sample


@pytest.fixture(scope="module")
def reference(sample_reference):
    """What diffusers makes of the stock model."""
    return sample_reference()


@pytest.fixture(scope="module")
def sample(tiny, nodes):
    """Return a function: what ComfyUI makes with the nodes [(id, inputs)] on the model line."""

    def sample(*patches):
        model = nodes.patch("VideoLinearCFGGuidance", tiny.model, min_cfg=1.0)
        for node, options in patches:
            model = nodes.patch(node, model, **options)
        return tiny.sample(model, steps=STEPS, cfg=CFG)

    return sample


@pytest.fixture(scope="module")
def stock(sample):
    """What ComfyUI makes without VCUT."""
    return sample()


def test_stock_model_agrees(stock, reference, difference):
    assert difference(stock, reference) < ROUNDING


def test_cached_cross_attention_agrees(sample, reference, difference):
    assert difference(sample(("VCUT_PatchSVDModel", {})), reference) < ROUNDING


def test_slicing_everything_agrees(sample, reference, difference):
    sliced = sample(("VCUT_FeatureSlicer", {"slices": 3, "scope": "everything"}))
    assert difference(sliced, reference) < ROUNDING


def test_removed_temporal_cross_attention_agrees(sample, sample_reference, difference):
    output = sample(("VCUT_PatchSVDModel", {"temporal": "remove"}))
    assert difference(output, sample_reference("remove")) < ROUNDING


# The last is the paper's own setting.
@pytest.mark.parametrize(
    ("cut_step", "temporal"), [(10, "cached"), (17, "cached"), (20, "cached"), (17, "remove")]
)
def test_cut_agrees_with_the_papers_equation(
    sample, sample_reference, reference, difference, cut_step, temporal
):
    output = sample(
        ("VCUT_PatchSVDModel", {"temporal": temporal}),
        ("VCUT_GuidanceScheduler", {"cut_step": cut_step, "steps": STEPS}),
    )
    expected = sample_reference(temporal, cut_step)
    assert difference(output, expected) < ROUNDING
    assert difference(expected, reference) > 1e-3  # or the cut would not show


# Of the other schedulers of ComfyUI none is equal to one of diffusers.
@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("karras", "karras"), ("exponential", "exponential"), ("normal", "exponential")],
)
def test_schedule_is_that_of_diffusers(tiny, scheduler, kind):
    theirs = EulerDiscreteScheduler(**SVD_SCHEDULER, **{f"use_{kind}_sigmas": True})
    theirs.set_timesteps(STEPS)
    sigmas = tiny.sigmas(STEPS, scheduler)
    torch.testing.assert_close(theirs.sigmas, sigmas, rtol=1e-5, atol=0)
    torch.testing.assert_close(theirs.timesteps, sigmas[:-1].log() / 4, rtol=0, atol=1e-5)


class PipelineAfterEncoding(StableVideoDiffusionPipeline):
    """The pipeline of diffusers with what ComfyUI's encoders made of the picture."""

    def _encode_image(self, *_):
        return torch.cat([torch.zeros_like(self.embedding), self.embedding])

    def _encode_vae_image(self, *_, **__):
        return torch.cat([torch.zeros_like(self.picture), self.picture])


def test_whole_pipeline_of_diffusers_agrees(tiny, inputs, make_unet, stock, difference):
    noise, picture, embedding = inputs
    pipeline = PipelineAfterEncoding(
        vae=AutoencoderKLTemporalDecoder(block_out_channels=(32,) * 4),  # read for its scale, 8
        image_encoder=None,
        unet=make_unet(),
        scheduler=EulerDiscreteScheduler(**SVD_SCHEDULER, use_karras_sigmas=True),
        feature_extractor=None,
    )
    pipeline.picture, pipeline.embedding = picture, embedding
    pipeline.set_progress_bar_config(disable=True)
    height, width = (8 * side for side in noise.shape[2:])
    output = pipeline(
        torch.zeros(1, 3, height, width),
        height,
        width,
        num_frames=len(noise),
        num_inference_steps=STEPS,
        min_guidance_scale=1.0,
        max_guidance_scale=CFG,
        fps=FPS,
        motion_bucket_id=MOTION_BUCKET,
        noise_aug_strength=AUGMENTATION,
        latents=noise[None],
        output_type="latent",
    ).frames[0]
    assert difference(stock, tiny.model.model.latent_format.process_out(output)) < ROUNDING
