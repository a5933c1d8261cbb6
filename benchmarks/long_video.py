"""Compares ways to a video longer than the model's own 14 frames, on the tiny SVD.

python3 benchmarks/long_video.py [--frames 32] [--few 16] [--jobs 2]

--frames: unseen first frames; the ways that users choose between are measured on all, up to 54
frames, the others on --few, up to 34. About 25 minutes on two cores; stopped, it goes on where it
ended. Writes benchmarks/results/long_video.json, .md, .png and a sheet for each direction.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
TINY_SVD = ROOT / "demo" / "tiny_svd"
sys.path[:0] = [str(ROOT / "demo"), str(TINY_SVD)]

from command_line import positive, progress_bar  # noqa: E402
from host_nodes import BenchError, start_comfyui  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402

RESULTS = BENCH / "results"
PACKAGES = ("torch", "numpy", "scipy")
BUCKETS = (60, 70)  # a sprite must stay in the picture for 54 frames
SEED = 17  # of the first frames
SHEETS = 4  # first frames that are shown


def main() -> int:
    """Make and measure all videos, write and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=positive, default=32, help="unseen first frames")
    parser.add_argument("--few", type=positive, default=16, help="of them, for the other ways")
    parser.add_argument("--jobs", type=positive, default=2, help="processes")
    parser.add_argument("--work", type=Path, default=ROOT / ".venv" / "long_video")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
        if exit_code is not None:
            return exit_code
        start_comfyui("cpu")
        results = measure_all(options)
    except (BenchError, HostError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    from long_video_report import write_report

    write_report(results, folder_of(options), options.output)
    print((options.output / "long_video.md").read_text())
    return 0


def measure_all(options: argparse.Namespace) -> dict:
    """Return the results of all videos, those of a run that was stopped included."""
    from long_video_sampling import VARIANTS
    from machine import circumstances

    folder = folder_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (frame, variant.name)
        for frame in range(options.frames)
        for variant in VARIANTS
        if not variant.is_short or frame < options.few
    ]
    todo: dict[int, list[str]] = {}
    for frame, name in tasks:
        if not record_file(folder, frame, name).exists():
            todo.setdefault(frame, []).append(name)
    waiting = sum(map(len, todo.values()))
    if not tuned_weights(folder).exists():
        from long_video_sampling import OVERLAP, TUNING_STEPS
        from rivals.clean_prefix import tune_for_prefix
        from tiny_svd_jobs import TinySVD

        tune_for_prefix(TinySVD(), tuned_weights(folder), OVERLAP, TUNING_STEPS)
    spawn = multiprocessing.get_context("spawn")
    with (
        progress_bar("videos", len(tasks), "video", initial=len(tasks) - waiting) as bar,
        ProcessPoolExecutor(options.jobs, spawn, _one_thread) as pool,
    ):
        jobs = [pool.submit(make_videos_of, folder, *job) for job in todo.items()]
        for job in as_completed(jobs):
            bar.update(job.result())
    records = [json.loads(record_file(folder, *task).read_text()) for task in tasks]
    return {
        "command": _command(options),
        **circumstances(PACKAGES),
        "frames": options.frames,
        "few": min(options.few, options.frames),
        "camera": colour_of_a_moving_camera(options.frames),
        "records": records,
    }


def _command(options: argparse.Namespace) -> str:
    """Return the command that measures the same; where it keeps its files does not matter."""
    return f"python3 benchmarks/long_video.py --frames {options.frames} --few {options.few}"


def folder_of(options: argparse.Namespace) -> Path:
    """Return where this version of model and method keeps its videos."""
    files = [*TINY_SVD.glob("*.safetensors"), ROOT / "vcut_core" / "continuation.py"]
    files += [ROOT / "nodes" / "continue_video.py", BENCH / "long_video_sampling.py"]
    files += [BENCH / "rivals" / "clean_prefix.py"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files)))
    return options.work / digest.hexdigest()[:12]


def record_file(folder: Path, frame: int, name: str) -> Path:
    """Return the file with what was measured of a video."""
    return folder / f"{frame:03d} {name}.json"


def pixel_file(folder: Path, frame: int, name: str) -> Path:
    """Return the file with a video's pixels; the first few are kept for the sheets."""
    return record_file(folder, frame, name).with_suffix(".pt")


def tuned_weights(folder: Path) -> Path:
    """Return the file of the UNet that was tuned for a rival."""
    return folder / "tuned.pt"


def _one_thread() -> None:
    import torch

    start_comfyui("cpu")
    torch.set_num_threads(1)


@cache
def _long_videos(folder: Path):
    import comfy.utils
    from long_video_sampling import LongVideos

    comfy.utils.set_progress_bar_enabled(False)
    return LongVideos(tuned_weights(folder))


def first_frame(frame: int):
    """Return the true video of a first frame, up to the longest length."""
    from long_video_sampling import LONG
    from video_world import make_videos

    return make_videos(1, SEED + frame, unseen=True, frames=range(LONG), motion_buckets=BUCKETS)


def make_videos_of(folder: Path, frame: int, names: list[str]) -> int:
    """Make and measure videos of a first frame; return how many."""
    import torch
    from long_video_sampling import VARIANTS, measure

    videos, truth = _long_videos(folder), first_frame(frame)
    videos.start(truth, seed=frame)
    for variant in VARIANTS:
        if variant.name not in names:
            continue
        with torch.inference_mode():
            made = variant.make(videos, variant)
        if frame < SHEETS:
            torch.save(made.pixels.half(), pixel_file(folder, frame, variant.name))
        record = {"frame": frame, "variant": variant.name, **measure(made, variant, truth)}
        file = record_file(folder, frame, variant.name)
        file.with_suffix(".partial").write_text(json.dumps(record))
        file.with_suffix(".partial").replace(file)
    return len(names)


def colour_of_a_moving_camera(num_videos: int) -> list[float]:
    """Return how far the mean colour is from frame 1's when a camera pans by a pixel a frame.

    In levels of 255 for each frame: what an anchor on frame 1's colour would take away.
    """
    import torch
    from long_video_sampling import LONG
    from video_world import pan

    views = torch.stack([pan(SEED + k, LONG) for k in range(num_videos)])  # (B, T, 3, H, W)
    means = views.mean((3, 4))
    return (255 * (means - means[:, :1]).abs().mean((0, 2))).tolist()


if __name__ == "__main__":
    sys.exit(main())
