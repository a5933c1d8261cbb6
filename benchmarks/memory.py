"""Counts what SVD's activations take at their peak, without the slicer and with it.

python3 benchmarks/memory.py [--slices 8] [--width 1024 --height 576 --frames 25 --conds 2] ...

Counts every tensor storage of one UNet call on the meta device, weights apart: no GPU, no weights.
With --device cuda it samples random weights of full size instead and asks torch for the peak.
Prints a markdown table and writes benchmarks/results/memory.json.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest import mock

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "demo"))

from command_line import positive  # noqa: E402
from host_nodes import BenchError, HostNodes, start_comfyui  # noqa: E402
from private_comfyui.environments import HostError  # noqa: E402
from private_comfyui.install import run_inside  # noqa: E402
from speed_variants import Variant  # noqa: E402

RESULTS = BENCH / "results" / "memory.json"
SCOPES = ("feed_forward", "blocks", "everything")


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=positive, default=1024)
    parser.add_argument("--height", type=positive, default=576)
    parser.add_argument("--frames", type=positive, default=25)
    parser.add_argument("--conds", type=int, choices=[1, 2], default=2, help="2: with guidance")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("--slices", type=positive, nargs="+", default=[2, 4, 8, 16, 64])
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=list(SCOPES))
    parser.add_argument("--device", choices=["meta", "cuda"], default="meta")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Measure every variant, print the table, write the JSON."""
    options = arguments()
    try:
        exit_code = run_inside(Path(__file__), sys.argv[1:])
        if exit_code is not None:
            return exit_code
        results = _measure_all(options)
    except (BenchError, HostError) as error:
        print(f"VCUT: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def variants(scopes: list[str], slices: list[int]) -> list[Variant]:
    """Return what is measured: nothing, VCUT alone, each scope in each number of slices, both."""
    patch = ("VCUT_PatchSVDModel", {"temporal": "cached", "spatial": "cached"})
    found = [Variant("baseline", "baseline", "baseline"), Variant("vcut", "VCUT", "vcut", (patch,))]
    for scope in scopes:
        for count in slices:
            slicer = ("VCUT_FeatureSlicer", {"slices": count, "scope": scope})
            name = f"`{scope}`, {count} slices"
            found.append(Variant(f"{scope}_{count}", name, "vcut", (slicer,)))
            found.append(Variant(f"vcut_{scope}_{count}", f"VCUT, {name}", "vcut", (patch, slicer)))
    return found


def _measure_all(options: argparse.Namespace) -> dict:
    import platform
    from datetime import date

    start_comfyui("cpu" if options.device == "meta" else options.device)
    import comfyui_version
    import torch

    nodes = HostNodes()
    measure = _on_meta if options.device == "meta" else _on_gpu
    device, measured = measure(nodes, options)
    settings = {name: getattr(options, name) for name in ("width", "height", "frames", "conds")}
    return {
        "command": "python3 benchmarks/memory.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "device": device,
        "versions": {
            "ComfyUI": comfyui_version.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
        },
        "settings": {**settings, "dtype": options.dtype},
        "variants": measured,
    }


def _on_meta(nodes: HostNodes, options: argparse.Namespace) -> tuple[str, list[dict]]:
    import torch
    from meta_unet import measure_call, meta_svd

    dtype = {"fp16": torch.float16, "fp32": torch.float32}[options.dtype]
    size = {name: getattr(options, name) for name in ("frames", "height", "width", "conds")}
    model, measured = meta_svd(dtype), []
    for variant in variants(options.scopes, options.slices):
        clone = variant.patch(nodes, model)
        memory = measure_call(clone, **size)
        shape = [options.frames * options.conds, 4, options.height // 8, options.width // 8]
        with _fused_attention_of_the_host():
            planned = clone.memory_required(shape)
        measured.append({
            "name": variant.name,
            "peak_bytes": memory.peak_bytes,
            "comfyui_plans_bytes": int(planned),
            "peak_in": memory.peak_place,
            "alive": [{"bytes": size, "made_in": place} for size, place in memory.at_peak[:12]],
        })  # fmt: skip
        print(f"{variant.name}: {memory.peak_bytes / 1e9:.3f} GB", file=sys.stderr, flush=True)
    return "meta: every tensor storage, attention fused, no kernel workspace", measured


def _fused_attention_of_the_host():
    """Let ComfyUI plan as it does on a GPU with PyTorch's attention."""
    import comfy.model_management

    name = "pytorch_attention_flash_attention"
    return mock.patch.object(comfy.model_management, name, lambda: True)


def _on_gpu(nodes: HostNodes, options: argparse.Namespace) -> tuple[str, list[dict]]:
    import torch
    from speed_measuring import measure_run
    from speed_setup import Settings, choose_device, make_model_and_job

    choose_device("cuda")  # says so where there is none
    settings = Settings(
        "svd_xt", "cuda", options.dtype, options.width, options.height, options.frames, 2, 1,
        cfg=2.5 if options.conds == 2 else 1.0,
    )  # fmt: skip
    model, job = make_model_and_job(nodes, settings)
    measured = []
    for variant in variants(options.scopes, options.slices):
        clone = variant.patch(nodes, model)
        run = measure_run(nodes, clone, job, variant)
        weights = clone.loaded_size()
        shape = [options.frames * options.conds, 4, options.height // 8, options.width // 8]
        measured.append({
            "name": variant.name,
            "peak_bytes": run.peak_bytes - weights,
            "comfyui_plans_bytes": int(clone.memory_required(shape)),
        })  # fmt: skip
    return torch.cuda.get_device_name(), measured


def table(results: dict) -> str:
    """Return the results as a markdown table."""
    baseline = results["variants"][0]["peak_bytes"]
    lines = [
        "| variant | peak activations | of baseline | ComfyUI plans | peak in |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["variants"]:
        peak, planned = row["peak_bytes"], row["comfyui_plans_bytes"]
        lines.append(
            f"| {row['name']} | {peak / 1e9:.2f} GB | {peak / baseline:.0%} "
            f"| {planned / 1e9:.1f} GB | {row.get('peak_in', '')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
