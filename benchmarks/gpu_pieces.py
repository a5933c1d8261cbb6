"""What benchmarks/gpu.py measures, piece by piece. Weights are random, of full size.

Every piece is a generator: it yields a row after each measurement, so that what is done is kept.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import comfy.model_management
import torch
from full_size_svd import make_svd, make_video_vae
from host_nodes import HostNodes
from profile_measuring import profile_side_by_side
from sampling_jobs import Job
from speed_measuring import WARM_UP_STEPS, Result, measure_run, relative_difference
from speed_setup import Settings, dtype_of, make_random_job
from speed_variants import VARIANTS, Variant, choose, compiled

LARGE = (
    "cached", "cut_17", "cut_20", "balanced", "cut_17_balanced", "cut_17_fast", "feed_forward",
    "blocks", "everything", "two_samplers", "easycache", "ays", "cut_17_ays",
)  # fmt: skip
CARDS = (8, 12, 16, 24)  # GiB
# Of a card: its desktop, the CUDA context, what is not PyTorch's.
TAKEN_BYTES = 1 << 30
SCOPES_BY_CARD = {8: "everything", 12: "blocks", 16: "feed_forward", 24: "feed_forward"}
DECODE_SLICES = (2, 5, 13, 25)


@dataclass
class Bench:
    """The models, made when a piece first needs them. settings: of the video; dtype of all."""

    nodes: HostNodes
    settings: Settings
    unet: dict | None = None  # changes to its config, for a smaller one
    _made: dict = field(default_factory=dict)

    def sized(self, width: int, height: int, frames: int) -> "Bench":
        """Return the bench for videos of another size, with the same models."""
        changed = replace(self.settings, width=width, height=height, frames=frames)
        return replace(self, settings=changed)

    @property
    def model(self):
        """SVD's ModelPatcher."""
        return self._one("model", lambda: make_svd(dtype_of(self.settings), self.unet))

    @property
    def vae(self):
        """SVD's VAE."""
        return self._one("vae", lambda: make_video_vae(dtype_of(self.settings)))

    def job(self) -> Job:
        """Return the conditioning and the sampler's settings."""
        return make_random_job(self.nodes, self.settings)

    def _one(self, name: str, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def measure_speed(bench: Bench, variants: list[Variant]) -> Iterator[dict]:
    """Yield the result of each variant, as speed.py's; the first one is the baseline."""
    job, baseline = bench.job(), None
    for variant in variants:
        result = Result(variant.key, variant.name, variant.kind, variant.steps(job.steps))
        try:
            with torch.inference_mode():
                model = variant.patch(bench.nodes, bench.model)
                variant.sample(bench.nodes, model, _warm_up(job))
                run = measure_run(bench.nodes, model, job, variant)
            baseline = baseline or run
            result.add(run, baseline)
        except Exception as error:  # a rival that fails; the rest is still measured
            if baseline is None:
                raise
            result.error = f"{type(error).__name__}: {error}".splitlines()[0]
        yield vars(result)


def _warm_up(job: Job) -> Job:
    return replace(job, steps=min(job.steps, WARM_UP_STEPS))


def speed_variants(keys: tuple[str, ...] | None = None) -> list[Variant]:
    """Return the variants of those keys, all without any."""
    return choose(list(keys) if keys else None, VARIANTS)


@torch.inference_mode()
def measure_compiled(bench: Bench) -> Iterator[dict]:
    """Yield seconds of stock and of cached cross-attention, eager and compiled by inductor.

    Nothing watches these runs: a hook on the UNet would be traced with it.
    """
    job, latents = bench.job(), {}
    eager = choose(["cached"], VARIANTS)
    for variant in (*eager, *map(compiled, eager)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        sample = functools.partial(
            variant.sample, bench.nodes, variant.patch(bench.nodes, bench.model)
        )
        _, warming = _timed(lambda run=sample: run(_warm_up(job)))
        sample(job)  # another number of steps may compile once more
        latent, seconds = _timed(lambda run=sample: run(job))
        latents[variant.key] = latent
        whole = latents[variant.key.removeprefix("compiled_")]
        yield {
            "key": variant.key,
            "name": variant.name,
            "seconds": seconds,
            "warm_up_seconds": warming,
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
            "breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
            "difference_from_eager": relative_difference(latent, whole),
        }


def _timed(run) -> tuple:
    started = time.perf_counter()
    output = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return output, time.perf_counter() - started


def measure_memory(bench: Bench, variants: list[Variant]) -> Iterator[dict]:
    """Yield the peak of activations of each variant, and what ComfyUI plans with."""
    job = replace(bench.job(), steps=min(2, bench.settings.steps))
    settings = bench.settings
    shape = [2 * settings.frames, 4, settings.height // 8, settings.width // 8]
    for variant in variants:
        model = variant.patch(bench.nodes, bench.model)
        with torch.inference_mode():
            run = measure_run(bench.nodes, model, job, variant)
        yield {
            "key": variant.key,
            "name": variant.name,
            "peak_bytes": max(0, run.peak_bytes - model.loaded_size()),
            "comfyui_plans_bytes": int(model.memory_required(shape)),
        }


def measure_decoding(bench: Bench) -> Iterator[dict]:
    """Yield seconds and peak of decoding: by VAE Decode, and by VCUT Decode Video in slices."""
    settings = bench.settings
    latent = torch.randn(settings.frames, 4, settings.height // 8, settings.width // 8)
    whole = None
    for name, node, inputs in (
        ("VAE Decode", "VAEDecode", {}),
        *((f"{n} slices", "VCUT_DecodeVideo", {"slices": n}) for n in (1, *DECODE_SLICES)),
    ):
        images, seconds, peak = _decode(bench, latent, node, inputs)  # which warms up too
        images, seconds, peak = _decode(bench, latent, node, inputs)
        whole = images if whole is None else whole
        difference = (images - whole).abs().max().item()
        yield {"name": name, "seconds": seconds, "peak_bytes": peak, "largest": difference}


@torch.inference_mode()
def _decode(bench: Bench, latent, node: str, inputs: dict) -> tuple:
    """Return (pictures, seconds, peak of bytes beside the weights)."""
    device = bench.vae.device
    comfy.model_management.load_models_gpu([bench.vae.patcher])
    _start_peak(device)
    started = time.perf_counter()
    images = bench.nodes.call(node, samples={"samples": latent}, vae=bench.vae, **inputs)[0]
    _wait(device)
    seconds = time.perf_counter() - started
    return images.cpu(), seconds, max(0, _peak(device) - bench.vae.patcher.loaded_size())


def measure_cards(bench: Bench) -> Iterator[dict]:
    """Yield for each size of card what fits: stock, and VCUT sized for it, sampled and decoded."""
    patch, slicer = "VCUT_PatchSVDModel", "VCUT_FeatureSlicer"
    job = replace(bench.job(), steps=min(2, bench.settings.steps))
    for card in CARDS:
        for name, nodes, decoder in (
            ("stock", (), "VAEDecode"),
            ("VCUT", ((patch, {}), (slicer, {"scope": SCOPES_BY_CARD[card]})), "VCUT_DecodeVideo"),
        ):
            variant = Variant(name, name, "vcut", nodes)
            row = {"card_gib": card, "name": name}
            with card_of(card, bench.model.load_device):
                row |= _attempt("sampling", lambda v=variant: _sample_on_card(bench, v, job))
                row |= _attempt("decoding", lambda d=decoder: _decode_on_card(bench, d))
            yield row


def _attempt(stage: str, measure) -> dict:
    try:
        seconds, peak = measure()
    except comfy.model_management.OOM_EXCEPTION:
        return {f"{stage}_error": "out of memory"}
    finally:
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
    return {f"{stage}_seconds": seconds, f"{stage}_peak_bytes": peak}


def _sample_on_card(bench: Bench, variant: Variant, job: Job) -> tuple[float, int]:
    model = variant.patch(bench.nodes, bench.model)
    with torch.inference_mode():
        run = measure_run(bench.nodes, model, job, variant)
    return run.seconds / job.steps, run.peak_bytes


def _decode_on_card(bench: Bench, node: str) -> tuple[float, int]:
    settings = bench.settings
    latent = torch.randn(settings.frames, 4, settings.height // 8, settings.width // 8)
    _, seconds, peak = _decode(bench, latent, node, {})
    return seconds, peak + bench.vae.patcher.loaded_size()


@contextmanager
def card_of(gib: int, device: torch.device) -> Iterator[None]:
    """Let PyTorch and ComfyUI have no more of this card than of one of so many GiB."""
    if device.type != "cuda":
        yield
        return
    limit = gib * (1 << 30) - TAKEN_BYTES
    management = comfy.model_management
    free_memory, total = management.get_free_memory, torch.cuda.mem_get_info(device)[1]

    def limited(dev=None, torch_free_too=False):
        if (dev or device).type != "cuda":
            return free_memory(dev, torch_free_too)
        free = max(0, limit - torch.cuda.memory_allocated(device))
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free, unused) if torch_free_too else free

    management.unload_all_models()
    management.soft_empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        with mock.patch.object(management, "get_free_memory", limited):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def profile(bench: Bench) -> Iterator[dict]:
    """Yield where one UNet evaluation of the baseline and of cached cross-attention spends time."""
    variants = choose(["cached"], VARIANTS)
    yield profile_side_by_side(bench.nodes, bench.model, bench.job(), variants, lambda _v: None)


def _start_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
