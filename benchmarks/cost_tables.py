"""Prints what the UNet of SVD and SVD-XT costs, without and with VCUT, beside the paper's figures.

python3 benchmarks/cost_tables.py

Counted on ComfyUI's own UNet at full size on the meta device: no weights, no GPU, some seconds.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "demo"))

from private_comfyui.install import current_host, run_inside  # noqa: E402
from private_comfyui.launch import make_comfyui_importable, make_pack_importable  # noqa: E402

MODELS = {"SVD": 14, "SVD-XT": 25}  # frames
STEPS = 25
CUT_STEPS = (20, 17, 10)
CONVENTIONS = ("CL", "thop", "true")
TERA = 1e12
# Of arXiv 2407.19205, its tables: MACs (T) a step and a video of 25 steps, parameters (billions).
PAPER_PARAMETERS = {"TCA removed": "1.474 B"}
PAPER_STEP = {
    ("SVD", "baseline"): 36.11,
    ("SVD", "TCA removed"): 35.1,
    ("SVD-XT", "baseline"): 64.41,
    ("SVD-XT", "TCA removed"): 62.86,
}
PAPER_VIDEO = {
    ("SVD", None): 903,
    ("SVD", 17): 719,
    ("SVD", 20): 772,
    ("SVD-XT", None): 1610,
    ("SVD-XT", 17): 1288,
    ("SVD-XT", 20): 1382,
}


def main() -> int:
    """Print all tables as markdown."""
    exit_code = run_inside(Path(__file__), sys.argv[1:])
    if exit_code is not None:
        return exit_code
    make_comfyui_importable(current_host().comfyui)
    import nodes  # noqa: F401  ComfyUI's, before the pack's folder of that name

    make_pack_importable()
    sys.path.insert(0, str(BENCH))
    for line in tables():
        print(line)
    return 0


def tables() -> Iterator[str]:
    """Yield the lines of all tables."""
    import comfy.supported_models
    from full_size_svd import UNET
    from vcut.comfy_adapter.cost_reading import build_on_meta, measure_on_meta

    # The config class adds the width of a head.
    unet = build_on_meta(comfy.supported_models.SVD_img2vid(UNET).unet_config)
    costs = {name: measure_on_meta(unet, 1024, 576, frames) for name, frames in MODELS.items()}
    small = measure_on_meta(unet, 576, 320, MODELS["SVD-XT"])
    yield "Full size, 1024x576, one embedding token, cond and uncond in a guided step, T = 1e12."
    yield "TCA, SCA: temporal and spatial cross-attention. The paper counts as thop does."
    yield from _titled("Parameters", parameter_rows(costs["SVD-XT"]))
    yield from _titled("MACs of a guided step (T)", step_rows(costs))
    yield from _titled(f"MACs of a video, {STEPS} steps, thop (T)", video_rows(costs))
    sizes = {"1024x576": costs["SVD-XT"], "576x320": small}
    yield from _titled("Limit of the speedup by true MACs, SVD-XT", limit_rows(sizes))
    yield from _titled("Where it goes, guided step, true MACs (T)", component_rows(costs))


def variants(cost) -> dict[str, dict[str, str]]:
    """Return name -> what becomes of each cross-attention."""
    kinds = cost.cross_attentions()
    temporal = {path: "remove" for path, kind in kinds.items() if kind == "temporal"}
    spatial = {path: "cached" for path, kind in kinds.items() if kind == "spatial"}
    return {"baseline": {}, "TCA removed": temporal, "TCA and SCA": spatial | temporal}


def parameter_rows(cost) -> Iterator[tuple]:
    """Yield the header and rows of the table of parameters."""
    yield "model", "parameters", "paper"
    replaced = variants(cost)
    for name in ("baseline", "TCA removed"):
        count = cost.parameters_needed(replaced[name])
        yield name, f"{count:,}", PAPER_PARAMETERS.get(name, "-")
    cached = dict.fromkeys(cost.cross_attentions(), "cached")
    yield "TCA and SCA keep to_v and to_out", f"{cost.parameters_needed(cached):,}", "-"
    both = replaced["TCA and SCA"]
    yield "TCA removed, SCA keeps to_v and to_out", f"{cost.parameters_needed(both):,}", "-"
    vectors = cost.parameters_needed(both, keep_maps=False)
    yield "TCA removed, SCA only as cached vectors", f"{vectors:,}", "-"


def step_rows(costs: dict) -> Iterator[tuple]:
    """Yield the header and rows of the table of MACs per step."""
    yield "model", "variant", *CONVENTIONS, "paper", "thop to paper"
    for model, cost in costs.items():
        for variant, replaced in variants(cost).items():
            macs = [2 * cost.macs(convention, replaced) / TERA for convention in CONVENTIONS]
            paper = PAPER_STEP.get((model, variant))
            yield model, variant, *(f"{value:.4f}" for value in macs), *_beside(macs[1], paper)


def video_rows(costs: dict) -> Iterator[tuple]:
    """Yield the header and rows of the table of MACs per video."""
    yield "model", "c", "TCA removed", "TCA and SCA", "paper", "TCA removed to paper"
    for model, cost in costs.items():
        replaced = variants(cost)
        baseline = _run(cost).macs("thop") / TERA
        yield (
            model,
            "none",
            f"{baseline:.1f} (baseline)",
            "",
            *_beside(baseline, PAPER_VIDEO[model, None]),
        )
        for cut_step in CUT_STEPS:
            temporal, both = (
                _run(cost, replaced[name], cut_step).macs("thop") / TERA
                for name in ("TCA removed", "TCA and SCA")
            )
            paper = PAPER_VIDEO.get((model, cut_step))
            yield model, str(cut_step), f"{temporal:.1f}", f"{both:.1f}", *_beside(temporal, paper)


def limit_rows(costs: dict) -> Iterator[tuple]:
    """Yield the header and rows of baseline / VCUT for each size."""
    yield "size", "cross-attention alone", *(f"with c = {c}" for c in CUT_STEPS)
    for size, cost in costs.items():
        both = dict.fromkeys(cost.cross_attentions(), "cached")
        runs = [_run(cost, both), *(_run(cost, both, c) for c in CUT_STEPS)]
        yield size, *(f"{run.macs_without() / run.macs():.3f}" for run in runs)
    cuts = [_run(cost, cut_step=c) for c in CUT_STEPS]  # the same at every size
    yield "the cut alone", "-", *(f"{run.macs_without() / run.macs():.3f}" for run in cuts)


def component_rows(costs: dict) -> Iterator[tuple]:
    """Yield the header and rows of parameters and MACs by component."""
    yield "component", "parameters", *costs
    parameters = costs["SVD"].parameters_by_component()
    macs = {model: cost.macs_by_component("true") for model, cost in costs.items()}
    for name in sorted(parameters, key=lambda component: -macs["SVD"][component]):
        counted = (f"{2 * found[name] / TERA:.4f}" for found in macs.values())
        yield name, f"{parameters[name]:,}", *counted


def _run(cost, replaced=None, cut_step: int | None = None):
    from vcut.vcut_core.guidance_cut import GuidanceConfig
    from vcut.vcut_core.run_cost import CostSettings, RunCost

    guidance = GuidanceConfig(cut_step, STEPS) if cut_step else None
    sigmas = [float(STEPS - step) for step in range(STEPS + 1)]  # only their number counts
    return RunCost(cost, CostSettings(replaced or {}, guidance), sigmas)


def _beside(value: float, paper: float | None) -> tuple[str, str]:
    return ("-", "-") if paper is None else (f"{paper:g}", f"{100 * (value / paper - 1):+.2f} %")


def _titled(title: str, rows: Iterable[tuple]) -> Iterator[str]:
    header, *body = rows
    yield f"\n### {title}\n"
    yield from (f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


if __name__ == "__main__":
    sys.exit(main())
