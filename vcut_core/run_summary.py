"""What one sampling run did, counted as it happened, and the line that tells the user.

Must not know how the counts are taken.
"""

from collections import Counter
from dataclasses import dataclass, field

from .guidance import GuidancePlan


@dataclass
class RunSummary:
    """Counts of one run.

    plan: set when the run meets its first pair of cond and uncond, all that a cut can act on.
    unet_evaluations: forward passes of the UNet, one for each cond in a batch.
    evaluations_saved: those that the cut made unnecessary.
    has_guidance, has_cross_attention: which of the two nodes the model has.
    affine_evaluated, affine_reused: affine maps in place of cross-attentions.
    removed: cross-attentions replaced by zeros.
    slicing: how the run was sliced and what that should take; empty without the slicer.
    untouched: reason -> times VCUT stepped aside and the model computed as if it were not there.
    elapsed_s: seconds from the first evaluation to the end.
    """

    plan: GuidancePlan | None = None
    has_guidance: bool = False
    has_cross_attention: bool = False
    unet_evaluations: int = 0
    evaluations_saved: int = 0
    affine_evaluated: int = 0
    affine_reused: int = 0
    removed: int = 0
    slicing: str = ""
    untouched: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0
    is_complete: bool = False

    def planned(self) -> str:
        """Return where guidance ends in this run, known before its first step."""
        plan = self.plan
        if plan is None:
            return "no guidance to cut"
        steps, first = plan.num_steps, plan.late_steps + 1
        if not plan.has_cut:
            return f"guided {first}-{steps} of {steps}, no cut in this run"
        guided = f"guided {first}-{plan.guided_steps}" if plan.guided_steps else "guided 0"
        return (
            f"{guided} of {steps}, cut at step {plan.guided_steps + 1} "
            f"(cut_sigma {plan.shareable_cut_sigma():g})"
        )

    def counts(self) -> str:
        """Return what was counted, as it stands in the line and in a report before the run."""
        total = self.unet_evaluations + self.evaluations_saved
        parts = [f"{self.unet_evaluations} of {total} UNet evaluations"]
        if self.has_guidance:
            parts.append(self.planned())
        if self.has_cross_attention:
            removed = f", {self.removed} removed" if self.removed else ""
            parts.append(
                f"{self.affine_evaluated} affine maps evaluated, {self.affine_reused} reused"
                + removed
            )
        return "; ".join(parts)

    def counts_as_data(self) -> dict:
        """Return the counts as plain values that survive JSON; the plan's only if there is one."""
        plan = {}
        if self.plan is not None:
            plan = {"num_steps": self.plan.num_steps, "last_guided_step": self.plan.guided_steps}
        return {
            "unet_evaluations": self.unet_evaluations,
            "evaluations_saved": self.evaluations_saved,
            "affine_evaluated": self.affine_evaluated,
            "affine_reused": self.affine_reused,
            "removed": self.removed,
            "untouched": dict(self.untouched),
            "elapsed_s": self.elapsed_s,
            "is_complete": self.is_complete,
            **plan,
        }

    def text(self) -> str:
        """Return the summary as one line, for the log and for the node."""
        parts = [self.counts()]
        parts += [self.slicing] if self.slicing else []
        parts += [f"untouched: {why} ({count})" for why, count in self.untouched.items()]
        parts.append(f"{self.elapsed_s:.2f} s")
        return ("" if self.is_complete else "stopped early; ") + "; ".join(parts)
