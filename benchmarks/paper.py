"""The paper's protocol on the real model: its variants over a folder of pictures, many seeds each.

python3 benchmarks/paper.py --images DIR [--svd NAME] [--svd-xt NAME] [--svd-xt-1-1 NAME]

Makes the videos, wherever demo/batch.py could, lays them out as VBench's image-to-video suite wants
them, and writes the tables, with VBench's scores once benchmarks/paper_scores.py has made them.
Without a checkpoint the tiny SVD makes the videos: a rehearsal.

Source: Taghipour et al., IEEE Access 2025, arXiv 2407.19205.
"""

import argparse
import copy
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent / "demo"))

from command_line import positive  # noqa: E402
from many_gpus import command  # noqa: E402
from many_gpus.jobs import Job, find_pictures, make_jobs  # noqa: E402
from many_gpus.journal import Entry  # noqa: E402
from paper_tables import read_scores, tables  # noqa: E402
from private_comfyui import choices, prompts  # noqa: E402
from private_comfyui.choices import Choices  # noqa: E402
from private_comfyui.environments import PACK, HostError  # noqa: E402
from private_comfyui.install import WORKFLOWS  # noqa: E402

WORKFLOW = WORKFLOWS / "svd_xt_vcut_paper.json"
# Each variant: the nodes that are bypassed, and the first step without guidance.
VARIANTS = {
    "baseline": (("VCUT_PatchSVDModel", "VCUT_GuidanceScheduler"), None),
    "modified": (("VCUT_GuidanceScheduler",), None),
    "c10": ((), 10),
    "c17": ((), 17),
    "c20": ((), 20),
}
FRAMES = {"SVD": 14, "SVD-XT": 25, "SVD-XT 1.1": 25}
REHEARSAL = "tiny SVD"
VBENCH = """
The videos lie in {folder}. For VBench's eight measures run
python3 benchmarks/paper_scores.py with the same --images and --output, then this command again.
"""


def main() -> int:
    """Make the videos that are not made yet, lay them out, write the tables."""
    arguments = _parse()
    return command.exit_code_of(lambda: _run_protocol(arguments))


def _run_protocol(arguments: argparse.Namespace) -> int:
    scores = read_scores(arguments.output)
    pictures = find_pictures([str(arguments.images)])
    stems = [picture.stem for picture in pictures]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise HostError(f"expected one picture of each name, found two of {twice[0]}: rename one.")
    exit_code = command.run_beside_ray(Path(__file__), arguments)
    if exit_code is not None:
        return exit_code
    models = {"SVD": arguments.svd, "SVD-XT": arguments.svd_xt, "SVD-XT 1.1": arguments.svd_xt_1_1}
    jobs, unreadable = _jobs(arguments, {k: v for k, v in models.items() if v}, pictures)
    all_jobs = [job for group in jobs.values() for job in group]
    entries = command.do_jobs(arguments, all_jobs, unreadable, arguments.output / "videos")
    by_name = {entry.name: entry for entry in entries if entry.failure is None}
    done = {
        key: [by_name[job.name] for job in group if job.name in by_name]
        for key, group in jobs.items()
    }
    _lay_out(arguments.output, done)
    report = arguments.output / "paper.md"
    report.write_text(tables(done, scores), encoding="utf-8")
    print(report)
    if not scores:
        print(VBENCH.format(folder=arguments.output / "vbench"))
    return 1 if unreadable or len(by_name) < len(all_jobs) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    for name in ("svd", "svd-xt", "svd-xt-1-1"):
        parser.add_argument(f"--{name}", metavar="NAME", help="its checkpoint in ComfyUI")
    parser.add_argument("--seeds", type=positive, default=5, help="of each picture")
    parser.add_argument("--steps", type=choices.STEPS, default=25, help="the paper's: 25")
    parser.add_argument("--output", type=Path, default=PACK / "output" / "paper")
    command.add_options(parser)
    return parser.parse_args()


def _jobs(
    arguments: argparse.Namespace, models: dict[str, str], pictures: Sequence[Path]
) -> tuple[dict[tuple[str, str], list[Job]], dict[Path, str]]:
    """Return the jobs of each (model, variant), and why some pictures cannot be read.

    Where no model is given, the tiny SVD's. The demo's counter knows the baseline's evaluations
    too; servers of others do not have it.
    """
    workflow, jobs, unreadable = prompts.load(WORKFLOW), {}, {}
    for model, checkpoint in (models or {REHEARSAL: None}).items():
        for variant, (bypassed, cut_step) in VARIANTS.items():
            changes = Choices(
                checkpoint=checkpoint,
                frames=FRAMES.get(model),
                steps=arguments.steps,
                cut_step=cut_step,
                is_tiny=checkpoint is None,
            )
            jobs[model, variant], unreadable = make_jobs(
                pictures,
                range(arguments.seeds),
                _without(workflow, bypassed),
                changes,
                is_counted=not arguments.server,
            )
    return jobs, unreadable


def _without(workflow: dict, class_types: Sequence[str]) -> dict:
    """Return the workflow with its nodes of these types bypassed."""
    workflow = copy.deepcopy(workflow)
    for node in workflow["nodes"]:
        if node["type"] in class_types:
            node["mode"] = prompts.BYPASSED
    return workflow


def _lay_out(folder: Path, done: dict[tuple[str, str], list[Entry]]) -> None:
    """Link the videos as vbench/MODEL/VARIANT/PICTURE-SEED.mp4."""
    for (model, variant), entries in done.items():
        place = folder / "vbench" / model / variant
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for entry in entries:
            name = f"{Path(entry.picture).stem}-{entry.seed}{Path(entry.files[0]).suffix}"
            source = folder / "videos" / entry.files[0]
            try:
                os.link(source, place / name)
            except OSError:  # a disk without hard links
                shutil.copyfile(source, place / name)


if __name__ == "__main__":
    sys.exit(main())
