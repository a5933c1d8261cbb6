"""Measures whether a tiny SVD is good enough to judge quality by: the gate of its model card.

    .venv/bin/python demo/tiny_svd/evaluate.py WEIGHTS [--world camera] [--sheet gate.png]

Everything goes through ComfyUI's own nodes and sampling. First frames are unseen ones.
"""

import argparse
import json
import sys
from pathlib import Path

import architecture  # noqa: F401  finds ComfyUI
import numpy as np
import torch
from command_line import progress_bar
from PIL import Image
from video_truth import LATE, UNSEEN_SEED, centroids, directions_right, psnr, zooms_right
from video_world import FPS, NUM_FRAMES
from worlds import NAMES, World, world_named

sys.path.insert(0, str(architecture.FOLDER.parent))
sys.path.insert(0, str(architecture.COMFYUI))
import comfy.utils  # noqa: E402
import utils.extra_config  # noqa: E402, F401  ComfyUI's utils
from comfy_extras.nodes_video_model import (  # noqa: E402
    SVD_img2vid_Conditioning,
    VideoLinearCFGGuidance,
)

import nodes as comfy_nodes  # noqa: E402, I001
from tiny_svd import loader  # noqa: E402

STEPS, CFG, MIN_CFG = 25, 2.5, 1.0
NUM_SECOND_SEEDS = 16  # first frames that a second seed goes on from
LEAST_VAE_DB, LEAST_PART = 32, 0.9
MOST_ALIKE_DB = 28  # of two seeds, where the first frame leaves things open


@torch.inference_mode()
def generate(
    model, clip_vision, vae, picture, motion_bucket: int, seed: int, steps: int = STEPS
) -> torch.Tensor:
    """Return the video (T, 3, H, W) that the stock SVD graph makes of a picture (3, H, W)."""
    positive, negative, latent = SVD_img2vid_Conditioning().encode(
        clip_vision, picture.movedim(0, -1)[None], vae, picture.shape[2], picture.shape[1],
        NUM_FRAMES, motion_bucket, FPS, 0.0,
    )  # fmt: skip
    (output,) = comfy_nodes.common_ksampler(
        model, seed, steps, CFG, "euler", "karras", positive, negative, latent
    )
    return vae.decode(output["samples"])[..., :3].movedim(-1, 1).float()


@torch.inference_mode()
def through_vae(vae, frames: torch.Tensor) -> torch.Tensor:
    """Return the frames (T, 3, H, W) of a video encoded and decoded."""
    return vae.decode(vae.encode(frames.movedim(1, -1)))[..., :3].movedim(-1, 1).float()


def run_gate(
    world: World, weights: Path = loader.WEIGHTS, num_videos: int = 64
) -> tuple[dict, torch.Tensor]:
    """Return the numbers and, for a look, truth, still and generated videos (B, 3, T, 3, H, W)."""
    model, clip_vision, vae = loader.load_tiny_svd(weights)
    (guided,) = VideoLinearCFGGuidance().patch(model, MIN_CFG)
    truth = world.unseen(num_videos, UNSEEN_SEED)
    made, again = [], []
    with progress_bar("gate", num_videos, "video") as bar:
        for k in range(num_videos):
            picture, bucket = truth.frames[k, 0], int(truth.motion_bucket[k])
            made.append(generate(guided, clip_vision, vae, picture, bucket, seed=k))
            if k < NUM_SECOND_SEEDS:
                again.append(generate(guided, clip_vision, vae, picture, bucket, seed=1000 + k))
            bar.update()
    made, again = torch.stack(made), torch.stack(again)
    stills = truth.frames[:, :1].expand_as(truth.frames)
    repeated = torch.stack([through_vae(vae, still) for still in stills])
    all_frames = truth.frames.flatten(0, 1)
    rebuilt = torch.cat([through_vae(vae, video) for video in truth.frames])
    late, still = truth.frames[:, LATE], repeated[:, LATE]
    video_db, still_db = psnr(late, made[:, LATE]), psnr(late, still)
    rebuilt_db = psnr(all_frames, rebuilt)
    goes = world.directions[truth.direction].any(1)
    right = directions_right(truth, made, world.directions)[goes]
    zooms = zooms_right(truth, made)[~goes]
    centre, _ = centroids(made, truth.colour)
    true_centre, _ = centroids(truth.frames, truth.colour)
    numbers = {
        "num_videos": num_videos,
        "vae_db": rebuilt_db.mean().item(),
        "vae_worst_db": rebuilt_db.min().item(),
        "video_db": video_db.mean().item(),
        "still_db": still_db.mean().item(),
        "closer_than_still": (video_db > still_db).float().mean().item(),
        "direction_right": right.float().mean().item(),
        "zoom_right": zooms.float().mean().item() if len(zooms) else None,
        "two_seeds_db": psnr(made[: len(again), LATE], again[:, LATE]).mean().item(),
        "end_error_px": (centre - true_centre)[:, -1].norm(dim=1).median().item(),
        "first_frame_db": psnr(truth.frames[:, 0], made[:, 0]).mean().item(),
    }
    numbers["passed"] = bool(
        numbers["vae_db"] >= LEAST_VAE_DB
        and numbers["closer_than_still"] >= LEAST_PART
        and numbers["direction_right"] >= LEAST_PART
        and (numbers["zoom_right"] is None or numbers["zoom_right"] >= LEAST_PART)
        and (not world.camera_moves or numbers["two_seeds_db"] <= MOST_ALIKE_DB)
    )
    return numbers, torch.stack([truth.frames, repeated, made], 1)


def contact_sheet(rows: torch.Tensor, num_videos: int = 6) -> Image.Image:
    """Return truth, first frame repeated and generated, one row each, every second frame."""
    chosen = rows[:num_videos, :, ::2].clamp(0, 1)  # (B, 3, 7, 3, H, W)
    framed = torch.nn.functional.pad(chosen, (1, 1, 1, 1), value=1.0)
    pixels = framed.permute(0, 1, 4, 2, 5, 3).flatten(0, 2).flatten(1, 2)
    picture = Image.fromarray((pixels.numpy() * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    """Print the numbers as JSON and write the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", default=loader.WEIGHTS)
    parser.add_argument("--world", choices=NAMES, default="sprites")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    comfy.utils.set_progress_bar_enabled(False)  # one bar for all videos, none for each
    world = world_named(options.world, options.weights.parent)
    numbers, rows = run_gate(world, options.weights, options.videos)
    sys.stdout.write(json.dumps(numbers, indent=2) + "\n")
    if options.sheet:
        contact_sheet(rows).save(options.sheet)


if __name__ == "__main__":
    main()
