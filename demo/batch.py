"""Many pictures become videos, on as many GPUs as there are.

python3 demo/batch.py PICTURES... [--workflow FILE] [--seeds N] [--output DIR]
                      [--workers N | --address HOST:PORT | --server URL ...]

The first time it installs Ray, which hands the jobs out, into an environment of its own. The same
command goes on after any stop. docs/many-gpus.md tells the rest.
"""

import argparse
import sys
from pathlib import Path

from command_line import positive, whole_number
from many_gpus import command
from many_gpus.jobs import find_pictures, make_jobs
from private_comfyui import choices, prompts
from private_comfyui.environments import PACK, HostError
from private_comfyui.install import WORKFLOWS

DEFAULT_WORKFLOW = WORKFLOWS / "svd_xt_vcut_fast.json"
SEED = whole_number(0, 2**64 - 1)


def main() -> int:
    """Check the arguments, then make the videos that are not made yet; return the exit code."""
    arguments = _parse()
    return command.exit_code_of(lambda: _make_videos(arguments))


def _make_videos(arguments: argparse.Namespace) -> int:
    if not arguments.install and not find_pictures(arguments.pictures):
        raise HostError("expected pictures: files, folders or globs.")
    workflow = prompts.load(arguments.workflow)
    exit_code = command.run_beside_ray(Path(__file__), arguments)
    if exit_code is not None:
        return exit_code
    is_tiny = arguments.checkpoint is None and not arguments.server
    jobs, unreadable = make_jobs(
        find_pictures(arguments.pictures),
        range(arguments.seed, arguments.seed + arguments.seeds),
        workflow,
        choices.Choices.read(arguments, is_tiny),
    )
    entries = command.do_jobs(arguments, jobs, unreadable, arguments.output)
    return 1 if unreadable or any(entry.failure for entry in entries) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Many pictures become videos, on as many GPUs as there are."
    )
    parser.add_argument("pictures", nargs="*", help="files, folders or globs")
    parser.add_argument("--workflow", type=Path, default=DEFAULT_WORKFLOW, help="a drag-in one")
    choices.add_options(parser)
    parser.add_argument("--seed", type=SEED, default=0, help="the first one; default 0")
    parser.add_argument("--seeds", type=positive, default=1, help="videos of each picture")
    parser.add_argument(
        "--output", type=Path, default=PACK / "output" / "batch", help="folder for the videos"
    )
    command.add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
