"""Runs variants side by side and says what each took: time, evaluations, memory, difference.

The model given is only ever cloned by nodes, and is loaded as it was when a measurement ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from host_nodes import HostNodes
from live_memory import LiveMemory
from sampling_jobs import Job
from speed_variants import Variant

WARM_UP_STEPS = 2


@dataclass
class Run:
    """One run of one variant.

    seconds: from the first UNet evaluation to the finished latent, the device waited for; loading
        is not sampling. cpu_seconds: of this process meanwhile, all threads together.
    evaluations: of the UNet, two where cond and uncond are computed.
    peak_bytes: on a GPU all that torch held at once, weights too; 0 on a CPU.
    cache_bytes: held by VCUT's cache.
    """

    latent: torch.Tensor
    seconds: float
    cpu_seconds: float
    evaluations: int
    peak_bytes: int
    cache_bytes: int


@dataclass
class Result:
    """All runs of one variant.

    ratios: seconds of the baseline over this variant's, each of the same round.
    live_bytes: peak of the tensors alive beside the weights, of a shorter run that is not timed.
    error: why it was given up, if it was.
    """

    key: str
    name: str
    kind: str
    steps: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    cpu_ratios: list[float] = field(default_factory=list)
    evaluations: int = 0
    peak_bytes: int = 0
    live_bytes: int = 0
    cache_bytes: int = 0
    relative_difference: float = 0.0
    largest_difference: float = 0.0
    is_finite: bool = True
    error: str = ""

    def add(self, run: Run, baseline: Run) -> None:
        """Take in one run and the baseline's of the same round."""
        self.seconds.append(run.seconds)
        self.cpu_seconds.append(run.cpu_seconds)
        self.ratios.append(baseline.seconds / run.seconds)
        if run.cpu_seconds:
            self.cpu_ratios.append(baseline.cpu_seconds / run.cpu_seconds)
        self.evaluations = run.evaluations
        self.peak_bytes = max(self.peak_bytes, run.peak_bytes)
        self.cache_bytes = max(self.cache_bytes, run.cache_bytes)
        self.is_finite = self.is_finite and bool(run.latent.isfinite().all())
        self.relative_difference = relative_difference(run.latent, baseline.latent)
        self.largest_difference = (run.latent - baseline.latent).abs().max().item()


def relative_difference(latent: torch.Tensor, baseline: torch.Tensor) -> float:
    """Return the norm of the difference relative to that of the baseline."""
    return ((latent - baseline).norm() / baseline.norm()).item()


def rotated(variants: list, round_index: int, rounds: int) -> list:
    """Return the variants beginning elsewhere in each round, so that none is always the first."""
    start = round_index * len(variants) // max(1, rounds)
    return variants[start:] + variants[:start]


@torch.inference_mode()
def measure_side_by_side(
    nodes: HostNodes,
    model,
    job: Job,
    variants: list[Variant],
    rounds: int,
    *,
    has_live_memory: bool,
    on_run: Callable[[Variant, str], None] = lambda variant, stage: None,
    on_round: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Return a result for each variant, the first of which is the baseline.

    has_live_memory: count live tensors in the run that warms each variant up.
    on_run: called before each run. on_round: called with the results after each round.
    A variant that fails is given up and says why; a baseline that fails raises what it raised.
    """
    results = {v.key: Result(v.key, v.name, v.kind, v.steps(job.steps)) for v in variants}
    patched = {}
    with left_as_it_was(model):
        for variant in variants:
            on_run(variant, "warming up")
            with _given_up(results[variant.key], variant):
                clone = variant.patch(nodes, model)
                live_bytes = _warm_up(nodes, clone, job, variant, has_live_memory)
                results[variant.key].live_bytes = live_bytes
                patched[variant.key] = clone
        for index in range(rounds):
            runs = {}
            for variant in rotated(variants, index, rounds):
                if results[variant.key].error:
                    continue
                on_run(variant, f"round {index + 1} of {rounds}")
                with _given_up(results[variant.key], variant):
                    runs[variant.key] = measure_run(nodes, patched[variant.key], job, variant)
            for key, run in runs.items():
                results[key].add(run, runs["baseline"])
            on_round(list(results.values()))
    return list(results.values())


@contextmanager
def _given_up(result: Result, variant: Variant) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # another pack's may raise anything; the rest is still measured
        if variant.kind in ("baseline", "vcut"):
            raise
        result.error = f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def left_as_it_was(model) -> Iterator[None]:
    """Load ``model`` again at the end: ComfyUI leaves the last clone's patches on the layers."""
    import comfy.model_management

    try:
        yield
    finally:
        comfy.model_management.load_models_gpu([model])


def warm_up_steps(variant: Variant, job: Job) -> int:
    """Return the steps of the run that warms a variant up."""
    return variant.steps(min(job.steps, WARM_UP_STEPS))


def _warm_up(nodes: HostNodes, model, job: Job, variant: Variant, has_live_memory: bool) -> int:
    """Run a few steps; return the peak of live bytes, 0 when not counted."""
    short = Job(**{**vars(job), "steps": min(job.steps, WARM_UP_STEPS)})
    if not has_live_memory:
        variant.sample(nodes, model, short)
        return 0
    with LiveMemory() as memory:
        variant.sample(nodes, model, short)
    return memory.peak_bytes


def measure_run(nodes: HostNodes, model, job: Job, variant: Variant) -> Run:
    """Sample once with ``model``, which ``variant`` has patched, and measure it from outside."""
    from tiny_svd.demo_nodes import watch_evaluations  # of ComfyUI: the rest runs without

    device = model.load_device
    watch = _Watch(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    unet = model.model.diffusion_model
    with ExitStack() as stack:
        stack.enter_context(watch_evaluations(unet, watch.on_evaluation))
        transformer = unet.middle_block[1]  # is called once the UNet's wrappers have run
        hook = transformer.register_forward_pre_hook(watch.on_call, with_kwargs=True)
        stack.callback(hook.remove)
        latent = variant.sample(nodes, model, job)
        seconds, cpu_seconds = watch.stop()
    peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    cache_bytes = max((cache.nbytes() for cache in watch.caches), default=0)
    latent = latent.float().cpu()
    return Run(latent, seconds, cpu_seconds, watch.evaluations, peak_bytes, cache_bytes)


class _Watch:
    """Clock and counter of one run, started by its first UNet evaluation."""

    def __init__(self, device: torch.device) -> None:
        self.evaluations = 0
        self.caches: list[Any] = []
        self._device = device
        self._started: tuple[float, float] | None = None

    def on_evaluation(self, cond_or_uncond: list[int]) -> None:
        if self._started is None:
            self._started = self._now()
        self.evaluations += len(cond_or_uncond)

    def on_call(self, _transformer, inputs: tuple, options: dict) -> None:
        """Keep VCUT's cache of this run: it is discarded with the run, before it can be weighed."""
        given = [value for value in (*inputs, *options.values()) if isinstance(value, dict)]
        calls = [value["vcut_call"] for value in given if "vcut_call" in value]
        techniques = calls[0].unet.techniques if calls else []
        caches = [technique.cache for technique in techniques if hasattr(technique, "cache")]
        self.caches += [cache for cache in caches if cache not in self.caches]

    def stop(self) -> tuple[float, float]:
        assert self._started is not None, "the sampler never called the UNet"
        seconds, cpu_seconds = self._now()
        return seconds - self._started[0], cpu_seconds - self._started[1]

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()
