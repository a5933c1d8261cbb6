"""The host's request for predictions (CALC_COND_BATCH) as a CondsCall, and back."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..vcut_core.calls import CondsCall
from .call_state import CALL_KEY, CallState
from .other_patches import KNOWN_WRAPPERS

EMBEDDINGS = ("c_crossattn", "time_context")  # the entries of a cond that reach attn2


def conds_call(conds, x_in, timestep, model_options: dict) -> CondsCall:
    """Return the call for the host's conds, lists of entries or None."""
    options = model_options["transformer_options"]
    return CondsCall(
        is_present=tuple(bool(cond) for cond in conds),
        cond_ids=frozenset(entry.get("uuid") for entry in (conds[0] or ()))
        if conds
        else frozenset(),
        sigma=lambda: float(timestep.flatten()[0]),
        sigmas=lambda: options["sample_sigmas"].tolist(),
        count_evaluations=lambda index: _count_active(conds[index], x_in, timestep),
    )


def evaluate_conds(
    call: CondsCall, evaluate: Callable[[list, dict], list[Tensor]], conds, model_options: dict
) -> list[Tensor]:
    """Evaluate those of the host's conds that ``call`` has, as it asks for them.

    evaluate: takes conds and model_options.
    """
    present: list[Any] = [
        cond if wanted else None for cond, wanted in zip(conds, call.is_present, strict=True)
    ]
    if call.embedding_scale != 1.0:
        present[0] = [_scale_embedding(entry, call.embedding_scale) for entry in present[0]]
    entries = [entry for cond in present if cond for entry in cond]
    state = CallState(
        embedding_scale=call.embedding_scale,
        is_embedding_fixed=not _may_change_the_embedding(model_options)
        and all(_has_one_embedding(entry) for entry in entries),
    )
    options = {**model_options["transformer_options"], CALL_KEY: state}
    return evaluate(present, {**model_options, "transformer_options": options})


def _scale_embedding(entry: dict, scale: float) -> dict:
    """Return a copy of a cond entry with its image embedding scaled."""
    model_conds = dict(entry["model_conds"])
    for name in EMBEDDINGS:
        if name in model_conds:
            embedding = model_conds[name]
            model_conds[name] = type(embedding)(embedding.cond * scale)
    return {**entry, "model_conds": model_conds}


def _may_change_the_embedding(model_options: dict) -> bool:
    """Whether something of another pack is between the conds and the model.

    It may pass another embedding at every step under the same uuid, unseen from here.
    """
    if "model_function_wrapper" in model_options:
        return True
    wrappers = model_options["transformer_options"].get("wrappers", {})
    kinds = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    present = (key for kind in kinds for key, found in wrappers.get(kind, {}).items() if found)
    return any(key not in KNOWN_WRAPPERS for key in present)


def _has_one_embedding(entry: dict) -> bool:
    """Whether a cond entry has one embedding for all frames, and weights that stay (no hooks)."""
    embeddings = [entry["model_conds"][name] for name in EMBEDDINGS if name in entry["model_conds"]]
    return not entry.get("hooks") and all(e.cond.shape[0] == 1 for e in embeddings)


def _count_active(cond: list[dict], x_in, timestep) -> int:
    """Return how many entries of ``cond`` the host would evaluate at this timestep."""
    areas = (comfy.samplers.get_area_and_mult(entry, x_in, timestep) for entry in cond)
    return sum(area is not None for area in areas)
