"""The report on what a run costs, in words: for the node, before the run."""

from collections.abc import Iterable, Iterator, Sequence

from .feature_slicing import SlicingConfig
from .run_cost import RunCost
from .slicing_memory import AUTOMATIC, ActivationPeak
from .step_cache import steps_line

NOTHING_SAVED = "Nothing saved"
SAVES_MEMORY = "saves memory, not multiply-adds"
SLICES_SAVE_NOTHING = "slicing saves nothing at this size"
SLICER_IS_OFF = "VCUT Feature Slicer is off (slices is 1)"
UNITS = ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs"))


def unit_for(macs: float) -> tuple[float, str]:
    """Return (size, name) of the unit that suits ``macs``: 1.5e12 is 1.5 of (1e12, "TMACs")."""
    return next((unit for unit in UNITS if macs >= unit[0]), UNITS[-1])


def report_lines(
    run: RunCost,
    size: str,
    parameters: int,
    cache_bytes: int,
    other_patches: Sequence[str],
    peak: ActivationPeak | None = None,
) -> Iterator[str]:
    """Yield the report line by line.

    size: the video in words. parameters: in the given model. cache_bytes: VCUT's memory in the run.
    other_patches: what other packs have put on the model; nothing is claimed of that.
    peak: of activations, None where nothing is sliced.
    """
    yield f"{size}, {_count(run.num_steps, 'step')}: what the UNet computes"
    yield from _listed(_totals(run))
    if peak is not None:
        yield from _listed([f"Activations: {_sizes(peak)}, in {_count(peak.slices, 'slice')}"])
    held = f"Parameters in this model: {parameters:,}{_missing(run, parameters)}"
    yield from _listed([held, f"Memory of VCUT's cached values in the run: {cache_bytes:,} bytes"])
    yield ""
    yield "Settings of this model"
    yield from _listed(_settings(run))
    yield ""
    if other_patches:
        yield f"Not counted, put on this model by other nodes: {', '.join(other_patches)}."
        yield ""
    elif run.settings.changes_compute:
        yield f"The nodes should show after the run: {'; '.join(run.expected_lines())}"
        yield ""
    unit, name = unit_for(run.macs_without())
    yield f"Where it goes, {name} without VCUT and with this model's settings"
    yield from _listed(_components(run, unit))
    yield ""
    yield (
        "MACs are multiply-adds (convolutions, linear layers, both attention products), not "
        "seconds: those depend on the device too, and stand in the line after the run."
    )
    yield (
        "Counted for one start picture, cfg above 1 and a sampler that evaluates once a step, as "
        "euler does."
    )


def headline(run: RunCost, peak: ActivationPeak | None = None) -> list[str]:
    """Return the report in a few words: what a reader wants first, then one or two lines more.

    peak: of activations, None where nothing is sliced.
    """
    evaluations = f"{run.evaluations} of {run.evaluations_without} evaluations"
    saving = peak if peak is not None and peak.sliced_bytes < peak.whole_bytes else None
    memory = [f"activations {_sizes(saving)}"] if saving else []
    if run.macs() < run.macs_without():
        less = _percent(run.macs(), run.macs_without())
        return [f"{less} % less to compute", evaluations, *memory]
    if saving:
        less = _percent(saving.sliced_bytes, saving.whole_bytes)
        return [f"{less} % smaller activations", *memory, "nothing less to compute"]
    if run.settings.changes_compute:
        return [NOTHING_SAVED, evaluations]
    return [NOTHING_SAVED, SLICES_SAVE_NOTHING if peak else _why_nothing_is_saved(run)]


def _percent(value: float, baseline: float) -> str:
    return f"{100 * (1 - value / baseline):.2g}"


def _sizes(peak: ActivationPeak) -> str:
    unit, name = (1e9, "GB") if peak.whole_bytes >= 1e9 else (1e6, "MB")
    return f"{peak.sliced_bytes / unit:.1f} instead of {peak.whole_bytes / unit:.1f} {name}"


def percent_less(value: float, baseline: float) -> str:
    """Return by how much ``value`` is less than ``baseline``, in percent with one decimal."""
    return f"{100 * (1 - value / baseline):.1f} % less"


def _totals(run: RunCost) -> Iterator[str]:
    before, after = run.macs_without(), run.macs()
    unit, name = unit_for(before)
    if not run.settings.changes_compute:
        yield f"Run: {before / unit:,.2f} {name}, 0 saved: {_why_nothing_is_saved(run)}"
        yield f"UNet evaluations: {run.evaluations}"
    else:
        yield (
            f"Run: {after / unit:,.2f} {name} instead of {before / unit:,.2f} without VCUT "
            f"({percent_less(after, before)})"
        )
        cut, attention = run.saved_by_cut() / unit, run.saved_by_cross_attention() / unit
        steps = f"by steps left out: {run.saved_by_step_cache() / unit:,.2f} {name}; "
        yield (
            f"Saved {steps if run.settings.step_cache else ''}where guidance is off: {cut:,.2f} "
            f"{name}; in cross-attention: {attention:,.2f} {name}"
        )
        yield (
            f"UNet evaluations: {run.evaluations} instead of {run.evaluations_without}"
            f"{_evaluations_apart(run)}"
        )
    evaluation, unchanged = run.unet.macs("true", run.settings.replaced), run.unet.macs("true")
    unit, name = unit_for(unchanged)
    instead = "" if evaluation == unchanged else f" instead of {unchanged / unit:,.3f}"
    yield f"Each evaluation: {evaluation / unit:,.3f} {name}{instead}"


def _evaluations_apart(run: RunCost) -> str:
    """Return what the step cache and the cut save each, where both are on."""
    if not (run.settings.step_cache and run.settings.guidance):
        return ""
    steps, cut = run.evaluations_saved_by_step_cache, run.evaluations_saved_by_cut
    return f": the step cache saves {steps}, the cut {cut}"


def _why_nothing_is_saved(run: RunCost) -> str:
    slicing = run.settings.slicing
    if slicing is None:
        return "this model has no VCUT settings"
    return SLICER_IS_OFF if slicing.slices == 1 else f"slicing {SAVES_MEMORY}"


def _missing(run: RunCost, parameters: int) -> str:
    whole = run.unet.parameters()
    return "" if parameters == whole else f" (the whole UNet has {whole:,})"


def _settings(run: RunCost) -> Iterator[str]:
    kinds = run.unet.cross_attentions()
    for wanted in ("spatial", "temporal"):
        modes = [
            run.settings.replaced.get(p, "kept") for p, kind in kinds.items() if kind == wanted
        ]
        counts = {mode: modes.count(mode) for mode in dict.fromkeys(modes)}
        words = ", ".join(f"{n} {'removed' if m == 'remove' else m}" for m, n in counts.items())
        yield f"Cross-attention, {wanted}: {words or 'none in this model'}"
    if run.settings.slicing is not None:
        yield f"Feature slicing: {_slicing(run.settings.slicing)}"
    if run.settings.step_cache is not None:
        line = steps_line(run.step_plan.num_computed, run.num_steps)
        yield f"Step cache: pace {run.settings.step_cache.pace}, {line}, on a karras schedule"
    guidance = run.settings.guidance
    if guidance is None:
        yield "Guidance: in every step"
        return
    yield f"Guidance: {', '.join([*run.plan.lines(), *run.plan.details()])}, on a karras schedule"
    if guidance.cut_sigma > 0:
        yield f"cut_sigma {guidance.cut_sigma:g} ends it elsewhere on another schedule"


def _slicing(slicing: SlicingConfig) -> str:
    if slicing.slices == 1:
        return "off (slices is 1)"
    count = f"{slicing.slices} slices"
    if slicing.slices == AUTOMATIC:
        count = "as few slices as fit when the run starts"
    return f"scope {slicing.scope}, {count}; {SAVES_MEMORY}"


def _components(run: RunCost, unit: float) -> Iterator[str]:
    before, after = run.macs_by_component_without(), run.macs_by_component()
    for component in sorted(after, key=lambda c: -before.get(c, 0)):
        macs = (before.get(component, 0), after[component])
        if any(macs):
            yield f"{component}: {macs[0] / unit:,.4g} and {macs[1] / unit:,.4g}"


def _listed(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines as a list, to nodes that show a text as Markdown too."""
    yield from (f"- {line}" for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
