"""What a speed benchmark runs on: its settings, the checks before it, the model and the picture."""

import platform
import re
from dataclasses import asdict, dataclass
from datetime import date

from host_nodes import ROOT, BenchError, HostNodes
from machine import cpu_name
from sampling_jobs import Job

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
FULL_SIZE = ("svd", "svd_xt")
FRAMES = {"svd": 14, "svd_xt": 25, "tiny": 14}
# Peak activations of SVD-XT at 1024x576, 25 frames, cond and uncond, fp16; they grow with pixels.
ACTIVATION_BYTES = 8.0e9 / (1024 * 576 * 25 * 2)
PROCESS_BYTES = 1.2e9  # torch, ComfyUI and what a kernel takes for itself


@dataclass(frozen=True)
class Settings:
    """What is sampled, on what. Sizes in pixels."""

    model: str
    device: str
    dtype: str
    width: int
    height: int
    frames: int
    steps: int
    rounds: int
    cfg: float = 2.5
    sampler: str = "euler"
    scheduler: str = "karras"
    seed: int = 0

    def as_json(self) -> dict:
        """Return the settings for the results file."""
        return asdict(self)


def default_settings(model: str | None, device: str) -> dict:
    """Return the settings that suit a device: SVD-XT in full on a GPU, a small video on a CPU."""
    if model == "tiny":
        size = {"width": 64, "height": 64, "frames": FRAMES["tiny"], "steps": 25, "rounds": 3}
    elif device == "cuda":
        frames = FRAMES[model or "svd_xt"]
        size = {"width": 1024, "height": 576, "frames": frames, "steps": 25, "rounds": 3}
    else:
        size = {"width": 256, "height": 128, "frames": 4, "steps": 5, "rounds": 1}
    dtype = "fp16" if device == "cuda" and model != "tiny" else "fp32"
    return {"model": model or "svd_xt", "device": device, "dtype": dtype, **size}


def choose_device(wanted: str | None) -> str:
    """Return cuda or cpu: what was asked for, else a GPU if torch sees one.

    Raises BenchError when a GPU was asked for and there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise BenchError(
            f"expected a GPU for --device cuda, PyTorch {torch.__version__} sees none. Use "
            "--device cpu, or --comfyui PATH with a ComfyUI that runs on your GPU."
        )
    return wanted or ("cuda" if has_gpu else "cpu")


def require_usable(settings: Settings) -> None:
    """Raise BenchError for sizes that SVD has not, or when the memory is not there."""
    import psutil

    if settings.width % 64 or settings.height % 64:
        raise BenchError(
            f"expected a width and height that 64 divides, got {settings.width}x{settings.height}."
        )
    needed, available = needed_memory(settings), psutil.virtual_memory().available
    if needed > available:
        raise BenchError(
            f"expected {needed / 1e9:.1f} GB of free memory for {settings.model} in "
            f"{settings.dtype}, got {available / 1e9:.1f} GB. Close other programs, or use a "
            "smaller --width, --height or --frames, --dtype fp16, or --model tiny."
        )


def needed_memory(settings: Settings) -> float:
    """Return the bytes of main memory that a run needs at least."""
    if settings.model not in FULL_SIZE:
        return PROCESS_BYTES
    from full_size_svd import PARAMETERS

    size = BYTES[settings.dtype]
    weights = PARAMETERS * size
    if settings.device == "cuda":
        return PROCESS_BYTES + weights
    pixels = settings.width * settings.height * settings.frames
    return PROCESS_BYTES + weights + ACTIVATION_BYTES * pixels * size


def make_model_and_job(nodes: HostNodes, settings: Settings) -> tuple:
    """Return (ModelPatcher, Job): random weights at full size, or the trained tiny model."""
    import torch

    torch.manual_seed(settings.seed)
    if settings.model in FULL_SIZE:
        from full_size_svd import make_svd

        return make_svd(dtype_of(settings)), make_random_job(nodes, settings)
    from tiny_svd.loader import load_tiny_svd

    model, clip_vision, vae = load_tiny_svd()
    return model, _make_job(nodes, settings, clip_vision, vae, _example_picture())


def dtype_of(settings: Settings):
    """Return the torch dtype of the weights."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[settings.dtype]


def make_random_job(nodes: HostNodes, settings: Settings) -> Job:
    """Return a job for random weights: a random picture, embedding and latent."""
    import torch
    from full_size_svd import RandomImageEncoder, RandomVAE

    picture = torch.rand(1, settings.height, settings.width, 3)
    return _make_job(nodes, settings, RandomImageEncoder(), RandomVAE(), picture)


def _make_job(nodes: HostNodes, settings: Settings, clip_vision, vae, picture) -> Job:
    import torch

    with torch.inference_mode():
        positive, negative, latent = nodes.call(
            "SVD_img2vid_Conditioning",
            clip_vision=clip_vision,
            init_image=picture,
            vae=vae,
            width=settings.width,
            height=settings.height,
            video_frames=settings.frames,
        )
    names = {"sampler": settings.sampler, "scheduler": settings.scheduler, "seed": settings.seed}
    return Job(positive, negative, latent, settings.steps, settings.cfg, **names)


def _example_picture():
    """Return the demo's picture, (1, H, W, 3) in 0..1."""
    import numpy
    import torch
    from PIL import Image

    file = ROOT / "demo" / "tiny_svd" / "example_input.png"
    pixels = numpy.asarray(Image.open(file).convert("RGB"), dtype="float32") / 255
    return torch.from_numpy(pixels)[None]


def circumstances(settings: Settings, command: str) -> dict:
    """Return what a results file says of the machine, the versions and the settings."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "device": _device(settings.device),
        "versions": _versions(settings.device),
        "weights": "random" if settings.model in FULL_SIZE else "trained",
        "settings": settings.as_json(),
    }


def _device(device: str) -> dict:
    import torch

    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        memory = properties.total_memory
        return {"type": "cuda", "name": properties.name, "memory_bytes": memory, "threads": 0}
    import psutil

    memory, threads = psutil.virtual_memory().total, torch.get_num_threads()
    return {"type": "cpu", "name": cpu_name(), "memory_bytes": memory, "threads": threads}


def _versions(device: str) -> dict[str, str]:
    import torch
    from comfyui_version import __version__ as comfyui_version

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    versions = {
        "VCUT": match[1] if match else "unknown",
        "ComfyUI": comfyui_version,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
    }
    return versions | ({"CUDA": str(torch.version.cuda)} if device == "cuda" else {})
