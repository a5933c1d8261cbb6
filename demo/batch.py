"""Many pictures become videos, on as many GPUs as there are.

python3 demo/batch.py PICTURES... [--workflow FILE] [--seeds N] [--output DIR]
                      [--workers N | --address HOST:PORT | --server URL ...]

The first time it installs Ray, which hands the jobs out, into an environment of its own. The same
command goes on after any stop. docs/many-gpus.md tells the rest.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from command_line import positive, progress_bar, whole_number
from many_gpus.jobs import Job, find_pictures, make_jobs
from private_comfyui import choices, prompts
from private_comfyui.folder_lock import locked
from private_comfyui.install import (
    INSIDE,
    PACK,
    WORKFLOWS,
    Host,
    HostError,
    prepare,
    prepare_tools,
    run_with,
    stop_at_sigterm,
)

DEFAULT_WORKFLOW = WORKFLOWS / "svd_xt_vcut_fast.json"
LOCK = ".vcut-lock"
SEED = whole_number(0, 2**64 - 1)


def main() -> int:
    """Check the arguments, then make the videos that are not made yet; return the exit code."""
    arguments = _parse()
    stop_at_sigterm()
    try:
        _check(arguments)
        if INSIDE not in os.environ:
            host = None if arguments.server else prepare(arguments.comfyui)
            python = prepare_tools("ray")
            if arguments.install:
                return 0
            variables = {INSIDE: host.to_json() if host is not None else ""}
            return run_with(python, Path(__file__), sys.argv[1:], variables)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with locked(arguments.output / LOCK, _say):
            return _make_videos(arguments)
    except (HostError, prompts.WorkflowError, OSError) as error:  # OSError: a full disk, say
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("stopped. The same command goes on.")
        return 130


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
    parser.add_argument("--comfyui", type=Path, help="use this ComfyUI and its Python")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", help="of a Ray cluster, HOST:PORT: one worker on each GPU")
    where.add_argument(
        "--server", action="append", default=[], help="URL of a ComfyUI that runs; repeatable"
    )
    parser.add_argument("--workers", type=positive, help="ComfyUIs at once; default 1")
    parser.add_argument(
        "--install", action="store_true", help="only make this machine ready, for a Ray cluster"
    )
    return parser.parse_args()


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen to fail before anything is installed or started."""
    if not arguments.install and not find_pictures(arguments.pictures):
        raise HostError("expected pictures: files, folders or globs.")
    prompts.load(arguments.workflow)
    for url in arguments.server:
        if not url.startswith(("http://", "https://")):
            raise HostError(f"expected a URL such as http://127.0.0.1:8188, got {url}.")
    if arguments.server and arguments.comfyui is not None:
        raise HostError("expected --server or --comfyui, got both.")


def _make_videos(arguments: argparse.Namespace) -> int:
    from many_gpus.journal import Journal

    is_tiny = arguments.checkpoint is None and not arguments.server
    jobs, unreadable = make_jobs(
        find_pictures(arguments.pictures),
        range(arguments.seed, arguments.seed + arguments.seeds),
        prompts.load(arguments.workflow),
        choices.Choices.read(arguments, is_tiny),
    )
    journal = Journal(arguments.output)
    done = journal.done()
    entries = [done[job.name] for job in jobs if job.name in done]
    left = [job for job in jobs if job.name not in done]
    try:
        if left:
            for entry in _entries(arguments, left, journal, len(entries)):
                entries.append(entry)
    finally:
        _tell(arguments, entries, unreadable)
    return 1 if unreadable or any(entry.failure for entry in entries) else 0


def _entries(arguments: argparse.Namespace, jobs: list[Job], journal, num_done: int) -> Iterator:
    """Yield the journal's entry of each job when it ends."""
    from many_gpus.engine import engine, make_actors
    from private_comfyui.client import ComfyClient

    for url in arguments.server:
        if not ComfyClient(url).answers():
            raise HostError(f"no ComfyUI answers at {url}.")
    host = Host.from_json(os.environ[INSIDE]) if os.environ[INSIDE] else None
    if arguments.address is not None:
        print(f"Ray of the cluster at {arguments.address} listens on its machines' networks.")
    print("Starting ComfyUI", flush=True)
    with engine(arguments.address):
        from many_gpus.dispatch import Dispatch

        actors = make_actors(host, arguments.server, arguments.workers)
        total, failed = len(jobs) + num_done, 0
        with progress_bar("Videos", total, unit="video", initial=num_done) as bar:
            for job, outcome, worker in Dispatch(actors, _say).outcomes(jobs):
                entry = journal.keep(job, outcome, worker)
                failed += entry.failure is not None
                bar.set_postfix(failed=failed, refresh=False)
                bar.update()
                yield entry


def _tell(arguments: argparse.Namespace, entries: list, unreadable: dict[Path, str]) -> None:
    """Print what was made and what failed; write the page."""
    from many_gpus.report import worker_table, write_page

    print(f"\n{worker_table(entries)}\n")
    for picture, reason in unreadable.items():
        print(f"{picture}: {reason}")
    for entry in entries:
        if entry.failure is not None:
            print(f"{entry.name}: {entry.failure}")
    print(write_page(arguments.output, entries))


def _say(text: str) -> None:
    print(f"\nVCUT: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
