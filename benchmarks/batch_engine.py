"""What demo/batch.py costs beside its ComfyUIs: Ray's time for each job, the driver's memory.

python3 benchmarks/batch_engine.py [--jobs N] [--workers N]

Each job is a stub that returns a video of 1 MB at once, so all the time is the engine's: reading
the picture, handing it out, taking the video back, writing it and the journal's line.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCHMARKS.parent / "demo"))

from command_line import positive  # noqa: E402
from many_gpus import engine  # noqa: E402
from many_gpus.jobs import Job, Outcome  # noqa: E402
from private_comfyui.choices import Choices  # noqa: E402
from private_comfyui.environments import prepare_tools, run_with  # noqa: E402
from private_comfyui.install import INSIDE  # noqa: E402

PICTURE_BYTES, VIDEO_BYTES = 1_000_000, 1_000_000


class StubWorker:
    """A worker whose jobs take no time."""

    def ready(self) -> str:
        """Return a name."""
        return "stub"

    def run(self, job: Job, picture: bytes) -> Outcome:
        """Return a video of nothing."""
        return Outcome([(".mp4", bytes(VIDEO_BYTES))], 0.0, 21, 29)


def main() -> int:
    """Measure, and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=positive, default=2000)
    parser.add_argument("--workers", type=positive, default=2)
    arguments = parser.parse_args()
    if INSIDE not in os.environ:
        variables = {INSIDE: ""} | engine.process_variables(None)
        return run_with(prepare_tools("ray"), Path(__file__), sys.argv[1:], variables)
    print(json.dumps(_measured(arguments.jobs, arguments.workers), indent=2))
    return 0


def _measured(num_jobs: int, num_workers: int) -> dict:
    """Return milliseconds for each job and the driver's resident megabytes on its way."""
    import ray
    from many_gpus.dispatch import Dispatch
    from many_gpus.journal import Journal

    with tempfile.TemporaryDirectory() as name, engine.running(None):
        folder = Path(name)
        picture = folder / "picture.png"
        picture.write_bytes(os.urandom(PICTURE_BYTES))
        jobs = [
            Job(f"job-{number}", picture, number, {"nodes": [], "links": []}, Choices())
            for number in range(num_jobs)
        ]
        stub = ray.remote(max_restarts=-1, max_task_retries=-1)(StubWorker)
        actors = [stub.options(num_cpus=0).remote() for _ in range(num_workers)]
        journal, resident = Journal(folder), {}
        outcomes = enumerate(Dispatch(actors, print).outcomes(jobs), 1)
        for number, (job, outcome, worker) in outcomes:
            entry = journal.keep(job, outcome, worker)
            (folder / entry.files[0]).unlink()  # 2 GB otherwise
            if number == 1:
                started_at = time.perf_counter()
            if number in (1, num_jobs // 4, num_jobs // 2, num_jobs):
                resident[number] = round(_resident_mb(), 1)
        each = (time.perf_counter() - started_at) / max(num_jobs - 1, 1)
    return {
        "jobs": num_jobs,
        "workers": num_workers,
        "milliseconds_per_job": round(1000 * each, 2),
        "driver_resident_mb_after_jobs": resident,
    }


def _resident_mb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6


if __name__ == "__main__":
    sys.exit(main())
