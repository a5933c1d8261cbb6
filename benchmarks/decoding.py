"""Counts and times decoding in slices, and shows what decoding in chunks of frames does.

python3 benchmarks/decoding.py [--rounds 3] [--size 96] [--videos 16]

Memory: every tensor storage of SVD's decoder at full size on the meta device, in fp16. Time and
precision: the decoder at full width with random weights, on the CPU, for a small video. Chunks:
videos that the tiny SVD samples. Writes benchmarks/results/decoding.json and decoding.md.
"""

import argparse
import json
import statistics
import sys
import time
from copy import deepcopy
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "demo" / "tiny_svd")]

from command_line import positive, progress_bar  # noqa: E402
from host_nodes import BenchError, start_comfyui  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402

RESULTS = BENCH / "results"
VIDEOS = ((25, 576, 1024), (14, 576, 1024), (25, 320, 576), (14, 320, 576))
SLICES = (1, 2, 5, 13, 25)
CHUNKS = (1, 2, 4, 8)
FRAMES = 14  # of the video that is timed


def main() -> int:
    """Measure everything, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--size", type=positive, default=96, help="of the small video, in pixels")
    parser.add_argument("--videos", type=positive, default=16, help="cut into chunks")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
        if exit_code is not None:
            return exit_code
        start_comfyui("cpu")
    except (BenchError, HostError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    import torch
    from full_size_svd import fill_with_random_weights, make_video_autoencoder
    from machine import circumstances

    with torch.inference_mode():
        autoencoder = make_video_autoencoder()
        fill_with_random_weights(autoencoder)
        latent = torch.randn(
            FRAMES, 4, options.size // 8, options.size // 8,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        results = {
            "command": " ".join(["python3 benchmarks/decoding.py", *sys.argv[1:]]),
            **circumstances(),
            "frames": FRAMES,
            "size": options.size,
            "memory": [row for video in VIDEOS for row in count_memory(*video)],
            "time": time_slices(autoencoder, latent, options.rounds),
            "precision": measure_precision(autoencoder, latent[:4]),
            "videos": options.videos,
            "chunks": measure_chunks(options.videos),
        }
    text = markdown(results)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "decoding.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "decoding.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def count_memory(frames: int, height: int, width: int) -> list[dict]:
    """Return peaks in bytes for each number of slices, waiting frames on the card and elsewhere."""
    import torch
    from full_size_svd import make_video_autoencoder
    from live_memory import LiveMemory
    from torch.utils._python_dispatch import _disable_current_modes
    from vcut.comfy_adapter.vae_stages import stages_of
    from vcut.vcut_core.video_decoding import DecodeMemory, decode_video

    autoencoder = make_video_autoencoder().to("meta").half()
    # Counts as flash attention: an output and no matrix of scores.
    autoencoder.decoder.mid.attn_1.optimized_attention = lambda q, k, v: torch.empty_like(q)
    stages = stages_of(autoencoder)
    latent = torch.empty(frames, 4, height // 8, width // 8, device="meta", dtype=torch.float16)
    plan = DecodeMemory(stages, frames, latent[0, 0].numel(), 2)

    def elsewhere(_number, frame):
        with _disable_current_modes():  # not of the card's memory
            return torch.empty_like(frame)

    rows = []
    for slices in SLICES:
        row = {"frames": frames, "height": height, "width": width, "slices": slices}
        for place, rest in (("card", lambda _, frame: frame), ("system", elsewhere)):
            with LiveMemory() as memory:
                decode_video(latent, stages, slices, latent.device, rest)
            row[f"{place}_peak_bytes"] = memory.peak_bytes
        row["planned_bytes"] = plan.working_bytes(slices)
        row["resting_bytes"] = plan.resting_bytes
        rows.append(row)
    return rows


def time_slices(autoencoder, latent, rounds: int) -> list[dict]:
    """Return the seconds of the whole decode and of slices, taken in turn, and their distance."""
    from vcut.comfy_adapter.vae_stages import stages_of
    from vcut.vcut_core.video_decoding import decode_video

    stages = stages_of(autoencoder)
    runs = {"whole": lambda: autoencoder.decode(latent)}
    for slices in (2, 5, 14):
        for keeps_hidden in (True, False):
            runs[f"{slices}, {'with' if keeps_hidden else 'without'} room to spare"] = (
                lambda slices=slices, keeps_hidden=keeps_hidden: decode_video(
                    latent, stages, slices, latent.device, copy, keeps_hidden=keeps_hidden
                )
            )
    whole, seconds = runs["whole"](), {name: [] for name in runs}  # which warms up too
    differences = {}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            output = run()
            seconds[name].append(time.process_time() - started)
            differences[name] = ((output - whole).norm() / whole.norm()).item()
    base = statistics.median(seconds["whole"])
    return [
        {
            "slices": name,
            "cpu_seconds": statistics.median(found),
            "of_whole": statistics.median(found) / base,
            "difference": differences[name],
        }
        for name, found in seconds.items()
    ]


def copy(_number: int, frame):
    """Let a frame wait apart from the others that were computed with it."""
    return frame.clone()


def measure_precision(autoencoder, latent) -> list[dict]:
    """Return how far half precision lies from float32, whole and in slices."""
    import torch
    from vcut.comfy_adapter.vae_stages import stages_of
    from vcut.vcut_core.video_decoding import decode_video

    def distance(output, expected):
        return ((output.float() - expected.float()).norm() / expected.float().norm()).item()

    exact, rows = autoencoder.decode(latent), []
    for dtype in (torch.float16, torch.bfloat16):
        half = deepcopy(autoencoder).to(dtype)
        whole = half.decode(latent.to(dtype))
        sliced = decode_video(latent.to(dtype), stages_of(half), 4, latent.device, copy)
        rows.append({
            "dtype": str(dtype).removeprefix("torch."),
            "whole": distance(whole, exact),
            "sliced": distance(sliced, exact),
            "between": distance(sliced, whole),
        })  # fmt: skip
    return rows


def measure_chunks(num_videos: int) -> list[dict]:
    """Return what decoding the tiny SVD's videos in chunks of frames does to them."""
    import torch
    from sampling_jobs import one_sampler
    from tiny_svd_jobs import TinySVD
    from video_truth import UNSEEN_SEED, psnr
    from video_world import make_videos

    tiny = TinySVD()
    model, truth = tiny.guided(tiny.model), make_videos(num_videos, UNSEEN_SEED, unseen=True)
    with progress_bar("videos", num_videos, "video") as bar:
        latents = []
        for k in range(num_videos):
            latents.append(one_sampler(tiny.nodes, model, tiny.job(truth.only(k), seed=k)))
            bar.update()

    def decode(size: int):
        videos = []
        for latent in latents:
            parts = latent["samples"].split(size)
            videos.append(torch.cat([tiny.decode({"samples": part}) for part in parts]))
        return torch.stack(videos)

    whole, rows = decode(FRAMES), []
    for size in CHUNKS:
        videos = decode(size)
        # Of frames that follow one another; the sprite's own motion is in both.
        error = (videos.diff(dim=1) - whole.diff(dim=1)).square().mean((0, 2, 3, 4)).sqrt()
        is_border = torch.arange(1, FRAMES) % size == 0
        distance = psnr(whole.flatten(0, 1), videos.flatten(0, 1))
        rows.append({
            "chunk": size,
            "distance_db": distance.mean().item(),
            "worst_frame_db": distance.min().item(),
            "jump_at_borders": 255 * error[is_border].mean().item(),
            "jump_inside": 255 * error[~is_border].mean().item() if size > 1 else None,
        })  # fmt: skip
    return rows


def markdown(results: dict) -> str:
    """Return the results as a page."""
    names = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# Decoding in slices",
        "",
        f"`{results['command']}`, {results['date']}, {results['device']}. {names}.",
        "",
        "## Memory",
        "",
        "Peak of live activations of SVD's decoder at full size, fp16, GB, counted on the meta "
        "device. What waits between two layers lies on the card, or in system memory.",
        "",
        "| video | slices | all on the card | waiting in system memory | planned | waiting |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["memory"]:
        video = f"{row['frames']} frames, {row['width']}x{row['height']}"
        sizes = ("card_peak_bytes", "system_peak_bytes", "planned_bytes", "resting_bytes")
        cells = " | ".join(f"{row[name] / 1e9:.2f}" for name in sizes)
        lines.append(f"| {video} | {row['slices']} | {cells} |")
    small = f"{results['frames']} frames of {results['size']}x{results['size']}"
    lines += [
        "",
        "## Time",
        "",
        f"{small}, full width, random weights, fp32, CPU time; relative distance to the whole.",
        "",
        "| slices | seconds | of the whole | difference |",
        "| --- | --- | --- | --- |",
    ]
    for row in results["time"]:
        lines.append(
            f"| {row['slices']} | {row['cpu_seconds']:.2f} | {row['of_whole']:.2f} "
            f"| {row['difference']:.1e} |"
        )
    lines += [
        "",
        "## Half precision",
        "",
        f"4 frames of {results['size']}x{results['size']}, full width, random weights; relative "
        "distance to float32, and of 4 slices to the whole of the same dtype.",
        "",
        "| dtype | whole | 4 slices | between them |",
        "| --- | --- | --- | --- |",
    ]
    for row in results["precision"]:
        sizes = " | ".join(f"{row[name]:.1e}" for name in ("whole", "sliced", "between"))
        lines.append(f"| {row['dtype']} | {sizes} |")
    lines += [
        "",
        "## What chunks of frames do",
        "",
        f"{results['videos']} videos that the tiny SVD makes of unseen first frames (25 steps), "
        "decoded in chunks, against the same latent decoded as one video. The jump is how far a "
        "step from frame to frame lies from that of the whole, in levels of 255.",
        "",
        "| frames at a time | distance, dB | worst frame, dB | jump at borders | jump inside |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["chunks"]:
        inside = "" if row["jump_inside"] is None else f"{row['jump_inside']:.2f}"
        lines.append(
            f"| {row['chunk']} | {row['distance_db']:.1f} | {row['worst_frame_db']:.1f} "
            f"| {row['jump_at_borders']:.2f} | {inside} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
