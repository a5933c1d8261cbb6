"""The step cache's table: our paces and the rivals, in the ordinary test and in the stress test."""

from collections.abc import Iterator
from dataclasses import replace

from quality_variants import BASELINE, Node, Variant, cut

CUT = cut(17)
PACES = ("careful", "balanced", "fast")


def _pace(pace: str) -> Node:
    return "VCUT_StepCache", {"pace": pace}


def _ours() -> Iterator[Variant]:
    for pace in PACES:
        yield Variant(pace, f"step cache, {pace}", "25 karras steps, guided", (_pace(pace),))
    forty = {"steps": 40, "reference": "karras_40"}
    yield Variant("karras_40", "40 steps", "40 karras steps", kind="baseline", **forty)
    yield Variant(
        "balanced_40", "40 steps, balanced", "40 karras steps", (_pace("balanced"),), **forty
    )
    yield Variant("cut_17", "c = 17", "cut at 17, average", (CUT,))
    for pace in PACES:
        nodes = (CUT, _pace(pace))
        yield Variant(
            f"cut_17_{pace}", f"c = 17, {pace}", "cut at 17, average", nodes, reference="cut_17"
        )


def _rivals() -> Iterator[Variant]:
    for steps in (20, 16, 14, 13, 10):
        yield Variant(f"karras_{steps}", f"{steps} karras steps", "fewer steps", steps=steps)
    ays = {"schedule": "align_your_steps"}
    for steps in (16, 14, 12, 10):
        name, title = f"ays_{steps}", f"Align Your Steps {steps}"
        yield Variant(name, title, "AlignYourStepsScheduler", steps=steps, **ays)
    for steps in (12, 10):
        name, title = f"cut_17_ays_{steps}", f"c = 17, Align Your Steps {steps}"
        yield Variant(name, title, "with the cut", (CUT,), steps=steps, reference="cut_17", **ays)
    for threshold in (0.1, 0.2, 0.4):
        node = ("EasyCache", {"reuse_threshold": threshold})
        yield Variant(f"easy_{threshold}", f"EasyCache {threshold}", "ComfyUI's node", (node,))
    yield Variant("lazy", "LazyCache", "ComfyUI's node, default", (("LazyCache", {}),))
    deep, last = (("OutermostBlocks", {"num_blocks": number}) for number in (2, 1))
    yield Variant("deep_cache", "DeepCache", "outermost branch, every 2nd step", (deep,))
    yield Variant("last_block", "last block only", "as Step Rehash, every 2nd step", (last,))
    for every in (2, 5):
        node = ("CFGCache", {"every": every})
        yield Variant(
            f"cfg_cache_{every}", f"CFG-Cache, every {every}", "FasterCache's, uncond", (node,)
        )


# Without guidance there is nothing to cut, and no uncond to cache.
GUIDED_ONLY = ("cut_17", "cfg_cache")


def _with_stress(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return ``variants`` and, of those that need no guidance, their stress tests."""
    stressed = (
        replace(v, name=stress(v.name), test="stress", reference=stress(v.reference))
        for v in variants
        if not v.name.startswith(GUIDED_ONLY)
    )
    return (*variants, *stressed)


def stress(name: str) -> str:
    """Return the name of a variant's stress test."""
    return f"{name}_stress"


OURS = _with_stress((BASELINE, *_ours()))
RIVALS = _with_stress(tuple(replace(variant, kind="rival") for variant in _rivals()))
VARIANTS = (*OURS, *RIVALS)
# Fewer videos are made of these: rivals, and 40 steps, which take long.
FEW = frozenset(v.name for v in VARIANTS if v in RIVALS or "_40" in v.name)

# Ours and a rival of the same cost, or of more.
PAIRS = (
    ("careful", "ays_16"),
    ("careful", "karras_16"),
    ("balanced", "ays_14"),
    ("balanced", "karras_14"),
    ("balanced", "easy_0.4"),
    ("balanced", "easy_0.2"),
    ("balanced", "deep_cache"),
    ("fast", "ays_12"),
    ("fast", "karras_13"),
    ("fast", "lazy"),
    ("cut_17_balanced", "cut_17_ays_12"),
    ("cut_17_fast", "cut_17_ays_10"),
)
