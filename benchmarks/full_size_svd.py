"""SVD at full size with random weights, made in memory, and a picture's conditioning for it.

For what does not depend on the values of weights: time and memory. They keep activations of order
one, so that fp16 stays finite; the videos are noise.
"""

from types import SimpleNamespace

import torch

SEED = 2407
# Of SVD and SVD-XT, from Stability AI's svd.yaml; heads come from ComfyUI's own config.
UNET = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 1024,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
}
PARAMETERS = 1_524_623_082
# Of the VAE, from the same file; ComfyUI's comfy/sd.py has the same.
VAE = {
    "ch": 128,
    "out_ch": 3,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 256,
    "z_channels": 4,
    "double_z": True,
}
OVER_TIME = {"video_kernel_size": [3, 1, 1], "alpha": 0.0}


def make_svd(dtype: torch.dtype, unet: dict | None = None):
    """Return a ModelPatcher of SVD with seeded random weights of ``dtype``.

    unet: changes to UNET, for a smaller one. Cast and placed as ComfyUI does with a checkpoint's.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    config = comfy.supported_models.SVD_img2vid({**UNET, **(unet or {})})
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model({}, device=offload_device)
    fill_with_random_weights(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, device, offload_device)


def make_video_vae(dtype: torch.dtype, **changes):
    """Return a VAE (comfy.sd.VAE) of SVD with seeded random weights. changes: to VAE."""
    import comfy.sd

    autoencoder = make_video_autoencoder(**changes)
    fill_with_random_weights(autoencoder)
    weights = {name: weight.to(dtype) for name, weight in autoencoder.state_dict().items()}
    return comfy.sd.VAE(sd=weights, dtype=dtype)


def make_video_autoencoder(**changes):
    """Return SVD's VAE, pixels (N, 3, H, W) to latents (N, 4, H/8, W/8) and back.

    Its weights are not set. changes: to VAE, for a smaller one.
    """
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    modules = "comfy.ldm.modules"
    sizes = {**VAE, **changes}
    return AutoencodingEngine(
        regularizer_config={
            "target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer",
        },
        encoder_config={"target": f"{modules}.diffusionmodules.model.Encoder", "params": sizes},
        decoder_config={
            "target": f"{modules}.temporal_ae.VideoDecoder",
            "params": {**sizes, **OVER_TIME},
        },
    )


def fill_with_random_weights(module: torch.nn.Module) -> None:
    """Set every parameter: weights by fan-in, norms near one, small biases."""
    generator = torch.Generator().manual_seed(SEED)
    for name, weight in module.named_parameters():
        with torch.no_grad():
            if weight.ndim < 2:
                mean = 0.0 if name.endswith("bias") else 1.0
                weight.normal_(mean, 0.1, generator=generator)
            else:  # a small last layer keeps the sampler stable
                gain = 0.1 if name == "out.2.weight" else 1.0
                fan_in = weight.shape[1:].numel()
                weight.normal_(0.0, gain / fan_in**0.5, generator=generator)


class RandomImageEncoder:
    """In place of CLIP_VISION, which a UNet's time does not depend on: a seeded embedding."""

    def __init__(self, width: int = UNET["context_dim"]) -> None:
        self._width = width

    def encode_image(self, picture: torch.Tensor) -> SimpleNamespace:
        """Return image_embeds (N, width) for pictures (N, H, W, 3)."""
        return SimpleNamespace(image_embeds=_random((len(picture), self._width)))


class RandomVAE:
    """In place of VAE: a seeded latent."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return a latent (N, 4, H/8, W/8) for pixels (N, H, W, 3)."""
        count, height, width, _ = pixels.shape
        return _random((count, 4, height // 8, width // 8))


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
