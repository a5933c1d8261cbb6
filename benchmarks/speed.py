"""Measures VCUT side by side with the stock sampler and with other ways to save time.

python3 benchmarks/speed.py [--model svd|svd_xt|tiny] [--device cuda|cpu] [--rounds N] ...

Weights of full size are random, made in memory: time does not depend on their values. Writes JSON
with a table and a plot beside it; --report FILE makes those two again. --profile shows instead
where one UNet evaluation spends its time.
"""

import argparse
import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "demo"))

from command_line import positive, progress_bar  # noqa: E402
from host_nodes import BenchError, HostNodes, start_comfyui  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402
from speed_setup import (  # noqa: E402
    BYTES,
    FRAMES,
    Settings,
    choose_device,
    circumstances,
    default_settings,
    make_model_and_job,
    require_usable,
)
from speed_variants import VARIANTS, Variant, choose, extra_variants  # noqa: E402

RESULTS = BENCH / "results"
PROFILED = ["baseline", "cached"]


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(FRAMES), help="default svd_xt")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=list(BYTES), help="default fp16 on a GPU, else fp32")
    for name in ("width", "height", "frames", "steps", "rounds"):
        parser.add_argument(f"--{name}", type=positive, help="default: what suits the device")
    names = ", ".join(variant.key for variant in VARIANTS)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"default all: {names}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON to write")
    parser.add_argument("--comfyui", type=Path, help="measure on this ComfyUI, with its Python")
    parser.add_argument("--extra-pack", type=Path, help="another node pack's folder")
    parser.add_argument("--extra-node", metavar="ID", help="its node to put on the model")
    parser.add_argument("--extra-input", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--profile", action="store_true", help="one evaluation, by component")
    parser.add_argument("--report", type=Path, metavar="FILE", help="only table and plot of FILE")
    options = parser.parse_args()
    if options.extra_pack and not options.extra_node:
        parser.error("--extra-pack needs --extra-node, the node of that pack to measure")
    return options


def main() -> int:
    """Measure and write the results, or say in one sentence why that cannot be."""
    options = arguments()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:], options.comfyui)
        if exit_code is not None:
            return exit_code
        for file in _report(options.report) if options.report else _measure(options):
            print(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)
        return 0
    except (BenchError, HostError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("VCUT: stopped; rounds that were complete are in the results.", file=sys.stderr)
        return 130


def _measure(options: argparse.Namespace) -> list[Path]:
    """Do what the command line asks for; return the files written."""
    device = choose_device(options.device)
    given = {name: getattr(options, name, None) for name in Settings.__annotations__}
    defaults = default_settings(options.model, device)
    settings = Settings(**defaults | {k: value for k, value in given.items() if value is not None})
    require_usable(settings)
    _start_quietly(device)
    nodes = HostNodes()
    variants, left_out = _variants(nodes, options)
    file = options.output or RESULTS / _name(settings, options.profile)
    file.parent.mkdir(parents=True, exist_ok=True)
    results = {**circumstances(settings, _command()), "left_out": left_out}
    try:
        print(f"Making {settings.model} in {settings.dtype}", flush=True)
        model, job = make_model_and_job(nodes, settings)
        if options.profile:
            _profile(nodes, model, job, variants, results, file)
        else:
            _compare(nodes, model, job, variants, settings, results, file)
    except Exception as error:
        if _is_out_of_memory(error):
            raise BenchError(
                f"expected enough memory on {results['device']['name']}, ran out of it. Use a "
                "smaller --width, --height or --frames, or --dtype fp16."
            ) from None
        raise
    return _report(file)


def _start_quietly(device: str) -> None:
    """Start ComfyUI; it warns of parts that a benchmark does not use."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        start_comfyui(device)
    finally:
        root.setLevel(level)


def _variants(nodes: HostNodes, options: argparse.Namespace) -> tuple[list[Variant], dict]:
    """Return the variants to measure, and those this host lacks a node for: name -> nodes."""
    known = VARIANTS
    if options.extra_pack:
        brought = nodes.add_pack(options.extra_pack)
        if options.extra_node not in nodes:
            raise BenchError(
                f"expected a node of {options.extra_pack.name} ({', '.join(brought)}), got "
                f"{options.extra_node}. Change --extra-node."
            )
    if options.extra_node:
        inputs = nodes.convert(options.extra_node, options.extra_input)
        known += extra_variants(options.extra_node, inputs)
    keys = options.variants or (PROFILED if options.profile else None)
    try:
        chosen = choose(keys, known)
    except ValueError as error:
        raise BenchError(f"{error}. Change --variants.") from None
    left_out = {v.name: missing for v in chosen if (missing := v.missing_nodes(nodes))}
    return [variant for variant in chosen if variant.name not in left_out], left_out


def _compare(nodes, model, job, variants, settings: Settings, results: dict, file: Path) -> None:
    """Measure the variants; the results are written after each round."""
    from speed_measuring import measure_side_by_side, warm_up_steps

    results |= {"rounds_done": 0, "variants": []}

    def write(measured: list) -> None:
        results["variants"] = [vars(result) for result in measured]
        results["rounds_done"] += 1
        _write(results, file)

    steps = sum(v.steps(job.steps) * settings.rounds + warm_up_steps(v, job) for v in variants)
    with _progress(steps) as bar:
        measure_side_by_side(
            nodes,
            model,
            job,
            variants,
            settings.rounds,
            has_live_memory=settings.device == "cpu",
            on_run=lambda variant, stage: bar.set_postfix_str(f"{variant.name}, {stage}", False),
            on_round=write,
        )


def _profile(nodes, model, job, variants, results: dict, file: Path) -> None:
    from profile_measuring import PROFILED_CALL, profile_side_by_side

    with _progress(PROFILED_CALL * len(variants)) as bar:
        results["profiles"] = profile_side_by_side(
            nodes, model, job, variants, lambda variant: bar.set_postfix_str(variant.name, False)
        )
    _write(results, file)


@contextmanager
def _progress(steps: int):
    """Show one bar over all runs, in steps, in place of ComfyUI's own for each run."""
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    with progress_bar("benchmark", steps) as bar:
        comfy.utils.set_progress_bar_global_hook(lambda *_args, **_options: bar.update(1))
        try:
            yield bar
        finally:
            comfy.utils.set_progress_bar_global_hook(None)


def _report(file: Path) -> list[Path]:
    """Write what is made from the results in ``file``; return all files."""
    import profile_report
    import speed_report

    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        is_profile = "profiles" in results
    except (OSError, ValueError, TypeError):
        raise BenchError(f"expected results of this benchmark, could not read {file}.") from None
    if not is_profile:
        return [file, *speed_report.write_report(file)]
    table = file.with_suffix(".md")
    table.write_text(profile_report.profile_text(results), encoding="utf-8")
    return [file, table]


def _write(results: dict, file: Path) -> None:
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _name(settings: Settings, is_profile: bool) -> str:
    kind = "profile" if is_profile else "speed"
    size = f"{settings.width}x{settings.height}x{settings.frames}"
    return f"{kind}_{settings.model}_{settings.device}_{settings.dtype}_{size}.json"


def _command() -> str:
    """Return the command as another would type it, without this machine's folders."""
    words = [Path(word).name if "/" in word or "\\" in word else word for word in sys.argv[1:]]
    return " ".join(["python3 benchmarks/speed.py", *words])


def _is_out_of_memory(error: Exception) -> bool:
    import comfy.model_management

    kinds = (comfy.model_management.OOM_EXCEPTION, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
