"""Whether VCUT's nodes are exact on every format that SVD's weights are shared in.

python3 benchmarks/weight_formats.py

Writes SVD-XT's UNet at full size with random weights (SEED of full_size_svd.py) in one format after
another, loads it with ComfyUI's own loaders and prints how far each node moves one step of 64x64
pixels and 3 frames from the same model without it. A file of up to 3 GB at a time.
"""

import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parent / "demo")]

from private_comfyui.install import run_inside  # noqa: E402

SIDE, FRAMES = 64, 3
PREFIX = "model.diffusion_model."
# As the file stores them, and what Load Diffusion Model is told; no dtype: a checkpoint's loader.
FORMATS = {
    "fp16 checkpoint": ("float16", PREFIX, None),
    "bf16 checkpoint": ("bfloat16", PREFIX, None),
    "fp8 e4m3fn checkpoint": ("float8_e4m3fn", PREFIX, None),
    "scaled fp8 checkpoint": ("scaled", PREFIX, None),
    "fp16 without a prefix": ("float16", "", None),
    "UNet alone, default": ("float16", "", "default"),
    "UNet alone, fp8_e4m3fn": ("float16", "", "fp8_e4m3fn"),
    "UNet alone, fp8_e4m3fn_fast": ("float16", "", "fp8_e4m3fn_fast"),
    "UNet alone, fp8_e5m2": ("float16", "", "fp8_e5m2"),
}
NODES = {
    "cached": ("VCUT_PatchSVDModel", {}),
    "blocks": ("VCUT_FeatureSlicer", {"slices": 4, "scope": "blocks"}),
    "everything": ("VCUT_FeatureSlicer", {"slices": 4, "scope": "everything"}),
}


def main() -> int:
    """Print a markdown table with a row for each format."""
    exit_code = run_inside(Path(__file__), sys.argv[1:])
    if exit_code is not None:
        return exit_code
    from host_nodes import HostNodes, start_comfyui

    start_comfyui("cpu")
    nodes = HostNodes()
    print(f"| weights | computed in | {' | '.join(NODES)} | VCUT Load SVD Checkpoint |")
    print("| --- " * (len(NODES) + 3) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for title, (stored, prefix, dtype) in FORMATS.items():
            file = _write(Path(folder), stored, prefix)
            print(f"| {title} | {' | '.join(_distances(nodes, file, dtype))} |", flush=True)
            file.unlink()
    return 0


def _write(folder: Path, stored: str, prefix: str) -> Path:
    import torch
    from full_size_svd import make_svd
    from safetensors.torch import save_file

    unet = make_svd(torch.float16).model.diffusion_model
    weights = {}
    for name, weight in unet.state_dict().items():
        if stored != "scaled":
            weights[prefix + name] = weight.to(getattr(torch, stored))
        elif weight.ndim == 2:  # the layers that packs of scaled weights store so
            scale = weight.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
            weights[prefix + name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[prefix + name.removesuffix("weight") + "scale_weight"] = scale.clone()
        else:
            weights[prefix + name] = weight
    if stored == "scaled":
        weights[prefix + "scaled_fp8"] = torch.zeros(1, dtype=torch.float8_e4m3fn)
    file = folder / "svd.safetensors"
    save_file(weights, file)
    return file


def _distances(nodes, file: Path, dtype: str | None) -> list[str]:
    """Return what the model computes in, then how far each node moves the picture."""
    import folder_paths

    kind = "checkpoints" if dtype is None else "diffusion_models"
    folder_paths.add_model_folder_path(kind, str(file.parent))
    if dtype is None:
        load = ("ImageOnlyCheckpointLoader", {"ckpt_name": file.name})
    else:
        load = ("UNETLoader", {"unet_name": file.name, "weight_dtype": dtype})
    model = nodes.call(load[0], **load[1])[0]
    without = _sample(nodes, model)
    computed_in = str(model.model.manual_cast_dtype or model.model.get_dtype())
    cells = [computed_in.removeprefix("torch.")]
    for node_id, inputs in NODES.values():
        patched = nodes.patch(node_id, model, **inputs)
        cells.append(_relative(_sample(nodes, patched), without))
    del model, patched
    if dtype is not None:
        return [*cells, "not for this"]
    pruned = nodes.call("VCUT_LoadSVDCheckpoint", ckpt_name=file.name)[0]
    return [*cells, _relative(_sample(nodes, pruned), without)]


def _sample(nodes, model):
    import torch
    from full_size_svd import RandomImageEncoder, RandomVAE
    from sampling_jobs import Job, one_sampler

    positive, negative, latent = nodes.call(
        "SVD_img2vid_Conditioning",
        clip_vision=RandomImageEncoder(),
        init_image=torch.full((1, SIDE, SIDE, 3), 0.5),
        vae=RandomVAE(),
        width=SIDE,
        height=SIDE,
        video_frames=FRAMES,
    )
    return one_sampler(nodes, model, Job(positive, negative, latent, steps=1))["samples"].float()


def _relative(output, expected) -> str:
    """Return the distance as a part of the norm of what is expected."""
    distance = ((output - expected).norm() / expected.norm()).item()
    return "equal" if distance == 0 else f"{distance:.1e}"


if __name__ == "__main__":
    sys.exit(main())
