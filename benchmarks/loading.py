"""Loads a checkpoint with the stock loader and with VCUT's, each in its own process.

python3 benchmarks/loading.py [--checkpoint NAME]

Prints what the UNet holds, what ComfyUI plans with, and the peak memory of the process.
benchmarks/make_full_size_checkpoint.py makes the default checkpoint.
"""

import argparse
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT / "demo"))

from private_comfyui.install import current_host, run_inside  # noqa: E402
from private_comfyui.launch import make_comfyui_importable, make_pack_importable  # noqa: E402

LOADERS = ("stock", "cached", "remove")


def main() -> int:
    """Print a markdown table with a row for each loader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="svd_xt_random.safetensors")
    parser.add_argument("--loader", choices=LOADERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    exit_code = run_inside(Path(__file__), sys.argv[1:])
    if exit_code is not None:
        return exit_code
    if arguments.loader:
        print(measure(arguments.checkpoint, arguments.loader))
        return 0
    print("| loader | parameters of the UNet | model_size() | peak memory while loading |")
    print("| --- | --- | --- | --- |")
    for loader in LOADERS:
        command = [sys.executable, __file__, "--loader", loader]
        command += ["--checkpoint", arguments.checkpoint]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(output.strip().splitlines()[-1], flush=True)
    return 0


def measure(checkpoint: str, loader: str) -> str:
    """Load ``checkpoint`` and return one row of the table."""

    import psutil

    host = current_host()
    make_comfyui_importable(host.comfyui)
    import folder_paths

    import nodes  # noqa: F401  ComfyUI's, before the pack's folder of that name

    for models in host.models:
        folder_paths.add_model_folder_path("checkpoints", str(models / "checkpoints"))
    make_pack_importable()
    # Before either loader, as a running ComfyUI has it: its modules take memory too.
    from vcut.comfy_adapter import load_pruned
    from vcut.vcut_core.cross_attention import CrossAttentionConfig

    if loader == "stock":
        from comfy_extras.nodes_video_model import ImageOnlyCheckpointLoader

        model, _clip_vision, _vae = ImageOnlyCheckpointLoader().load_checkpoint(checkpoint)
    else:
        model, _clip_vision, _vae = load_pruned(checkpoint, CrossAttentionConfig(temporal=loader))
    count = sum(parameter.numel() for parameter in model.model.diffusion_model.parameters())
    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", None) or _peak_rss()
    return f"| {loader} | {count:,} | {model.model_size():,} bytes | {peak / 1e9:.3f} GB |"


def _peak_rss() -> int:
    """Return the peak memory of this process in bytes, on Linux and macOS."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
