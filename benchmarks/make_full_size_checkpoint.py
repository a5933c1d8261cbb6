"""Writes an SVD checkpoint of full size with random weights, in the key layout of the real ones.

python3 benchmarks/make_full_size_checkpoint.py [FILE]

4.4 GB, fp16. For what does not depend on the values of weights: loading, memory, time.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "demo"))

from private_comfyui.install import current_host, run_inside  # noqa: E402
from private_comfyui.launch import make_comfyui_importable  # noqa: E402

DEFAULT_FILE = ROOT / ".venv" / "models" / "checkpoints" / "svd_xt_random.safetensors"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SEED = 2407
CLIP_VISION_PREFIX = "conditioner.embedders.0.open_clip.model.visual."


def main() -> int:
    """Write the checkpoint to the file named on the command line."""
    exit_code = run_inside(Path(__file__), sys.argv[1:])
    if exit_code is not None:
        return exit_code
    make_comfyui_importable(current_host().comfyui)
    from safetensors.torch import save_file

    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    shapes = {**unet_shapes(), **vae_shapes(), **clip_vision_shapes()}
    save_file(random_weights(shapes), file)
    print(f"{file} ({file.stat().st_size / 1e9:.2f} GB)")
    return 0


def random_weights(shapes: dict) -> dict:
    """Return seeded fp16 weights of these shapes that keep activations of order 1."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return {name: _random(name, torch.Size(s), generator).half() for name, s in shapes.items()}


def _random(name: str, shape, generator):
    import torch

    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    # A small last layer keeps the sampler stable.
    gain = 0.1 if name.endswith("diffusion_model.out.2.weight") else 1.0
    return gain * torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5


def unet_shapes() -> dict:
    """Return the shapes of SVD-XT's UNet under the checkpoint's keys."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from full_size_svd import UNET

    config = {**UNET, "num_head_channels": 64}
    operations = comfy.ops.disable_weight_init
    unet = UNetModel(**config, operations=operations, device=torch.device("meta"))
    return {UNET_PREFIX + name: weight.shape for name, weight in unet.state_dict().items()}


def vae_shapes() -> dict:
    """Return the shapes of SVD's VAE with its temporal decoder, as ComfyUI builds it."""
    import torch
    from full_size_svd import make_video_autoencoder

    with torch.device("meta"):
        vae = make_video_autoencoder()
    return {VAE_PREFIX + name: weight.shape for name, weight in vae.state_dict().items()}


def clip_vision_shapes(width: int = 1280, layers: int = 32) -> dict:
    """Return the shapes of the image encoder, OpenCLIP ViT-H/14, under OpenCLIP's own keys."""
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (257, width),
        "proj": (width, 1024),
        "conv1.weight": (width, 3, 14, 14),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        for name, rows, columns in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", 4 * width, width),
            ("mlp.c_proj", width, 4 * width),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
    return {CLIP_VISION_PREFIX + name: shape for name, shape in shapes.items()}


if __name__ == "__main__":
    sys.exit(main())
