"""What is measured side by side: each variant is a list of nodes on the model, and a sampler.

Cuts count in 25 steps; a run of another length cuts in proportion, as the nodes do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from host_nodes import HostNodes
from sampling_jobs import PAPER_STEPS, Job, align_your_steps, one_sampler, scaled, two_samplers

AYS_STEPS = 10  # where the others take 25


@dataclass(frozen=True, eq=False)  # told apart by identity: inputs cannot be hashed
class Variant:
    """One row of the table.

    nodes: (node id, inputs) put on the model in this order. kind: baseline, vcut, other or both,
    its colour in the plot.
    """

    key: str
    name: str
    kind: str
    nodes: tuple[tuple[str, dict], ...] = ()
    sampler: Callable[[HostNodes, Any, Job], dict] = one_sampler
    needs: tuple[str, ...] = field(default=())

    def missing_nodes(self, nodes: HostNodes) -> list[str]:
        """Return the ids of the nodes that this host lacks."""
        wanted = [node_id for node_id, _ in self.nodes] + list(self.needs)
        return [node_id for node_id in wanted if node_id not in nodes]

    def patch(self, nodes: HostNodes, model):
        """Return ``model`` as this variant's graph patches it; the one given stays as it is."""
        for node_id, inputs in self.nodes:
            model = nodes.patch(node_id, model, **inputs)
        # Last, as in the stock graph.
        return nodes.patch("VideoLinearCFGGuidance", model)

    def steps(self, steps: int) -> int:
        """Return the steps that this variant takes beside runs of ``steps``."""
        return max(2, scaled(AYS_STEPS, steps)) if self.sampler is align_your_steps else steps

    def sample(self, nodes: HostNodes, model, job: Job):
        """Return the latent (T, 4, H/8, W/8) that the patched ``model`` makes."""
        return self.sampler(nodes, model, replace(job, steps=self.steps(job.steps)))["samples"]


def _affine(temporal: str = "cached") -> tuple[str, dict]:
    return "VCUT_PatchSVDModel", {"temporal": temporal, "spatial": "cached"}


def _cut(cut_step: int) -> tuple[str, dict]:
    return "VCUT_GuidanceScheduler", {"cut_step": cut_step, "steps": PAPER_STEPS}


def _slices(scope: str) -> tuple[str, dict]:
    return "VCUT_FeatureSlicer", {"slices": 8, "scope": scope}


def _pace(pace: str) -> tuple[str, dict]:
    return "VCUT_StepCache", {"pace": pace}


_VCUT = (_affine(), _cut(17))
_EASY, _LAZY = ("EasyCache", {}), ("LazyCache", {})
_AYS = {"sampler": align_your_steps, "needs": ("AlignYourStepsScheduler", "SamplerCustom")}

VARIANTS = (
    Variant("baseline", "Baseline", "baseline"),
    Variant("cached", "VCUT cached, no cut", "vcut", (_affine(),)),
    Variant("remove", "VCUT remove, no cut", "vcut", (_affine("remove"),)),
    Variant("cut_10", "VCUT cached, c = 10", "vcut", (_affine(), _cut(10))),
    Variant("cut_17", "VCUT cached, c = 17", "vcut", _VCUT),
    Variant("cut_20", "VCUT cached, c = 20", "vcut", (_affine(), _cut(20))),
    Variant("cut_17_alone", "Cut alone, c = 17", "vcut", (_cut(17),)),
    Variant("paper_17", "VCUT remove, c = 17 (the paper's)", "vcut", (_affine("remove"), _cut(17))),
    Variant("feed_forward", "8 slices, feed_forward", "vcut", (_slices("feed_forward"),)),
    Variant("blocks", "8 slices, blocks", "vcut", (_slices("blocks"),)),
    Variant("everything", "8 slices, everything", "vcut", (_slices("everything"),)),
    Variant("cut_17_blocks", "VCUT cached, c = 17, 8 slices", "vcut", (*_VCUT, _slices("blocks"))),
    Variant("careful", "Step cache, careful", "vcut", (_pace("careful"),)),
    Variant("balanced", "Step cache, balanced", "vcut", (_pace("balanced"),)),
    Variant("fast", "Step cache, fast", "vcut", (_pace("fast"),)),
    Variant("cut_17_careful", "VCUT c = 17, careful", "vcut", (*_VCUT, _pace("careful"))),
    Variant("cut_17_balanced", "VCUT c = 17, balanced", "vcut", (*_VCUT, _pace("balanced"))),
    Variant("cut_17_fast", "VCUT c = 17, fast", "vcut", (*_VCUT, _pace("fast"))),
    Variant("two_samplers", "Two samplers, cfg 1 from step 17", "other", sampler=two_samplers),
    Variant("easycache", "EasyCache", "other", (_EASY,)),
    Variant("lazycache", "LazyCache", "other", (_LAZY,)),
    Variant("ays", "Align Your Steps", "other", **_AYS),
    Variant("cut_17_easycache", "VCUT c = 17 + EasyCache", "both", (*_VCUT, _EASY)),
    Variant("cut_17_lazycache", "VCUT c = 17 + LazyCache", "both", (*_VCUT, _LAZY)),
    Variant("cut_17_ays", "VCUT c = 17 + Align Your Steps", "both", _VCUT, **_AYS),
)


def compiled(variant: Variant) -> Variant:
    """Return the variant with the UNet compiled by torch.compile (inductor)."""
    nodes = (("TorchCompileModel", {"backend": "inductor"}), *variant.nodes)
    key, name = f"compiled_{variant.key}", f"{variant.name}, compiled"
    kind = "other" if variant.kind == "baseline" else variant.kind
    return replace(variant, key=key, name=name, kind=kind, nodes=nodes)


def extra_variants(node_id: str, inputs: dict) -> tuple[Variant, Variant]:
    """Return the variants for a node of another pack: alone, and with VCUT."""
    extra = (node_id, inputs)
    return (
        Variant("extra", node_id, "other", (extra,)),
        Variant("cut_17_extra", f"VCUT c = 17 + {node_id}", "both", (*_VCUT, extra)),
    )


def choose(keys: list[str] | None, variants: tuple[Variant, ...]) -> list[Variant]:
    """Return the variants named by ``keys``, all without any; the baseline is always the first.

    Raises ValueError for a key that is none.
    """
    known = {variant.key: variant for variant in variants}
    unknown = [key for key in keys or () if key not in known]
    if unknown:
        raise ValueError(f"expected variants among {', '.join(known)}, got {', '.join(unknown)}")
    wanted = [known["baseline"], *(known[key] for key in keys or known)]
    return list(dict.fromkeys(wanted))
