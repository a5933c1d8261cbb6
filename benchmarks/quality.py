"""Measures what VCUT's settings do to the videos of the tiny SVD, on first frames it never saw.

python3 benchmarks/quality.py [--table guidance|step_cache] [--frames 64] [--seeds 2]

Samples through ComfyUI's own nodes, one thread a process. Stopped, it goes on where it ended when
the same command is given again. Writes json, table, plot and contact sheets: quality.* for the
guidance table, quality_step_cache.* for the other.
"""

import argparse
import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path[:0] = [str(BENCH), str(ROOT / "demo"), str(ROOT / "demo" / "tiny_svd")]

from command_line import positive, progress_bar  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import comfyui_version, current_host, run_inside  # noqa: E402
from quality_tables import BY_NAME, TABLES, Table  # noqa: E402
from quality_variants import SCHEDULE_STEPS, Variant  # noqa: E402

WEIGHTS = ROOT / "demo" / "tiny_svd" / "tiny_svd.safetensors"
TIME_LAYERS = "decoder_time_layers.safetensors"  # beside the weights
WORK = ROOT / "artefacts" / "quality"
RESULTS = BENCH / "results"
PACKAGES = ("torch", "numpy", "scipy", "kornia", "scikit-image", "opencv-python-headless")
SETTINGS = "euler, karras, cfg 2.5, VideoLinearCFGGuidance 1.0"  # as evaluate.py samples


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), default="guidance")
    parser.add_argument("--frames", type=positive, default=64, help="unseen first frames")
    parser.add_argument("--seeds", type=positive, default=2, help="for each of them")
    parser.add_argument(
        "--few", type=positive, default=32, help="first frames of a rival, with the first seed"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(BY_NAME),
        metavar="NAME",
        help="of the table, all without; what they are compared with is always among them",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="of one thread each")
    parser.add_argument("--steps", type=positive, default=SCHEDULE_STEPS, help="of the sampler")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK, help="where finished videos are kept")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark, or what is left of it, and write its results."""
    options = arguments()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
        if exit_code is not None:
            return exit_code
        if not options.weights.is_file():
            raise RuntimeError(f"expected weights in {options.weights}, found no such file.")
        measure_and_report(options)
    except (HostError, RuntimeError) as error:
        print(f"VCUT quality benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def measure_and_report(options: argparse.Namespace) -> None:
    """Finish all videos, then write JSON, table, plot and sheets."""
    from private_comfyui.launch import make_pack_importable

    make_pack_importable()
    from machine import circumstances
    from quality_results import write_json, write_sheets
    from quality_sampling import REFERENCES, Run, Task, finish_all, finished_records

    sha256 = _digest_of_weights(options.weights)
    folder = options.work.resolve() / _folder_name(sha256, options.steps)
    table = TABLES[options.table]
    run = Run(table.name, options.weights.resolve(), folder, options.steps)
    variants = _chosen(table, options.variants)
    pairs = [(frame, seed) for seed in range(options.seeds) for frame in range(options.frames)]
    few = [(frame, 0) for frame in range(min(options.few, options.frames))]
    tasks = [Task.of(name, frame, 0) for frame in range(options.frames) for name in REFERENCES]
    tasks += [
        Task.of(variant.name, *pair)
        for variant in variants
        for pair in (few if variant.name in table.few else pairs)
    ]
    records = finished_records(run)
    todo = [task for task in tasks if task not in records]
    with progress_bar("videos", len(tasks), "video", initial=len(tasks) - len(todo)) as bar:
        for record in finish_all(run, todo, options.jobs):
            records[Task(**record["task"])] = record
            bar.update()
    collect, write_report, shown = _how_to_report(table)
    results = {
        "command": " ".join(["python3 benchmarks/quality.py", *sys.argv[1:]]),
        **circumstances(PACKAGES),
        "weights": {"file": options.weights.name, "sha256": sha256},
        "sampling": {
            "frames": options.frames,
            "seeds": options.seeds,
            "steps": options.steps,
            "settings": SETTINGS,
        },
        **collect(run, variants, pairs, records),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    results = write_json(options.output / f"{table.file}.json", results)
    write_report(results, options.output)
    on_sheets = [variant for variant in variants if variant.name in shown]
    write_sheets(options.output, run, on_sheets, options.frames)
    print(f"Written to {options.output}: {table.file}.json, .md, .png and contact sheets")


def _how_to_report(table: Table) -> tuple:
    """Return what gathers the table's records, what writes its report, and who is on its sheets."""
    if table.name == "step_cache":
        import step_cache_report
        from step_cache_results import collect

        return collect, step_cache_report.write_report, step_cache_report.SHOWN
    from quality_report import write_report
    from quality_results import collect

    return collect, write_report, [variant.name for variant in table.variants]


def _chosen(table: Table, names: list[str] | None) -> list[Variant]:
    """Return the table's variants with these names, and what they are compared with."""
    wanted = set(names or (variant.name for variant in table.variants))
    wanted.add(table.variants[0].name)
    while more := {BY_NAME[name].reference for name in wanted} - wanted:
        wanted |= more
    return [variant for variant in table.variants if variant.name in wanted]


def _digest_of_weights(weights: Path) -> str:
    files = (weights, weights.with_name(TIME_LAYERS))
    content = b"".join(file.read_bytes() for file in files if file.is_file())
    return hashlib.sha256(content).hexdigest()


def _folder_name(sha256: str, steps: int) -> str:
    """Return a name that changes with whatever changes all videos."""
    comfyui = ".".join(map(str, comfyui_version(current_host().comfyui)))
    return f"{sha256[:12]}-{steps}-steps-comfyui-{comfyui}-torch-{version('torch')}"


if __name__ == "__main__":
    sys.exit(main())
