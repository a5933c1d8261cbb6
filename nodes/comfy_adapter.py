"""Everything that touches ComfyUI's inside: finds layers, installs patches, owns a sampling run.

The ONE file of the pack that imports ``comfy.*``. Decisions and arithmetic live in ``vcut_core``.

A node clones the model and leaves two things on the clone: object patches for the layers, and its
config beside one OUTER_SAMPLE wrapper. The wrapper makes everything else when a run starts, in that
run's own options, and drops it when the run ends. So there is no state to reset.
"""

import logging
import time
from dataclasses import dataclass

import comfy.model_base
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.patcher_extension import WrappersMP
from server import PromptServer

from ..vcut_core.cross_attention import (
    AffineCrossAttention,
    CrossAttentionConfig,
    ValueCache,
    is_single_token,
    spread,
    zeros,
)
from ..vcut_core.guidance import GuidanceConfig
from ..vcut_core.run_summary import RunSummary

logger = logging.getLogger(__name__)

KEY = "vcut"  # the pack's key in every host dictionary that it writes to
EMBEDDINGS = ("c_crossattn", "time_context")  # the entries of a cond that reach attn2


# --- what the nodes call ----------------------------------------------------------------------


def require_svd(model, node_name: str) -> None:
    """Raise ValueError unless ``model`` (ModelPatcher) is a Stable Video Diffusion model."""
    base = getattr(model, "model", None)
    if not isinstance(base, comfy.model_base.SVD_img2vid):
        raise ValueError(
            f"{node_name}: expected a Stable Video Diffusion model, got {type(base).__name__}. "
            "Connect MODEL from Image Only Checkpoint Loader (img2vid model)."
        )


def patch_cross_attentions(model, config: CrossAttentionConfig, node_id: str | None = None):
    """Return a clone of ``model`` whose cross-attentions follow ``config``.

    A config that an earlier node left is replaced, not added to.
    """
    modes = {"spatial": config.spatial, "temporal": config.temporal}
    clone = model.clone()
    patched = 0
    for path, kind in find_cross_attentions(clone.model.diffusion_model):
        current = clone.get_model_object(path)
        if isinstance(current, HostCrossAttention):
            current = current.original
            if current is _unpatched(clone, path):
                clone.object_patches.pop(path, None)
            else:  # another pack's own patch stood here first
                clone.add_object_patch(path, current)
        if modes[kind] != "keep":
            is_removed = modes[kind] == "remove"
            clone.add_object_patch(path, HostCrossAttention(current, kind, is_removed))
            patched += 1
    return _with_config(clone, "cross_attention", PatchedLayers(config, patched), node_id)


def schedule_guidance(model, config: GuidanceConfig, node_id: str | None = None):
    """Return a clone of ``model`` whose guidance ends where ``config`` says."""
    return _with_config(model.clone(), "guidance", config, node_id)


def find_cross_attentions(diffusion_model) -> list[tuple[str, str]]:
    """Return (path from the model, "spatial" or "temporal") of every attn2 of an SVD UNet."""
    found = []
    for name, module in diffusion_model.named_modules():
        if not isinstance(module, SpatialVideoTransformer):
            continue
        for kind, stack in (("spatial", "transformer_blocks"), ("temporal", "time_stack")):
            for index, block in enumerate(getattr(module, stack)):
                if block.attn2 is not None:
                    path = f"diffusion_model.{name}.{stack}.{index}.attn2"
                    found.append((path, kind))
    return found


@dataclass(frozen=True)
class PatchedLayers:
    """A cross-attention config and the number of layers that it replaced."""

    config: CrossAttentionConfig
    count: int


def _unpatched(model, path: str) -> torch.nn.Module:
    """Return what ComfyUI would restore at ``path``, whichever clone is loaded now."""
    if path in model.object_patches_backup:
        return model.object_patches_backup[path]
    return comfy.utils.get_attr(model.model, path)


def _with_config(clone, name: str, config, node_id: str | None):
    """Store ``config`` on ``clone`` and make sure that the run wrapper is there once."""
    options = clone.model_options.setdefault("transformer_options", {})
    vcut = dict(options.get(KEY, {}))  # the dict may be shared with the model cloned from
    vcut[name] = config
    vcut["node_ids"] = {**vcut.get("node_ids", {}), name: node_id}
    options[KEY] = vcut
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample_with_vcut)
    return clone


# --- one sampling run -------------------------------------------------------------------------


def _sample_with_vcut(executor, *args, **kwargs):
    """OUTER_SAMPLE wrapper: give this run a memory, count it, report it, drop it."""
    guider = executor.class_obj
    vcut = guider.model_options["transformer_options"].get(KEY)
    if not vcut:
        return executor(*args, **kwargs)
    shared_options = guider.model_options
    run = SamplingRun(vcut)
    guider.model_options = run.install(shared_options)
    try:
        output = executor(*args, **kwargs)
        run.wait_for(output)
        return output
    finally:
        guider.model_options = shared_options
        run.report()


@dataclass(frozen=True)
class CallInfo:
    """What attn2 needs to know of the model call it runs in; travels in transformer_options.

    embedding_scale: factor already applied to the embeddings; part of every cache key, because a
        scaled cond keeps its uuid (EasyCache finds conds by it).
    may_cache: all frames of a cond share one embedding, the same in every call.
    """

    run: "SamplingRun"
    embedding_scale: float
    may_cache: bool


class SamplingRun:
    """State of one sampling run: made when it starts, dropped when it ends."""

    def __init__(self, vcut: dict) -> None:
        self.guidance: GuidanceConfig | None = vcut.get("guidance")
        layers: PatchedLayers | None = vcut.get("cross_attention")
        self.num_layers = layers.count if layers else 0
        self.node_ids = [node_id for node_id in vcut["node_ids"].values() if node_id is not None]
        self.cache = ValueCache()
        self.summary = RunSummary(has_cross_attention=self.num_layers > 0)
        self.attn2_calls = 0
        self.expected_attn2_calls = 0
        self.started_at = time.perf_counter()

    def install(self, model_options: dict) -> dict:
        """Return a copy of ``model_options`` with this run's wrappers in it.

        Added now, they come after all others, so they count what really reaches the model.
        """
        options = comfy.model_patcher.create_model_options_clone(model_options)
        for kind, wrapper in (
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.DIFFUSION_MODEL, self.diffusion_model),
        ):
            comfy.patcher_extension.add_wrapper_with_key(
                kind, KEY, wrapper, options, is_model_options=True
            )
        return options

    def calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options, *args, **kw):
        """CALC_COND_BATCH wrapper: past the cut, evaluate cond alone and return it for both."""
        is_pair = len(conds) == 2 and all(conds)
        if self.guidance is not None and not is_pair:
            self.summary.untouched[_describe(conds)] += 1
        if self.guidance is None or not is_pair or self._is_guided(timestep, model_options):
            options = self._with_call_info(conds, model_options)
            return executor(model, conds, x_in, timestep, options, *args, **kw)
        scale = self.guidance.embedding_scale
        cond = [_scale_embedding(entry, scale) for entry in conds[0]]
        options = self._with_call_info([cond], model_options, scale)
        output = executor(model, [cond, None], x_in, timestep, options, *args, **kw)[0]
        self.summary.evaluations_saved += _count_active(conds[1], x_in, timestep)
        return [output, output]  # equal, so any guidance function returns the conditional one

    def diffusion_model(self, executor, *args, **kwargs):
        """DIFFUSION_MODEL wrapper: count UNet evaluations."""
        options = kwargs.get("transformer_options")
        if options is None:
            options = next((arg for arg in args if _is_transformer_options(arg)), {})
        self.summary.unet_evaluations += len(options.get("cond_or_uncond", (0,)))
        self.expected_attn2_calls += self.num_layers
        return executor(*args, **kwargs)

    def wait_for(self, output) -> None:
        """Wait until ``output`` is computed, so that the seconds are true; once a run."""
        if isinstance(output, torch.Tensor) and output.numel():
            output.flatten()[0].item()
        self.summary.is_complete = True

    def report(self) -> None:
        """Log the run's one line and show it on the nodes."""
        summary = self.summary
        summary.elapsed_s = time.perf_counter() - self.started_at
        summary.affine_evaluated = self.cache.evaluated
        summary.affine_reused = self.cache.reused
        summary.cache_bytes = self.cache.nbytes()
        bypassed = self.expected_attn2_calls - self.attn2_calls
        if bypassed > 0 and summary.is_complete:
            summary.untouched["cross-attention replaced by another pack"] += bypassed
        logger.info("VCUT: %s", summary.text())
        self._show(summary.text())

    def _is_guided(self, timestep, model_options: dict) -> bool:
        self.summary.pairs_seen += 1
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
            may_cache=all(_is_constant(entry) for entry in entries),
        )
        transformer_options = {**model_options["transformer_options"], KEY: call}
        return {**model_options, "transformer_options": transformer_options}

    def _show(self, text: str) -> None:
        """Show ``text`` on this run's nodes, where the host has a server that can."""
        server = getattr(PromptServer, "instance", None)
        if server is None or not hasattr(server, "send_progress_text"):
            return
        for node_id in self.node_ids:
            server.send_progress_text(text, node_id, server.client_id)


def _describe(conds) -> str:
    present = sum(bool(cond) for cond in conds)
    return "one cond" if present == 1 else f"{present} conds"


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


def _is_constant(entry: dict) -> bool:
    """Whether a cond entry has one embedding for all frames, and weights that stay (no hooks)."""
    embeddings = [entry["model_conds"][name] for name in EMBEDDINGS if name in entry["model_conds"]]
    return not entry.get("hooks") and all(e.cond.shape[0] == 1 for e in embeddings)


def _count_active(cond: list[dict], x_in, timestep) -> int:
    """Return how many entries of ``cond`` the host would evaluate at this timestep."""
    areas = (comfy.samplers.get_area_and_mult(entry, x_in, timestep) for entry in cond)
    return sum(area is not None for area in areas)


# --- the layer in the model -------------------------------------------------------------------


class HostCrossAttention(AffineCrossAttention):
    """AffineCrossAttention with ComfyUI's calling convention; keeps nothing between calls."""

    def __init__(self, original: torch.nn.Module, kind: str, is_removed: bool) -> None:
        super().__init__(original, is_removed)
        self.kind = kind

    def forward(self, x, context=None, value=None, mask=None, transformer_options={}):
        """Return (B, S, C) for x (B, S, C), context and value (B, 1, D)."""
        call = transformer_options.get(KEY)
        run = call.run if isinstance(call, CallInfo) else None
        if run is not None:
            run.attn2_calls += 1
        if not (self.is_removed or is_single_token(context, value, mask)):
            if run is not None:
                run.summary.untouched["cross-attention over several tokens"] += 1
            return self.original(
                x, context=context, value=value, mask=mask, transformer_options=transformer_options
            )
        if self.is_removed:
            if run is not None:
                run.summary.removed += 1
            output = zeros(x)
        else:
            output = spread(self._affine(x, context, value, call, transformer_options), x)
        patches = transformer_options.get("patches", {})
        # An output patch of another pack may write in place.
        return output.contiguous() if "attn2_output_patch" in patches else output

    def _affine(self, x, context, value, call, transformer_options):
        """Return L of the context, one row for each group of rows of x that share a context."""
        if value is not None:  # an attn2_patch passed its own; it may differ at every step
            return self.affine(value)
        uuids = transformer_options.get("uuids")
        if not isinstance(call, CallInfo) or not call.may_cache or uuids is None:
            return self.affine(context)
        if self.kind == "temporal":  # the host repeated each cond's context over h*w pixels
            height, width = transformer_options["activations_shape"][-2:]
            group = height * width
        else:  # and here over the frames
            group = x.shape[0] // len(uuids)
        key = (self, tuple(uuids), call.embedding_scale, x.shape[0] // group, x.device, x.dtype)
        return call.run.cache.get(key, lambda: self.affine(context[::group]))
