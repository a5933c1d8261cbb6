"""What the quality benchmark compares: settings of the nodes of the pack."""

import hashlib
import json
from dataclasses import dataclass

SCHEDULE_STEPS = 25  # that cut_step and start_step count in
NEVER_CUT = SCHEDULE_STEPS + 1


@dataclass(frozen=True)
class Variant:
    """Inputs of VCUT Patch SVD Model and VCUT Guidance Scheduler; None: without that node."""

    name: str
    title: str
    meaning: str
    patch: dict | None = None
    guidance: dict | None = None

    @property
    def fingerprint(self) -> str:
        """Short and different for different settings, whatever the name."""
        settings = json.dumps([self.patch, self.guidance], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:8]

    def apply(self, model):
        """Return a clone of ``model`` (ModelPatcher) through the two nodes."""
        from vcut.nodes.guidance_scheduler import GuidanceScheduler
        from vcut.nodes.patch_svd_model import PatchSVDModel

        if self.patch is not None:
            model = PatchSVDModel.execute(model, **self.patch)[0]
        if self.guidance is not None:
            model = GuidanceScheduler.execute(model, **self.guidance)[0]
        return model


CACHED = {"temporal": "cached", "spatial": "cached"}
REMOVE = {"temporal": "remove", "spatial": "cached"}


def _guidance(cut_step: int, after_cut: str, start_step: int = 1) -> dict:
    return {
        "cut_step": cut_step,
        "steps": SCHEDULE_STEPS,
        "after_cut": after_cut,
        "cut_sigma": 0.0,
        "start_step": start_step,
    }


BASELINE = Variant("baseline", "baseline", "no VCUT; the embedding at all steps")
VARIANTS = (
    BASELINE,
    Variant("cached", "cached", "cross-attentions cached, guided to the end", CACHED),
    Variant("remove", "remove", "temporal cross-attentions removed, spatial ones cached", REMOVE),
    Variant("c20", "c = 20", "cached, cut at 20, average", CACHED, _guidance(20, "average")),
    Variant("c17", "c = 17", "cached, cut at 17, average", CACHED, _guidance(17, "average")),
    Variant("c10", "c = 10", "cached, cut at 10, average", CACHED, _guidance(10, "average")),
    Variant(
        "c17_positive", "c = 17, positive", "cached, cut at 17, the image's own embedding after it",
        CACHED, _guidance(17, "positive"),
    ),
    Variant(
        "c17_none", "c = 17, none", "cached, cut at 17; the embedding early only: steps 1 to 16",
        CACHED, _guidance(17, "none"),
    ),
    # The complement of "early only": each step has guidance and embedding in one of the two.
    Variant(
        "late_only", "late only", "cached; guidance and the embedding late only: steps 17 to 25",
        CACHED, _guidance(NEVER_CUT, "none", 17),
    ),
    Variant(
        "never", "never", "cached; no guidance and no embedding at any step",
        CACHED, _guidance(1, "none"),
    ),
    Variant(
        "remove_c17", "remove, c = 17", "removed, cut at 17, average: the paper's own setting",
        REMOVE, _guidance(17, "average"),
    ),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}

# Compared pair by pair. In no order of merit: the measures say what the order is.
ORDERS = {
    "c": ("c20", "c17", "c10"),
    "after_cut": ("c17", "c17_positive", "c17_none"),
    "embedding": ("baseline", "c17_none", "late_only", "never"),
}
