"""The sampler's request for the denoised latent (PREDICT_NOISE) as a PredictionCall."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import comfy.k_diffusion.sampling

from ..vcut_core.calls import PredictionCall
from ..vcut_core.technique import Technique
from .other_patches import step_cache_of_another_pack

READS_UNGUIDED = "computed: the sampler or a node reads the unguided prediction"


def prediction_call(
    guider,
    x,
    timestep,
    model_options: dict,
    techniques: Sequence[Technique],
    count_evaluations: Callable[[], int],
    sigmas: Callable[[], Sequence[float]],
    sampler,
) -> PredictionCall:
    """Return the call for the host's arguments.

    sigmas: of the schedule, asked for at every step. sampler: the host's, None where it is unknown.
    """
    options = model_options["transformer_options"]

    def phase(sigma: float) -> Hashable:
        own = [technique.phase(sigma, sigmas()) for technique in techniques]
        return (*own, *_active_parts(getattr(guider, "conds", {}), sigma))

    other = step_cache_of_another_pack(options)
    reason = f"off: {other} is on this model too" if other else None
    # A sampler (cfg++) or a node (SAG) that hooks in so takes more from a step than its result.
    if model_options.get("disable_cfg1_optimization"):
        reason = READS_UNGUIDED
    return PredictionCall(
        x=x,
        sigma=lambda: float(timestep.flatten()[0]),
        sigmas=sigmas,
        phase=phase,
        count_evaluations=count_evaluations,
        must_compute=reason,
        takes_euler_steps=_is_euler(sampler),
    )


def _is_euler(sampler) -> bool:
    """Whether a sampler is euler, or ddim, which the host samples by it."""
    function = getattr(sampler, "sampler_function", None)
    return function is comfy.k_diffusion.sampling.sample_euler


def _active_parts(conds: dict[str, list[dict]], sigma: float) -> Iterator[Hashable]:
    """Yield what is active at ``sigma``: entries of conds, ControlNets, keyframes of hooks."""
    for name, entries in conds.items():
        for index, entry in enumerate(entries or ()):
            if _is_in_range(sigma, entry.get("timestep_start"), entry.get("timestep_end")):
                yield (name, index, *_active_controls(entry.get("control"), sigma))
                if _has_keyframes(entry.get("hooks")):
                    yield sigma  # the host counts the steps that each keyframe lasts


def _active_controls(control, sigma: float) -> Iterator[int]:
    """Yield the places in a chain of ControlNets that act at ``sigma``."""
    place = 0
    while control is not None:
        if _is_in_range(sigma, *(getattr(control, "timestep_range", None) or (None, None))):
            yield place
        control, place = getattr(control, "previous_controlnet", None), place + 1


def _is_in_range(sigma: float, start: Any, end: Any) -> bool:
    """Whether ``sigma`` lies from start down to end, as the host compares; None: no limit."""
    return not (start is not None and sigma > start or end is not None and sigma < end)


def _has_keyframes(hooks) -> bool:
    return any(hook.hook_keyframe.keyframes for hook in getattr(hooks, "hooks", ()))
