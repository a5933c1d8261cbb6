"""What is measured side by side: each variant is a list of nodes on the model, and a sampler.

Cuts count in 25 steps; a run of another length cuts in proportion, as the nodes do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from host_nodes import HostNodes

PAPER_STEPS = 25
AYS_STEPS = 10


@dataclass(frozen=True)
class Job:
    """What is sampled: a picture's conditioning and the stock sampler's settings."""

    positive: list
    negative: list
    latent: dict
    steps: int
    cfg: float = 2.5
    seed: int = 0
    sampler: str = "euler"
    scheduler: str = "karras"

    def inputs(self) -> dict[str, Any]:
        """Return the inputs that the core's samplers share."""
        return {
            "cfg": self.cfg,
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
        }


def one_sampler(nodes: HostNodes, model, job: Job) -> dict:
    """KSampler, as in the stock graph."""
    names = {"sampler_name": job.sampler, "scheduler": job.scheduler}
    (latent,) = nodes.call(
        "KSampler", model=model, seed=job.seed, steps=job.steps, **names, **job.inputs()
    )
    return latent


def two_samplers(nodes: HostNodes, model, job: Job, cut_step: int = 17) -> dict:
    """Two KSampler (Advanced), the second without guidance from ``cut_step`` on."""
    first_unguided = _scaled(cut_step - 1, job.steps)  # counted from 0
    shared = {
        "model": model,
        "noise_seed": job.seed,
        "steps": job.steps,
        "sampler_name": job.sampler,
        "scheduler": job.scheduler,
        **job.inputs(),
    }
    first = {"end_at_step": first_unguided, "return_with_leftover_noise": "enable"}
    (half_done,) = nodes.call("KSamplerAdvanced", **shared | first)
    rest = {"add_noise": "disable", "start_at_step": first_unguided, "cfg": 1.0}
    (latent,) = nodes.call("KSamplerAdvanced", **shared | rest | {"latent_image": half_done})
    return latent


def align_your_steps(nodes: HostNodes, model, job: Job) -> dict:
    """SamplerCustom on the schedule of Align Your Steps, 10 steps where the others take 25."""
    (sigmas,) = nodes.call(
        "AlignYourStepsScheduler", model_type="SVD", steps=align_your_steps_count(job.steps)
    )
    (sampler,) = nodes.call("KSamplerSelect", sampler_name=job.sampler)
    custom = {"noise_seed": job.seed, "sampler": sampler, "sigmas": sigmas}
    return nodes.call("SamplerCustom", model=model, **custom, **job.inputs())[0]


def align_your_steps_count(steps: int) -> int:
    """Return the steps of Align Your Steps beside runs of ``steps``."""
    return max(2, _scaled(AYS_STEPS, steps))


def _scaled(count: int, steps: int) -> int:
    return math.floor(count * steps / PAPER_STEPS + 0.5)


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
        return align_your_steps_count(steps) if self.sampler is align_your_steps else steps

    def sample(self, nodes: HostNodes, model, job: Job):
        """Return the latent (T, 4, H/8, W/8) that the patched ``model`` makes."""
        return self.sampler(nodes, model, job)["samples"]


def _affine(temporal: str = "cached") -> tuple[str, dict]:
    return "VCUT_PatchSVDModel", {"temporal": temporal, "spatial": "cached"}


def _cut(cut_step: int) -> tuple[str, dict]:
    return "VCUT_GuidanceScheduler", {"cut_step": cut_step, "steps": PAPER_STEPS}


def _slices(scope: str) -> tuple[str, dict]:
    return "VCUT_FeatureSlicer", {"slices": 8, "scope": scope}


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
    Variant("two_samplers", "Two samplers, cfg 1 from step 17", "other", sampler=two_samplers),
    Variant("easycache", "EasyCache", "other", (_EASY,)),
    Variant("lazycache", "LazyCache", "other", (_LAZY,)),
    Variant("ays", "Align Your Steps", "other", **_AYS),
    Variant("cut_17_easycache", "VCUT c = 17 + EasyCache", "both", (*_VCUT, _EASY)),
    Variant("cut_17_lazycache", "VCUT c = 17 + LazyCache", "both", (*_VCUT, _LAZY)),
    Variant("cut_17_ays", "VCUT c = 17 + Align Your Steps", "both", _VCUT, **_AYS),
)


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
