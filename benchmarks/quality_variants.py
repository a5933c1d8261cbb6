"""What the quality benchmark compares: nodes on the model, and how it is sampled."""

import hashlib
import json
from dataclasses import astuple, dataclass
from typing import Literal

SCHEDULE_STEPS = 25  # that cut_step and start_step count in
NEVER_CUT = SCHEDULE_STEPS + 1
Node = tuple[str, dict]  # id of a node that takes and gives a MODEL, its inputs


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    nodes: put on the model in this order, VideoLinearCFGGuidance after them.
    steps: None for the run's own. schedule: karras, or that of Align Your Steps.
    test: the stress test has no picture and cfg 1, so that nothing holds two videos together.
    reference: the variant that its distance is measured to, itself for a baseline.
    kind: of its mark in a plot.
    """

    name: str
    title: str
    meaning: str
    nodes: tuple[Node, ...] = ()
    steps: int | None = None
    schedule: Literal["karras", "align_your_steps"] = "karras"
    test: Literal["ordinary", "stress"] = "ordinary"
    reference: str = "baseline"
    kind: Literal["baseline", "vcut", "rival"] = "vcut"

    @property
    def fingerprint(self) -> str:
        """Short and different for different settings, whatever the words."""
        settings = json.dumps(astuple(self)[3:7], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:8]


CACHED = ("VCUT_PatchSVDModel", {"temporal": "cached", "spatial": "cached"})
REMOVE = ("VCUT_PatchSVDModel", {"temporal": "remove", "spatial": "cached"})


def cut(cut_step: int, after_cut: str = "average", start_step: int = 1) -> Node:
    """Return VCUT Guidance Scheduler with these inputs."""
    inputs = {"cut_step": cut_step, "after_cut": after_cut, "start_step": start_step}
    return "VCUT_GuidanceScheduler", {**inputs, "steps": SCHEDULE_STEPS, "cut_sigma": 0.0}


BASELINE = Variant("baseline", "baseline", "no VCUT; the embedding at all steps", kind="baseline")
VARIANTS = (
    BASELINE,
    Variant("cached", "cached", "cross-attentions cached, guided to the end", (CACHED,)),
    Variant("remove", "remove", "temporal cross-attentions removed, spatial cached", (REMOVE,)),
    Variant("c20", "c = 20", "cached, cut at 20, average", (CACHED, cut(20))),
    Variant("c17", "c = 17", "cached, cut at 17, average", (CACHED, cut(17))),
    Variant("c10", "c = 10", "cached, cut at 10, average", (CACHED, cut(10))),
    Variant(
        "c17_positive", "c = 17, positive", "cached, cut at 17, the image's own embedding after it",
        (CACHED, cut(17, "positive")),
    ),
    Variant(
        "c17_none", "c = 17, none", "cached, cut at 17; the embedding early only: steps 1 to 16",
        (CACHED, cut(17, "none")),
    ),
    # The complement of "early only": each step has guidance and embedding in one of the two.
    Variant(
        "late_only", "late only", "cached; guidance and the embedding late only: steps 17 to 25",
        (CACHED, cut(NEVER_CUT, "none", 17)),
    ),
    Variant(
        "never", "never", "cached; no guidance and no embedding at any step",
        (CACHED, cut(1, "none")),
    ),
    Variant(
        "remove_c17", "remove, c = 17", "removed, cut at 17, average: the paper's own setting",
        (REMOVE, cut(17)),
    ),
)  # fmt: skip

# Compared pair by pair. In no order of merit: the measures say what the order is.
ORDERS = {
    "c": ("c20", "c17", "c10"),
    "after_cut": ("c17", "c17_positive", "c17_none"),
    "embedding": ("baseline", "c17_none", "late_only", "never"),
}
