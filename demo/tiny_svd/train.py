"""Trains the tiny SVD from nothing to tiny_svd.safetensors. Run it again to go on where it ended.

    .venv/bin/python demo/tiny_svd/train.py --work ~/vcut-training [--world camera]

Stages: vae, image encoder, latents (videos encoded once), unet, export, and the time layers of the
VAE's decoder, which start from what was exported. GPU where there is one.
"""

import argparse
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from architecture import (
    CLIP_VISION_PREFIX,
    FOLDER,
    LATENT_SCALE,
    UNET_PREFIX,
    VAE,
    VAE_PREFIX,
    build_image_encoder,
    build_unet,
    build_vae,
    build_video_decoder,
    clip_pixels,
    state_dict_of,
    time_layers_of,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
from encoded_videos import encode_videos, load_videos
from safetensors.torch import load_file, save_file
from trainer import DEVICE, Stage, autocast, load_trained, step_generator, train
from video_world import FPS, NUM_FRAMES
from worlds import NAMES, World, fetch_photographs, world_named

SEED = 2407
STAGES = ("vae", "image_encoder", "latents", "unet", "export", "time_layers")
LATENT_NOISE = 0.05  # standard deviations: the decoder must bear what the UNet gets wrong
CONTEXT_DROPPED, CONCAT_DROPPED, BOTH_DROPPED = 0.05, 0.05, 0.10
SIGMA_LOG_MEAN, SIGMA_LOG_STD = 0.7, 1.6


def begin(module: torch.nn.Module, prefix: str, weights: Path | None) -> torch.nn.Module:
    """Load the weights of an exported file that have the prefix; leave all as it is for None.

    Raises FileNotFoundError.
    """
    if weights is not None:
        saved = load_file(weights).items()
        named = {n[len(prefix) :]: w.float() for n, w in saved if n.startswith(prefix)}
        module.load_state_dict(named)
    return module


def train_vae(stage: Stage, world: World, start: Path | None, batch: int) -> bool:
    """Train the autoencoder on single frames; its latents come near unit variance.

    Where the camera moves, moved latents must decode to the moved picture, so that a UNet can pan
    by interpolation. After EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509), with small motions.
    """
    vae = begin(build_vae(SEED), VAE_PREFIX, start)
    if start is not None:  # exported with latents of SVD's size
        _scale_latents(vae, torch.tensor(LATENT_SCALE))
    vae = vae.to(DEVICE, memory_format=torch.channels_last)

    def loss_of(step: int) -> dict:
        generator = step_generator(SEED, step)
        frame = int(torch.randint(NUM_FRAMES, (), generator=generator))
        frames = world.make(batch, seed=10_000_000 + step, frames=[frame]).frames[:, 0]
        pixels = (2 * frames - 1).to(DEVICE, memory_format=torch.channels_last)
        with autocast():
            latent = vae.encode(pixels).float()
            noise = torch.randn(latent.shape, generator=generator).to(DEVICE)
            seen = latent + LATENT_NOISE * noise
            if world.camera_moves and step % 2:
                motion = _small_motions(batch, generator).to(DEVICE)
                seen, pixels = _moved(seen, motion), _moved(pixels, motion)
            output = vae.decode(seen)
        error = output.float() - pixels
        mse = error.square().mean()
        mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        spread = mean.square().mean() + (std - 1).square().mean()
        psnr = 10 * torch.log10(4 / mse.detach())
        return {"loss": mse + 0.1 * error.abs().mean() + 0.01 * spread, "psnr": psnr}

    return train(stage, vae, loss_of)


def _small_motions(batch: int, generator) -> torch.Tensor:
    """Return affine maps (B, 2, 3) that shift by up to 8 % of the side and zoom by up to 25 %."""
    chance = 2 * torch.rand(batch, 3, generator=generator) - 1
    scale = (0.22 * chance[:, :1]).exp()[:, :, None] * torch.eye(2)  # (B, 2, 2)
    return torch.cat([scale, 0.16 * chance[:, 1:, None]], 2)


def _moved(pictures: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(motion, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def train_image_encoder(stage: Stage, world: World, start: Path | None, batch: int) -> bool:
    """Train the image encoder to tell what the sprite is, where it is, and its colour."""
    encoder = begin(build_image_encoder(SEED + 1), CLIP_VISION_PREFIX, start)
    torch.manual_seed(SEED)
    head = torch.nn.Linear(64, world.num_kinds + 2 + 3)
    module = torch.nn.ModuleDict({"encoder": encoder, "head": head}).to(DEVICE)
    for layer in encoder.vision_model.encoder.layers:  # ComfyUI adds in place to what these keep
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))

    def loss_of(step: int) -> dict:
        videos = world.make(batch, seed=20_000_000 + step, frames=[0])
        answer = head(encoder(clip_pixels(videos.frames[:, 0].to(DEVICE)))[2])
        kind, centre, tint = answer.split([world.num_kinds, 2, 3], 1)
        direction = F.cross_entropy(kind, videos.direction.to(DEVICE))
        place = F.mse_loss(centre, (videos.path[:, 0] / world.size * 4 - 2).to(DEVICE))
        colour = F.mse_loss(tint, videos.colour.to(DEVICE) * 2 - 1)
        right = (kind.argmax(1) == videos.direction.to(DEVICE)).float().mean()
        return {"loss": direction + place + colour, "right": right, "place": place}

    return train(stage, module, loss_of)


def finished_vae(stage: Stage, world: World) -> torch.nn.Module:
    """Return the trained VAE with latents of mean 0 and variance 1 / LATENT_SCALE**2 exactly."""
    vae = load_trained(stage, build_vae(SEED)).to(DEVICE)
    with torch.no_grad():
        frames = [world.make(64, seed=30_000_000 + k, frames=[k]).frames for k in range(NUM_FRAMES)]
        pixels = 2 * torch.cat(frames)[:, 0].to(DEVICE) - 1
        latent = torch.cat([vae.encode(part) for part in pixels.split(32)])
        mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        vae.quant_conv.bias[:4] -= mean
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
        _scale_latents(vae, 1 / (std * LATENT_SCALE))
    return vae.eval()


@torch.no_grad()
def _scale_latents(vae, scale: torch.Tensor) -> None:
    """Make every latent channel ``scale`` (4,) or () times as large; pictures stay the same."""
    scale = scale.expand(4)
    vae.quant_conv.weight[:4] *= scale[:, None, None, None]
    vae.quant_conv.bias[:4] *= scale
    vae.post_quant_conv.weight /= scale[None, :, None, None]


def finished_image_encoder(stage: Stage, world: World) -> torch.nn.Module:
    """Return the trained image encoder with embeddings of mean square 1."""
    head = torch.nn.Linear(64, world.num_kinds + 2 + 3)
    module = torch.nn.ModuleDict({"encoder": build_image_encoder(SEED + 1), "head": head})
    encoder = load_trained(stage, module)["encoder"].to(DEVICE).eval()
    with torch.no_grad():
        frames = world.make(512, seed=40_000_000, frames=[0]).frames[:, 0].to(DEVICE)
        size = encoder(clip_pixels(frames))[2].square().mean().sqrt()
        encoder.visual_projection.weight /= size
    return encoder


def vector_conditioning(motion_bucket: torch.Tensor) -> torch.Tensor:
    """Return y (B, 768) for buckets (B,), as comfy.model_base.SVD_img2vid.encode_adm."""
    embed = Timestep(256)
    fps, augmentation = torch.full_like(motion_bucket, FPS - 1), torch.zeros_like(motion_bucket)
    return torch.cat([embed(value.float()) for value in (fps, motion_bucket, augmentation)], 1)


def diffusion_batch(videos: dict, size: int, generator) -> tuple[dict, torch.Tensor]:
    """Return the UNet's inputs and target v, all (B*T, ...), for randomly chosen videos.

    As ComfyUI's V_PREDICTION with EDM: input x / sqrt(sigma^2 + 1), timestep ln(sigma) / 4,
    v = (noise - sigma * clean) / sqrt(sigma^2 + 1).
    """
    chosen = torch.randint(len(videos["latents"]), (size,), generator=generator)
    latents = videos["latents"][chosen].float()  # (B, T, 4, h, w)
    sigma = torch.randn(size, generator=generator) * SIGMA_LOG_STD + SIGMA_LOG_MEAN
    sigma = sigma.exp()[:, None, None, None, None]
    noise = torch.randn(latents.shape, generator=generator)
    clean, norm = latents * LATENT_SCALE, (sigma**2 + 1).sqrt()
    lot = torch.rand(size, generator=generator)
    keep_context = (lot >= BOTH_DROPPED + CONTEXT_DROPPED).float()
    keep_concat = ((lot >= BOTH_DROPPED) & (lot < 1 - CONCAT_DROPPED)).float()
    first = (latents[:, :1] * keep_concat[:, None, None, None, None]).expand_as(latents)
    context = videos["context"][chosen] * keep_context[:, None]
    inputs = {
        "x": torch.cat([(clean + sigma * noise) / norm, first], 2).flatten(0, 1),
        "timesteps": (0.25 * sigma.log()).flatten().repeat_interleave(NUM_FRAMES),
        "context": context[:, None].repeat_interleave(NUM_FRAMES, 0),
        "y": vector_conditioning(videos["motion_bucket"][chosen]).repeat_interleave(NUM_FRAMES, 0),
    }
    target = ((noise - sigma * clean) / norm).flatten(0, 1)
    return {name: value.to(DEVICE) for name, value in inputs.items()}, target.to(DEVICE)


def train_unet(stage: Stage, videos: dict, start: Path | None, batch: int) -> bool:
    """Train the UNet to predict v."""
    unet = begin(build_unet(SEED + 2), UNET_PREFIX, start).to(DEVICE)
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):  # channels last a whole step takes 1.15 times
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))

    def loss_of(step: int) -> dict:
        inputs, target = diffusion_batch(videos, batch, step_generator(SEED + 2, step))
        with autocast():
            output = unet(**inputs, transformer_options={}, num_video_frames=NUM_FRAMES)
        error = (output.float() - target).square().mean((1, 2, 3)).view(batch, NUM_FRAMES)
        return {"loss": error.mean(), "last_frame": error[:, -1].mean()}

    return train(stage, unet, loss_of)


def export(path: Path, vae, encoder, unet_stage: Stage) -> None:
    """Write the checkpoint and the two json files that the loader reads beside it."""
    unet = load_trained(unet_stage, build_unet(SEED + 2))
    save_file(state_dict_of(vae, encoder, unet.state_dict()), path)
    (path.parent / "vae_config.json").write_text(json.dumps(VAE, indent=2) + "\n")
    if path.parent != FOLDER:
        shutil.copy(FOLDER / "clip_vision_config.json", path.parent)


def exported_vae(weights: Path) -> torch.nn.Module:
    """Return the VAE of an exported file. Raises FileNotFoundError."""
    return begin(build_vae(SEED), VAE_PREFIX, weights).to(DEVICE)


def train_time_layers(stage: Stage, world: World, weights: Path) -> bool:
    """Train the decoder's time layers on whole videos, and write them beside ``weights``.

    Everything else of the VAE stays as it is, and so do its latents.
    """
    vae = exported_vae(weights).requires_grad_(False)
    decoder = build_video_decoder(vae.decoder, SEED + 3).to(DEVICE).requires_grad_(False)
    time_layers = time_layers_of(decoder)
    for parameter in time_layers.values():
        parameter.requires_grad_(True)

    def loss_of(step: int) -> dict:
        generator = step_generator(SEED + 3, step)
        pixels = (2 * world.make(1, seed=60_000_000 + step).frames[0] - 1).to(DEVICE)
        with autocast():
            with torch.no_grad():
                latent = vae.encode(pixels).float()
                noise = torch.randn(latent.shape, generator=generator).to(DEVICE)
                latent = vae.post_quant_conv(latent + LATENT_NOISE / LATENT_SCALE * noise)
            output = decoder(latent)
        error = output.float() - pixels
        mse = error.square().mean()
        psnr = 10 * torch.log10(4 / mse.detach())
        return {"loss": mse + 0.1 * error.abs().mean(), "psnr": psnr}

    if not train(stage, torch.nn.ParameterList(time_layers.values()), loss_of):
        return False
    state = {VAE_PREFIX + "decoder." + n: w.detach().half().cpu() for n, w in time_layers.items()}
    save_file(state, weights.parent / "decoder_time_layers.safetensors")
    return True


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=NAMES, default="sprites")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--start", type=Path, help="an exported file, to begin with its weights")
    parser.add_argument("--output", type=Path, help="default: WORK/tiny_svd.safetensors")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="per stage")
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--time-layer-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=2400)
    parser.add_argument("--videos", type=int, default=8192)
    parser.add_argument("--vae-batch", type=int, default=8)
    parser.add_argument("--unet-batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=7e-4, help="of the UNet")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    """Run the stages in order. An unfinished VAE or image encoder ends the run, a UNet does not."""
    options = arguments()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    fetch_photographs(options.world, options.work)
    world = world_named(options.world, options.work)
    vae_stage = Stage("vae", options.work, options.vae_steps, 7e-4, minutes=options.minutes)
    encoder_stage = replace(vae_stage, name="image_encoder", steps=1500, learning_rate=1e-3)
    unet_stage = replace(
        vae_stage, name="unet", steps=options.unet_steps, learning_rate=options.learning_rate,
        flat=0.6, ema_decay=0.998,
    )  # fmt: skip
    output = options.output or options.work / "tiny_svd.safetensors"
    if "vae" in options.stages:
        if not train_vae(vae_stage, world, options.start, options.vae_batch):
            return
    if "image_encoder" in options.stages and not train_image_encoder(
        encoder_stage, world, options.start, 64
    ):
        return
    folder = options.work / "latents"
    if "latents" in options.stages:
        networks = finished_vae(vae_stage, world), finished_image_encoder(encoder_stage, world)
        encode_videos(folder, world, *networks, options.videos)
    if "unet" in options.stages:
        train_unet(unet_stage, load_videos(folder), options.start, options.unet_batch)
    if "export" in options.stages:
        networks = finished_vae(vae_stage, world), finished_image_encoder(encoder_stage, world)
        export(output, *networks, unet_stage)
    if "time_layers" in options.stages:
        stage = replace(vae_stage, name="time_layers", steps=options.time_layer_steps)
        train_time_layers(stage, world, output)


if __name__ == "__main__":
    main()
