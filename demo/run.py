"""First command of the README: one picture becomes a video, without and with VCUT.

python3 demo/run.py [--image FILE] [--checkpoint NAME] [--frames N] ...

Sets up a private ComfyUI the first time. Without --checkpoint it uses the tiny SVD, which knows
four sprites at 64x64 pixels (demo/tiny_svd/README.md); other pictures come out as blobs.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import progress_bar, whole_number
from private_comfyui import choices, long_prompts, prompts
from private_comfyui.environments import PACK, HostError
from private_comfyui.install import DEMO, WORKFLOWS, current_host, run_inside

EXAMPLE_IMAGE = DEMO / "tiny_svd" / "example_input.png"
DEFAULT_WORKFLOW = WORKFLOWS / "svd_xt_vcut_fast.json"
SEED = whole_number(0, 2**64 - 1)
IMAGE_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".sft")


@dataclass
class Video:
    """One finished run: frames (T, H, W, 3) uint8, its mp4, and what was counted.

    cross_attentions, lines: what VCUT says of the run; 0 and none without VCUT.
    """

    frames: Any  # a numpy array; numpy is imported once it is installed
    path: Path
    evaluations: int
    seconds: float
    cross_attentions: int
    lines: list[str]


def main() -> int:
    """Check the arguments, then run both videos; return the exit code."""
    arguments = _parse()
    try:
        _check(arguments)
        exit_code = run_inside(Path(__file__), sys.argv[1:], arguments.comfyui)
        if exit_code is not None:
            return exit_code
        _check_image(arguments.image)
        videos, sheet = _make_videos(arguments)
    except (HostError, prompts.WorkflowError, OSError) as error:  # OSError: a full disk, say
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nVCUT: stopped.", file=sys.stderr)
        return 130
    print(_table(videos, sheet, is_tiny=arguments.checkpoint is None))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One picture becomes a video, without and with VCUT."
    )
    parser.add_argument("--image", type=Path, default=EXAMPLE_IMAGE, help="the picture")
    parser.add_argument("--workflow", type=Path, default=DEFAULT_WORKFLOW, help="with VCUT in it")
    choices.add_options(parser)
    parser.add_argument("--seed", type=SEED, default=0, help="the same for both videos; default 0")
    parser.add_argument(
        "--output", type=Path, default=PACK / "output", help="folder for the videos"
    )
    parser.add_argument("--comfyui", type=Path, help="use this ComfyUI and its Python")
    return parser.parse_args()


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen to fail before anything is installed or started."""
    if not arguments.image.is_file():
        raise HostError(f"expected a picture, found no file {arguments.image}.")
    try:
        with arguments.image.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise HostError(f"could not read the picture {arguments.image}: {error}.") from None
    if not start.startswith(IMAGE_SIGNATURES):
        raise HostError(f"expected a picture (PNG, JPEG, WebP, ...), got {arguments.image}.")
    workflow = prompts.load(arguments.workflow)
    nodes = workflow.values() if prompts.is_prompt(workflow) else workflow["nodes"]
    kinds = {node.get("class_type") or node.get("type") for node in nodes}
    if not kinds & set(prompts.VCUT_NODES):
        files = ", ".join(sorted(path.name for path in WORKFLOWS.glob("*.json")))
        raise HostError(f"{arguments.workflow.name} has no VCUT node. Workflows with one: {files}.")
    _check_output(arguments.output)
    if arguments.comfyui is not None and arguments.checkpoint is not None:
        folder = arguments.comfyui / "models" / "checkpoints"
        if folder.is_dir() and not (arguments.comfyui / "extra_model_paths.yaml").exists():
            choices.check_checkpoint(arguments.checkpoint, _checkpoints_in(folder))


def _check_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".vcut"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HostError(f"expected a folder to write to, got {folder}: {error}.") from None


def _checkpoints_in(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.suffix in CHECKPOINT_SUFFIXES)
    return sorted(str(file.relative_to(folder)) for file in files)


def _check_image(path: Path) -> None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        raise HostError(f"could not read the picture {path}: {error}") from None


def _make_videos(arguments: argparse.Namespace) -> tuple[dict[str, Video], Path]:
    """Start ComfyUI, run both prompts, write everything to the output folder."""
    import videos
    from private_comfyui.serve import ComfyServer

    print("Starting ComfyUI", flush=True)
    workflow = prompts.load(arguments.workflow)
    chosen = choices.Choices.read(arguments, is_tiny=arguments.checkpoint is None)
    with ComfyServer(current_host()) as server:
        image = server.upload(arguments.image)
        object_info = server.get("/object_info")
        prompt = choices.to_prompt(workflow, chosen, object_info, image, arguments.seed)
        variants = _variants(*prompt)
        for variant in variants.values():  # load and warm up, so that the seconds compare
            server.run(_shortened(variant))
        made = {
            title: _make_video(server, variant, title, arguments.output)
            for title, variant in variants.items()
        }
    first, second = (video.frames for video in made.values())
    both = videos.side_by_side(first, second, (*_titles(made, "\n"),))
    fps = _fps(next(iter(variants.values())))
    videos.write_mp4(arguments.output / "side_by_side.mp4", both, fps=fps)
    sheet = arguments.output / "contact_sheet.png"
    videos.contact_sheet([first, second], _titles(made, ": ")).save(sheet)
    return made, sheet


def _titles(made: dict[str, Video], between: str) -> list[str]:
    """Return what stands above each video: its name, and what it took."""
    without, with_vcut = (video.evaluations for video in made.values())
    counts = (f"{without}", f"{with_vcut} of {without}" if "with VCUT" in made else f"{with_vcut}")
    return [
        f"{name}{between}{count} evaluations, {video.seconds:.1f} s"
        for (name, video), count in zip(made.items(), counts, strict=True)
    ]


def _variants(prompt: dict, frames: int | None) -> dict[str, dict]:
    """Return what is run: without VCUT first, each by the title of its video.

    frames: of the video, where it is longer than the prompt's own.
    """
    without = prompts.without_vcut(prompt)
    if frames is not None:
        variants = {
            "last frame chain": long_prompts.last_frame_chain(without, frames),
            "VCUT Continue Video": long_prompts.continued(prompt, frames),
        }
    else:
        variants = {"without VCUT": without, "with VCUT": prompt}
    for variant in variants.values():
        prompts.add_counter(variant)
        whole = long_prompts.FRAMES
        prompts.add_frames_output(variant, whole if whole in variant else None)
    return variants


def _shortened(prompt: dict) -> dict:
    """Return the prompt with one step and another seed, so that nothing of it is reused."""
    import copy

    prompt = copy.deepcopy(prompt)
    for sampler in choices.SAMPLERS:
        prompts.set_inputs(prompt, sampler, steps=1, seed=2**32, noise_seed=2**32)
    return prompt


def _make_video(server, prompt: dict, title: str, folder: Path) -> Video:
    import videos

    with progress_bar(title, prompts.num_steps(prompt)) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        run = server.run(prompt, on_progress)
        bar.update((bar.total or bar.n) - bar.n)  # newer hosts do not tell of every step
    name = title.replace(" ", "_").lower()
    frames = videos.read_frames(
        [
            server.fetch(file, server.folder / "fetched" / f"{name}_{index:03}.png")
            for index, file in enumerate(run.files["frames"])
        ]
    )
    path = folder / f"{name}.mp4"
    from_host = [f for files in run.files.values() for f in files if f["filename"].endswith(".mp4")]
    if from_host:
        server.fetch(from_host[0], path)
    else:
        videos.write_mp4(path, frames, fps=_fps(prompt))
    counted = run.events.get("vcut_demo.run", [])
    if not counted:
        raise HostError("expected a workflow with a KSampler or a guider, found no sampling in it.")
    told = run.events.get("vcut.run", [])
    return Video(
        frames=frames,
        path=path,
        evaluations=sum(part["evaluations"] for part in counted),
        seconds=sum(part["elapsed_s"] for part in counted),
        cross_attentions=sum(_cross_attentions(event["counts"]) for event in told),
        lines=[event["log_line"] for event in told],
    )


def _cross_attentions(counts: dict) -> int:
    """Return the cross-attentions that VCUT computed for its cache."""
    return counts["techniques"].get("cross_attention", {}).get("computed", 0)


def _fps(prompt: dict) -> int:
    values = [prompt[n]["inputs"].get("fps") for n in prompts.nodes_of(prompt, "CreateVideo")]
    return int(values[0]) if values and not isinstance(values[0], list) else 6


def _table(videos: dict[str, Video], sheet: Path, is_tiny: bool) -> str:
    """Return what the user is told in the end."""
    without, with_vcut = videos.values()
    from private_comfyui.launch import make_pack_importable

    make_pack_importable()
    import video_distance

    rows = [
        ("", *videos),
        ("UNet evaluations", without.evaluations, with_vcut.evaluations),
        ("cross-attentions cached", without.cross_attentions, with_vcut.cross_attentions),
        ("seconds of sampling", f"{without.seconds:.2f}", f"{with_vcut.seconds:.2f}"),
        ("speedup", "1.00", f"{without.seconds / with_vcut.seconds:.2f}"),
    ]
    if "with VCUT" in videos:  # the same video twice; a chain's is another one
        decibels = video_distance.psnr(without.frames, with_vcut.frames)
        told = "equal" if decibels == float("inf") else f"{decibels:.1f} dB"
        rows.append(("PSNR between the two", "", told))
        ssim = video_distance.ssim(without.frames, with_vcut.frames)
        rows.append(("SSIM", "", f"{ssim:.3f}"))
    width = max(14, *(len(title) for title in videos))
    lines = ["", *(f"{name:22} {a!s:>{width}} {b!s:>{width}}" for name, a, b in rows), ""]
    lines += [f"VCUT: {line}" for line in with_vcut.lines]
    if is_tiny:
        lines.append(
            "Made with the tiny SVD, trained on generated videos: it shows what VCUT does to a "
            "small model of SVD's kind, not to SVD. Its seconds say nothing about a full-size one."
        )
    for path in (without.path, with_vcut.path, sheet.with_name("side_by_side.mp4"), sheet):
        lines.append(str(path))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
