"""Writes tiny_svd.safetensors with seeded random weights. Run it with ComfyUI on sys.path.

The widths below decide the size of the file; everything else about the architecture is SVD's own.
"""

import json
from pathlib import Path

from comfy.cli_args import args

args.cpu = True  # before comfy.model_management looks for a GPU

import comfy.clip_model
import comfy.ldm.models.autoencoder
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
SEED = 2407
UNET = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 1, 2, 2],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
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


def random_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Return seeded fp16 weights of these shapes that keep activations of order 1."""
    generator = torch.Generator().manual_seed(SEED)
    return {name: _random(name, torch.Size(s), generator).half() for name, s in shapes.items()}


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    fan_in = shape[1:].numel()
    # A small last layer keeps the sampler stable.
    gain = 0.1 if name.endswith("diffusion_model.out.2.weight") else 1.0
    return gain * torch.randn(shape, generator=generator) / fan_in**0.5


def tiny_shapes() -> dict[str, torch.Size]:
    """Return the shapes of UNet, VAE and image encoder under SVD's own keys."""
    clip_config = json.loads((FOLDER / "clip_vision_config.json").read_text())
    vae_config = json.loads((FOLDER / "vae_config.json").read_text())
    operations = comfy.ops.disable_weight_init
    modules = {
        "model.diffusion_model.": UNetModel(**UNET, operations=operations),
        "first_stage_model.": comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig=vae_config, embed_dim=4
        ),
        "conditioner.embedders.0.open_clip.model.visual.": (
            comfy.clip_model.CLIPVisionModelProjection(clip_config, None, None, operations)
        ),
    }
    return {
        prefix + name: weight.shape
        for prefix, module in modules.items()
        for name, weight in module.state_dict().items()
    }


if __name__ == "__main__":
    weights = random_weights(tiny_shapes())
    save_file(weights, FOLDER / "tiny_svd.safetensors")
    count = sum(weight.numel() for weight in weights.values())
    print(f"{count:,} parameters")
