"""What commands with many jobs share: where the jobs run, and what is told of them."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from command_line import positive, progress_bar
from private_comfyui.environments import HostError, prepare_tools, run_with, stop_at_sigterm
from private_comfyui.folder_lock import locked
from private_comfyui.install import INSIDE, Host, prepare
from private_comfyui.prompts import WorkflowError

from many_gpus import engine
from many_gpus.jobs import Job
from many_gpus.journal import Entry, Journal
from many_gpus.report import worker_table, write_page

LOCK = ".vcut-lock"  # in the output folder: one command at a time


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for where the jobs run."""
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


def run_beside_ray(script: Path, arguments: argparse.Namespace) -> int | None:
    """Run ``script`` again in Ray's environment, installing what is missing first.

    Returns its exit code, or None when this process is the inner one and should do the work.
    Raises HostError for options that cannot work and for what cannot be installed.
    """
    for url in arguments.server:
        if not url.startswith(("http://", "https://")):
            raise HostError(f"expected a URL such as http://127.0.0.1:8188, got {url}.")
    if arguments.server and arguments.comfyui is not None:
        raise HostError("expected --server or --comfyui, got both.")
    if INSIDE in os.environ:
        return None
    host = None if arguments.server else prepare(arguments.comfyui)
    python = prepare_tools("ray")
    if arguments.install:
        return 0
    inside = {INSIDE: host.to_json() if host is not None else ""}
    variables = inside | engine.process_variables(arguments.address)
    return run_with(python, script, sys.argv[1:], variables)


def do_jobs(
    arguments: argparse.Namespace, jobs: Sequence[Job], unreadable: dict[Path, str], folder: Path
) -> list[Entry]:
    """Do the jobs that are not done yet, tell of all of them, and return their entries.

    Videos, journal and page go into ``folder``. unreadable: why there are no jobs for a picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, say):
        journal = Journal(folder)
        done = journal.done()
        entries = [done[job.name] for job in jobs if job.name in done]
        left = [job for job in jobs if job.name not in done]
        try:
            if left:
                for entry in _entries(arguments, left, journal, len(entries)):
                    entries.append(entry)
        finally:
            entries.sort(key=lambda entry: entry.name)
            _tell(entries, unreadable)
            print(write_page(folder, entries))
    return entries


def _entries(
    arguments: argparse.Namespace, jobs: list[Job], journal: Journal, num_done: int
) -> Iterator[Entry]:
    """Yield the journal's entry of each job when it ends."""
    from private_comfyui.client import ComfyClient

    from many_gpus.dispatch import Dispatch

    for url in arguments.server:
        if not ComfyClient(url).answers():
            raise HostError(f"no ComfyUI answers at {url}.")
    host = Host.from_json(os.environ[INSIDE]) if os.environ[INSIDE] else None
    if arguments.address is not None:
        print(f"Ray of the cluster at {arguments.address} listens on its machines' networks.")
    if host is not None:
        print("Starting ComfyUI", flush=True)
    with engine.running(arguments.address):
        actors = engine.make_actors(
            host, arguments.server, arguments.workers, is_cluster=arguments.address is not None
        )
        total, failed = len(jobs) + num_done, 0
        started_at = time.monotonic()
        with progress_bar("Videos", total, unit="video", initial=num_done) as bar:
            outcomes = enumerate(Dispatch(actors, say).outcomes(jobs), 1)
            for number, (job, outcome, worker) in outcomes:
                entry = journal.keep(job, outcome, worker)
                failed += entry.failure is not None
                rate = 60 * number / (time.monotonic() - started_at)
                bar.set_postfix(failed=failed, per_minute=f"{rate:.1f}", refresh=False)
                bar.update()
                yield entry


def _tell(entries: list[Entry], unreadable: dict[Path, str]) -> None:
    print(f"\n{worker_table(entries)}\n")
    for picture, reason in unreadable.items():
        print(f"{picture}: {reason}")
    for entry in entries:
        if entry.failure is not None:
            print(f"{entry.name}: {entry.failure}")


def exit_code_of(work: Callable[[], int]) -> int:
    """Return what a command's work returns, or tell in a sentence why it could not be done."""
    stop_at_sigterm()
    try:
        return work()
    except (HostError, WorkflowError) as error:
        say(str(error))
    except OSError as error:  # a full disk, say
        say(f"{error}. What is done is kept, and the same command goes on.")
    except KeyboardInterrupt:
        say("stopped. The same command goes on.")
        return 130
    return 1


def say(text: str) -> None:
    """Tell the user a sentence, apart from the progress bar."""
    print(f"\nVCUT: {text}", file=sys.stderr)
