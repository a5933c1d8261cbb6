"""One sampling run: its memory, its counts, its end of guidance, its report."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..vcut_core.cross_attention import CrossAttentionConfig, ValueCache
from ..vcut_core.guidance import GuidanceConfig
from ..vcut_core.run_summary import RunSummary
from .block_forward import constant_blocks, with_short_time_context
from .call_info import KEY, CallInfo
from .node_feedback import send_run_event, show_on_node
from .run_slicing import RunSlicing
from .sliced_layers import sliced_layers, with_slicing
from .slicing import plan_slicing, told_to_host

logger = logging.getLogger(__name__)

# Wrappers of others that sit between the conds and attn2 and leave the embedding as it is.
HARMLESS_WRAPPERS = {KEY, "easycache", "lazycache", "torch.compile"}
EMBEDDINGS = ("c_crossattn", "time_context")  # the entries of a cond that reach attn2


@dataclass(frozen=True)
class PatchedLayers:
    """A cross-attention config and the number of layers that it asks to replace."""

    config: CrossAttentionConfig
    count: int


def sample_with_vcut(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: give this run a memory, count it, report it, drop it."""
    guider = executor.class_obj
    vcut = guider.model_options["transformer_options"].get(KEY)
    if not vcut:
        return executor(*args, **kwargs)
    shared_options = guider.model_options
    run = SamplingRun(vcut)
    patcher = guider.model_patcher
    noise = args[0] if args else kwargs["noise"]
    estimate = run.plan_slicing(patcher, vcut, noise.shape, shared_options)
    guider.model_options = run.install(shared_options)
    try:
        with told_to_host(patcher.model, estimate):
            output = executor(*args, **kwargs)
        run.finish(output)
        return output
    finally:
        guider.model_options = shared_options
        run.report()


class SamplingRun:
    """State of one sampling run: made when it starts, dropped when it ends."""

    def __init__(self, vcut: dict) -> None:
        self.guidance: GuidanceConfig | None = vcut.get("guidance")
        layers: PatchedLayers | None = vcut.get("cross_attention")
        self.num_layers = layers.count if layers else 0
        self.node_ids = [node_id for node_id in vcut["node_ids"].values() if node_id is not None]
        self.cache = ValueCache()
        self.summary = RunSummary(
            has_guidance=self.guidance is not None, has_cross_attention=self.num_layers > 0
        )
        self.slicing: RunSlicing | None = None  # planned before the model is loaded
        self.unet: torch.nn.Module | None = None  # of the model, once it is loaded
        self.temporal_blocks: list[torch.nn.Module] = []
        self.attn2_calls = 0
        self.expected_attn2_calls = 0
        self.cut_uuids: set = set()  # conds that were evaluated without their uncond
        self.started_at: float | None = None  # of the first evaluation: loading is not sampling

    def install(self, model_options: dict) -> dict:
        """Return a copy of ``model_options`` with this run's wrappers in it.

        Added now, they come after all others, so they count what really reaches the model.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        for kind, wrapper in (
            (WrappersMP.SAMPLER_SAMPLE, self.sampler_sample),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.DIFFUSION_MODEL, self.diffusion_model),
        ):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, options, is_model_options=True
            )
        return options

    def sampler_sample(self, executor, guider, *args, **kwargs):
        """SAMPLER_SAMPLE wrapper: the model is loaded, so its blocks are what they will be."""
        self.unet = guider.inner_model.diffusion_model
        with ExitStack() as stack:
            if self.num_layers or self.slicing is not None:
                self.temporal_blocks = stack.enter_context(constant_blocks(self.unet))
            if self.slicing is not None:
                stack.enter_context(sliced_layers(self.unet, self.slicing))
            return executor(guider, *args, **kwargs)

    @property
    def is_in_later_slice(self) -> bool:
        """Whether a block runs whose first slice has been counted already."""
        return self.slicing is not None and self.slicing.is_in_later_slice

    def plan_slicing(self, patcher, vcut: dict, latent_shape, model_options: dict):
        """Decide how this run slices; return what the host is to be told that it needs, or None."""
        self.slicing, estimate = plan_slicing(patcher, vcut, latent_shape, model_options)
        if self.slicing is None:
            return None
        self.summary.slicing = self.slicing.describe()
        copies = patcher.get_additional_models_with_key("multigpu")  # newer hosts': run unsliced
        if copies:
            self.summary.untouched["slicing on another GPU"] += len(copies)
            return None
        return estimate

    def calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options, *args, **kw):
        """CALC_COND_BATCH wrapper: past the cut, evaluate cond alone and return it for both."""
        self.started_at = self.started_at or time.perf_counter()
        is_pair = len(conds) == 2 and all(conds)
        is_again = not is_pair and self._was_cut(conds)
        if self.guidance is not None and not (is_pair or is_again):
            self.summary.untouched[_describe(conds)] += 1
        if not (is_pair or is_again) or self._is_guided(timestep, model_options):
            options = self._with_call_info(conds, model_options)
            return executor(model, conds, x_in, timestep, options, *args, **kw)
        scale = self.guidance.embedding_scale
        cond = [_scale_embedding(entry, scale) for entry in conds[0]]
        options = self._with_call_info([cond], model_options, scale)
        if is_again:  # PAG and its like: compared with the cut prediction, so made as it was
            return executor(model, [cond, *conds[1:]], x_in, timestep, options, *args, **kw)
        self.cut_uuids.update(entry["uuid"] for entry in cond)
        output = executor(model, [cond, None], x_in, timestep, options, *args, **kw)[0]
        self.summary.evaluations_saved += _count_active(conds[1], x_in, timestep)
        return [output, output]  # equal, so any guidance function returns the conditional one

    def diffusion_model(self, executor, *args, **kwargs):
        """DIFFUSION_MODEL wrapper: count UNet evaluations, spare them the repeated embedding."""
        options = kwargs.get("transformer_options")
        if options is None:
            options = next((arg for arg in args if _is_transformer_options(arg)), {})
        self._count_evaluations(options)
        if executor.class_obj is self.unet:  # not a copy of it on another GPU, in another thread
            kwargs = with_short_time_context(args, kwargs, options)
            if self.slicing is not None:
                args, kwargs = with_slicing(self.slicing, executor, args, kwargs, options)
        return executor(*args, **kwargs)

    @torch.compiler.disable  # a count is a constant to torch.compile: it would compile every call
    def _count_evaluations(self, transformer_options: dict) -> None:
        self.summary.unet_evaluations += len(transformer_options.get("cond_or_uncond", (0,)))
        self.expected_attn2_calls += self.num_layers

    def finish(self, output) -> None:
        """Mark the run as complete once ``output`` is computed, so that the seconds are true."""
        if isinstance(output, torch.Tensor) and output.numel():
            output.flatten()[0].item()
        self.summary.is_complete = True

    def report(self) -> None:
        """Log the run's one line, show it on the nodes and send the counts."""
        summary = self.summary
        if self.started_at is not None:
            summary.elapsed_s = time.perf_counter() - self.started_at
        summary.affine_evaluated = self.cache.evaluated
        summary.affine_reused = self.cache.reused
        bypassed = self.expected_attn2_calls - self.attn2_calls
        if bypassed > 0 and summary.is_complete:
            summary.untouched["cross-attention replaced by another pack"] += bypassed
        logger.info("VCUT: %s", summary.text())
        self._show(summary.text())
        send_run_event(self.node_ids, summary.text().splitlines(), summary.counts_as_data())

    def _was_cut(self, conds) -> bool:
        """Whether the one cond asked for is one that this run has evaluated without its uncond."""
        present = [cond for cond in conds if cond]
        return (
            len(present) == 1
            and present[0] is conds[0]
            and all(entry.get("uuid") in self.cut_uuids for entry in present[0])
        )

    def _is_guided(self, timestep, model_options: dict) -> bool:
        if self.guidance is None:
            return True
        if self.summary.plan is None:
            sigmas = model_options["transformer_options"]["sample_sigmas"]
            self.summary.plan = self.guidance.plan(sigmas.tolist())
            self._show(f"running: {self.summary.planned()}")
        # One read of sigma each evaluation: which branch to run cannot be known without it.
        is_guided = self.summary.plan.is_guided(float(timestep.flatten()[0]))
        logger.debug("VCUT: %s evaluation", "guided" if is_guided else "unguided")
        return is_guided

    def _with_call_info(self, conds, model_options: dict, embedding_scale: float = 1.0) -> dict:
        entries = [entry for cond in conds if cond for entry in cond]
        call = CallInfo(
            run=self,
            embedding_scale=embedding_scale,
            may_cache=not _may_change_the_embedding(model_options)
            and all(_is_constant(entry) for entry in entries),
        )
        transformer_options = {**model_options["transformer_options"], KEY: call}
        return {**model_options, "transformer_options": transformer_options}

    def _show(self, text: str) -> None:
        for node_id in self.node_ids:
            show_on_node(text, node_id)


def _describe(conds) -> str:
    present = sum(bool(cond) for cond in conds)
    return "cfg 1 or one cond" if present == 1 else f"guider with {present} conds"


def _is_transformer_options(argument) -> bool:
    return isinstance(argument, dict) and "cond_or_uncond" in argument


def _scale_embedding(entry: dict, scale: float) -> dict:
    """Return a copy of a cond entry with its image embedding scaled."""
    model_conds = dict(entry["model_conds"])
    for name in EMBEDDINGS:
        if name in model_conds:
            embedding = model_conds[name]
            model_conds[name] = type(embedding)(embedding.cond * scale)
    return {**entry, "model_conds": model_conds}


def _may_change_the_embedding(model_options: dict) -> bool:
    """Whether something of another pack stands between the conds and the model.

    It may pass another embedding at every step under the same uuid, unseen from here.
    """
    if "model_function_wrapper" in model_options:
        return True
    wrappers = model_options["transformer_options"].get("wrappers", {})
    kinds = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    present = (key for kind in kinds for key, found in wrappers.get(kind, {}).items() if found)
    return any(key not in HARMLESS_WRAPPERS for key in present)


def _is_constant(entry: dict) -> bool:
    """Whether a cond entry has one embedding for all frames, and weights that stay (no hooks)."""
    embeddings = [entry["model_conds"][name] for name in EMBEDDINGS if name in entry["model_conds"]]
    return not entry.get("hooks") and all(e.cond.shape[0] == 1 for e in embeddings)


def _count_active(cond: list[dict], x_in, timestep) -> int:
    """Return how many entries of ``cond`` the host would evaluate at this timestep."""
    areas = (comfy.samplers.get_area_and_mult(entry, x_in, timestep) for entry in cond)
    return sum(area is not None for area in areas)
