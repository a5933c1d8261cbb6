"""Measures on one GPU what the results need one for, in pieces that can be resumed.

python3 benchmarks/gpu.py [--minutes 9] [--pieces NAME ...] [--comfyui PATH]

SVD-XT and SVD at full size with random weights, in fp16: speed of every variant beside its rivals,
peak memory beside the plan, decoding, cards of 8 to 24 GiB, torch.compile, a profile. Each row is
written when it is measured; the next command leaves out the pieces that are complete, and begins
one that was cut short anew. --dry-run does all of it on the CPU in miniature.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "demo"))

from command_line import positive  # noqa: E402
from host_nodes import BenchError, HostNodes, start_comfyui  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402
from speed_setup import Settings, choose_device, circumstances  # noqa: E402

RESULTS = BENCH / "results" / "gpu"
LARGE_SIZE, SMALL_SIZE, DRY_SIZE = (1024, 576), (576, 320), (64, 64)
SMALL_UNET = {
    "model_channels": 64,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [0],
    "transformer_depth_output": [0, 0],
}


@dataclass(frozen=True)
class Piece:
    """One file of results. measure: yields its rows for a Bench. size: width and height."""

    name: str
    measure: Callable
    size: tuple[int, int]
    frames: int


def main() -> int:
    """Measure what is missing until the time is over, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=positive, default=9, help="start nothing after that")
    parser.add_argument("--pieces", nargs="+", metavar="NAME", help="default: all, in their order")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--comfyui", type=Path, help="measure on this ComfyUI, with its Python")
    parser.add_argument("--dry-run", action="store_true", help="in miniature, on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:], options.comfyui)
        if exit_code is not None:
            return exit_code
        left = _measure_all(options, deadline)
    except (BenchError, HostError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    from gpu_report import write_report

    print(write_report(options.output))
    if left:
        print(f"Not done: {', '.join(left)}. Give the same command again.")
    return 0


def _measure_all(options: argparse.Namespace, deadline: float) -> list[str]:
    """Measure piece by piece; return the names of those that are not done."""
    device = choose_device("cpu" if options.dry_run else "cuda")
    start_comfyui(device)
    from gpu_pieces import Bench

    dtype, steps = ("fp32", 3) if options.dry_run else ("fp16", 25)
    settings = Settings("svd_xt", device, dtype, *DRY_SIZE, 2, steps, 1)
    bench = Bench(HostNodes(), settings, SMALL_UNET if options.dry_run else None)
    pieces = _pieces()
    unknown = sorted(set(options.pieces or ()) - {piece.name for piece in pieces})
    if unknown:
        names = ", ".join(piece.name for piece in pieces)
        raise BenchError(f"expected pieces among {names}, got {', '.join(unknown)}.")
    left = []
    options.output.mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        if options.pieces and piece.name not in options.pieces:
            continue
        size, frames = (DRY_SIZE, 2) if options.dry_run else (piece.size, piece.frames)
        if not _measure(piece, bench.sized(*size, frames), options.output, deadline):
            left.append(piece.name)
    return left


def _pieces() -> list[Piece]:
    """Return the pieces, the most wanted first."""
    import gpu_pieces as g
    import memory

    def speed(keys=None):
        return lambda bench: g.measure_speed(bench, g.speed_variants(keys))

    scopes = memory.variants(list(memory.SCOPES), [8])
    return [
        Piece("speed_svd_xt_1024x576", speed(g.LARGE), LARGE_SIZE, 25),
        Piece("cards", g.measure_cards, LARGE_SIZE, 25),
        Piece("memory", lambda bench: g.measure_memory(bench, scopes), LARGE_SIZE, 25),
        Piece("decoding", g.measure_decoding, LARGE_SIZE, 25),
        Piece("speed_svd_xt_576x320", speed(), SMALL_SIZE, 25),
        Piece("speed_svd_576x320", speed(), SMALL_SIZE, 14),
        Piece("profile", g.profile, LARGE_SIZE, 25),
        Piece("compiled", g.measure_compiled, SMALL_SIZE, 25),
    ]


def _measure(piece: Piece, bench, folder: Path, deadline: float) -> bool:
    """Measure a piece unless its file is complete; return whether it is.

    A piece that was cut short begins anew: its ratios are of one run.
    """
    file = folder / f"{piece.name}.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["is_complete"]:
        return True
    results = {
        **circumstances(bench.settings, "python3 benchmarks/gpu.py"),
        "is_complete": False,
        "rows": [],
    }
    for row in _until(deadline, piece.measure(bench)):
        if row is None:
            return False
        results["rows"].append(row)
        _write(results, file)
        print(f"{piece.name}: {row.get('name', 'done')}", flush=True)
    results["is_complete"] = True
    _write(results, file)
    return True


def _until(deadline: float, rows: Iterator[dict]) -> Iterator[dict | None]:
    """Yield the rows; None and no more once the time is over."""
    while True:
        if time.monotonic() > deadline:
            yield None
            return
        try:
            yield next(rows)
        except StopIteration:
            return


def _write(results: dict, file: Path) -> None:
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
