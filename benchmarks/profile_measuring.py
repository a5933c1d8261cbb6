"""Where the time of one UNet evaluation goes: by component of the UNet and by torch operator.

A label is put around each component for one evaluation only, by its ``forward``: VCUT would leave
a block alone whose layers had hooks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from host_nodes import HostNodes
from sampling_jobs import Job
from speed_measuring import left_as_it_was
from speed_variants import Variant
from torch.profiler import ProfilerActivity, profile, record_function

PREFIX = "unet."
UNET = "whole UNet"
OPERATORS = 30
PROFILED_CALL = 2  # the first fills caches and warms up


def component_of(path: str, module: torch.nn.Module, parent: torch.nn.Module | None):
    """Return (component, component that it is part of) of a module of SVD's UNet, or None.

    Those without a component of their own count to the one around them.
    """
    kind, parent_kind = type(module).__name__, type(parent).__name__
    leaf = path.rpartition(".")[2]
    side = "temporal" if ".time_stack" in path else "spatial"
    if kind == "SpatialVideoTransformer":
        return "transformers", UNET
    if kind == "BasicTransformerBlock":
        return f"{side} transformer block", "transformers"
    if parent_kind == "BasicTransformerBlock":
        return f"{side} {leaf}", f"{side} transformer block"
    if parent_kind == "SpatialVideoTransformer" and not leaf.endswith(("blocks", "stack")):
        return f"transformer {leaf}", "transformers"
    if kind == "VideoResBlock":
        return "residual blocks", UNET
    if kind == "ResBlock":
        return "temporal residual block", "residual blocks"
    if parent_kind == "ResBlock":
        return f"temporal residual {leaf}", "temporal residual block"
    if parent_kind == "VideoResBlock":
        return f"spatial residual {leaf}", "residual blocks"
    if kind in ("Downsample", "Upsample"):
        return "down- and upsampling", UNET
    if path in ("time_embed", "label_emb", "out", "input_blocks.0"):
        return {"input_blocks.0": "first convolution"}.get(path, path), UNET
    return None


def components(unet: torch.nn.Module) -> dict[str, tuple[str, str]]:
    """Return path -> (component, the one around it) for the modules of ``unet`` that have one."""
    modules = dict(unet.named_modules())
    found = {}
    for path, module in modules.items():
        parent = modules.get(path.rpartition(".")[0]) if path else None
        component = component_of(path, module, parent) if path else None
        if component is not None:
            found[path] = component
    return found


@contextmanager
def labelled(unet: torch.nn.Module) -> Iterator[None]:
    """Put each component's label around its forward, whatever forward it has now."""
    with ExitStack() as stack:
        modules = dict(unet.named_modules())
        for path, (name, _) in components(unet).items():
            # VCUT answers a cross-attention within its block only while nobody watches the layer.
            if not (path.endswith("attn2") and "forward" in vars(modules[path])):
                stack.callback(_label(modules[path], PREFIX + name))
        yield


def _label(module: torch.nn.Module, name: str) -> Callable[[], None]:
    """Label the module's forward; return what undoes it."""
    had_own, forward = "forward" in vars(module), module.forward

    def with_label(*args, **kwargs):
        with record_function(name):
            return forward(*args, **kwargs)

    module.forward = with_label

    def undo() -> None:
        if had_own:
            module.forward = forward
        else:
            del module.forward

    return undo


@torch.inference_mode()
def profile_side_by_side(
    nodes: HostNodes, model, job: Job, variants: list[Variant], on_run: Callable[[Variant], None]
) -> dict:
    """Return key -> profile of one evaluation of each variant: its second, cond and uncond."""
    short = Job(**{**vars(job), "steps": PROFILED_CALL})
    profiles = {}
    with left_as_it_was(model):
        for variant in variants:
            on_run(variant)
            clone = variant.patch(nodes, model)
            recorded = _profile_one_call(clone, lambda m, v=variant: v.sample(nodes, m, short))
            parts = dict(components(model.model.diffusion_model).values())
            profiles[variant.key] = _summary(recorded, parts, clone.load_device.type == "cuda")
    return profiles


def _profile_one_call(model, sample: Callable) -> profile:
    """Sample with the profiler on for one call of the UNet."""
    is_cuda = model.load_device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
    recorded = profile(activities=activities)
    unet, calls = model.model.diffusion_model, 0
    with ExitStack() as call:  # closed by the call itself, or here when the call fails

        def before(module, _inputs) -> None:
            nonlocal calls
            calls += 1
            if calls == PROFILED_CALL:
                call.enter_context(labelled(module))
                call.enter_context(recorded)
                call.enter_context(record_function(PREFIX + UNET))

        def after(*_) -> None:
            if calls == PROFILED_CALL:
                if is_cuda:
                    torch.cuda.synchronize()
                call.close()

        handles = [unet.register_forward_pre_hook(before), unet.register_forward_hook(after)]
        try:
            sample(model)
        finally:
            for handle in handles:
                handle.remove()
    return recorded


def _summary(recorded: profile, parts: dict[str, str], is_cuda: bool) -> dict:
    """Return milliseconds and calls of components (each without those inside it) and operators."""
    inside = {f"{PREFIX}{name}" for name in (UNET, *parts)}
    totals: dict[str, list[float]] = {}
    for event in recorded.events() or ():
        if event.name in inside and event.device_type == torch.autograd.DeviceType.CPU:
            total = totals.setdefault(event.name[len(PREFIX) :], [0.0, 0])
            total[0] += (event.device_time_total if is_cuda else event.cpu_time_total) / 1e3
            total[1] += 1
    own = {name: {"ms": ms, "calls": calls} for name, (ms, calls) in totals.items()}
    for name, part_of in parts.items():
        if name in totals and part_of in own:
            own[part_of]["ms"] -= totals[name][0]
    around = set(parts.values())
    own = {f"{name}, the rest" if name in around else name: row for name, row in own.items()}
    operators = [
        {
            "name": event.key,
            "ms": (event.self_device_time_total if is_cuda else event.self_cpu_time_total) / 1e3,
            "calls": event.count,
        }
        for event in recorded.key_averages()
        if not event.key.startswith(PREFIX)
    ]
    operators.sort(key=lambda row: -row["ms"])
    whole_ms = totals.get(UNET, [0.0])[0]
    return {"whole_ms": whole_ms, "components": own, "operators": operators[:OPERATORS]}
