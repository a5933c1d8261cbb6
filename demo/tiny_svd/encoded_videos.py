"""Keeps the videos that the UNet is trained on as the VAE and the image encoder see them."""

import os
from pathlib import Path

import torch
from architecture import clip_pixels
from command_line import progress_bar
from trainer import DEVICE, autocast
from video_world import NUM_FRAMES
from worlds import World

CLIPS_PER_SHARD = 256


@torch.no_grad()
def encode_videos(folder: Path, world: World, vae, encoder, num_videos: int) -> None:
    """Write shards of videos: latents (B, T, 4, h, w) as the VAE gives them, context, bucket."""
    folder.mkdir(exist_ok=True)
    vae = vae.to(memory_format=torch.channels_last)
    num_shards = num_videos // CLIPS_PER_SHARD
    with progress_bar("latents", num_shards, "shard") as bar:
        for shard in range(num_shards):
            path = folder / f"{shard:04d}.pt"
            if not path.exists():
                _encode_shard(path, world, vae, encoder, seed=50_000_000 + shard)
            bar.update()


def _encode_shard(path: Path, world: World, vae, encoder, seed: int) -> None:
    videos = world.make(CLIPS_PER_SHARD, seed=seed)
    pixels = (2 * videos.frames.flatten(0, 1) - 1).contiguous(memory_format=torch.channels_last)
    with autocast():
        latents = [vae.encode(part.to(DEVICE)).half().cpu() for part in pixels.split(64)]
    content = {
        "latents": torch.cat(latents).unflatten(0, (-1, NUM_FRAMES)).contiguous(),
        "context": encoder(clip_pixels(videos.frames[:, 0].to(DEVICE)))[2].cpu(),
        "motion_bucket": videos.motion_bucket,
    }
    torch.save(content, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def load_videos(folder: Path) -> dict[str, torch.Tensor]:
    """Return all shards joined."""
    shards = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
