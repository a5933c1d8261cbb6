"""How the benchmarks sample: a picture's conditioning, and the samplers of ComfyUI that use it."""

import math
from dataclasses import dataclass
from typing import Any

from host_nodes import HostNodes

PAPER_STEPS = 25


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
    first_unguided = scaled(cut_step - 1, job.steps)  # counted from 0
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
    """SamplerCustom on the schedule of Align Your Steps (Sabour et al., arXiv 2404.14507)."""
    (sigmas,) = nodes.call("AlignYourStepsScheduler", model_type="SVD", steps=job.steps)
    (sampler,) = nodes.call("KSamplerSelect", sampler_name=job.sampler)
    custom = {"noise_seed": job.seed, "sampler": sampler, "sigmas": sigmas}
    return nodes.call("SamplerCustom", model=model, **custom, **job.inputs())[0]


def scaled(count: int, steps: int) -> int:
    """Return ``count`` of 25 steps in proportion to ``steps``."""
    return math.floor(count * steps / PAPER_STEPS + 0.5)
