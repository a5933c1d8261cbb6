"""What a whole sampling run costs, without VCUT and with the settings that a model has.

Planned before the run, for guidance above 1 and a sampler that evaluates each cond once a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import and_

from .cost_model import UNetCost
from .cross_attention import cross_attention_line
from .feature_slicing import SlicingConfig
from .guidance_cut import GuidanceConfig, GuidancePlan
from .run_report import evaluations_line
from .step_cache import StepCacheConfig, StepCachePlan, steps_line

AFFINE_MAPS = "affine maps, once a run"


@dataclass(frozen=True)
class CostSettings:
    """What VCUT does to a model.

    replaced: path of a cross-attention in the UNet -> "cached" or "remove"; the others are kept.
    guidance: None when guidance lasts all the run. step_cache: None when every step is computed.
    slicing: None without VCUT Feature Slicer. It changes no cost.
    """

    replaced: Mapping[str, str] = field(default_factory=dict)
    guidance: GuidanceConfig | None = None
    step_cache: StepCacheConfig | None = None
    slicing: SlicingConfig | None = None

    @property
    def is_empty(self) -> bool:
        """Whether VCUT does nothing to the model."""
        return not self.changes_compute and self.slicing is None

    @property
    def changes_compute(self) -> bool:
        """Whether a setting may change how much the UNet computes."""
        return bool(self.replaced or self.guidance or self.step_cache)

    @property
    def cached(self) -> list[str]:
        """The cross-attentions that are affine maps."""
        return [path for path, mode in self.replaced.items() if mode == "cached"]


class RunCost:
    """The cost of one run of a UNet over ``sigmas`` (num_steps + 1, descending)."""

    def __init__(self, unet: UNetCost, settings: CostSettings, sigmas: Sequence[float]) -> None:
        self.unet = unet
        self.settings = settings
        self.num_steps = len(sigmas) - 1
        never_cut = GuidancePlan(tuple(sigmas[:-1]), self.num_steps)
        self.plan = settings.guidance.plan(sigmas) if settings.guidance else never_cut
        is_guided = [self.plan.is_guided(sigma) for sigma in sigmas[:-1]]
        whole = StepCachePlan(tuple(sigmas), (True,) * self.num_steps)
        self.step_plan = (
            settings.step_cache.plan(sigmas, is_guided) if settings.step_cache else whole
        )
        # Guided steps among those that are computed.
        self.num_guided_computed = sum(map(and_, is_guided, self.step_plan.is_computed))

    @property
    def evaluations(self) -> int:
        """UNet evaluations with the model's settings: two in a guided step, one in an unguided."""
        return self.step_plan.num_computed + self.num_guided_computed

    @property
    def evaluations_saved_by_step_cache(self) -> int:
        """UNet evaluations of the steps that are left out."""
        return 2 * (self.num_steps - self.step_plan.num_computed)

    @property
    def evaluations_saved_by_cut(self) -> int:
        """UNet evaluations that the computed steps without guidance save."""
        return self.step_plan.num_computed - self.num_guided_computed

    @property
    def evaluations_without(self) -> int:
        """UNet evaluations without VCUT."""
        return 2 * self.num_steps

    @property
    def embeddings(self) -> int:
        """Embeddings that each affine map is evaluated for: cond and uncond, cond past the cut."""
        return 2 * (self.num_guided_computed > 0) + (self.evaluations_saved_by_cut > 0)

    def macs(self, convention: str = "true") -> int:
        """Return the MACs of the run with the model's settings."""
        return sum(self.macs_by_component(convention).values())

    def macs_without(self, convention: str = "true") -> int:
        """Return the MACs of the run without VCUT."""
        return self.evaluations_without * self.unet.macs(convention)

    def macs_by_component(self, convention: str = "true") -> dict[str, int]:
        """Return the run's MACs by component, with ``AFFINE_MAPS`` as one more."""
        once = self.embeddings * self.unet.affine_macs(self.settings.cached)
        evaluation = self.unet.macs_by_component(convention, self.settings.replaced)
        return {name: self.evaluations * macs for name, macs in evaluation.items()} | {
            AFFINE_MAPS: once
        }

    def macs_by_component_without(self, convention: str = "true") -> dict[str, int]:
        """Return the run's MACs by component without VCUT."""
        evaluation = self.unet.macs_by_component(convention)
        return {name: self.evaluations_without * macs for name, macs in evaluation.items()}

    def saved_by_cut(self, convention: str = "true") -> int:
        """Return the MACs that ending guidance saves, before cross-attention is made cheaper."""
        return self.evaluations_saved_by_cut * self.unet.macs(convention)

    def saved_by_step_cache(self, convention: str = "true") -> int:
        """Return the MACs that steps left out save, before cross-attention is made cheaper."""
        return self.evaluations_saved_by_step_cache * self.unet.macs(convention)

    def saved_by_cross_attention(self, convention: str = "true") -> int:
        """Return the MACs that replaced cross-attentions save in the evaluations that are left."""
        elsewhere = self.saved_by_cut(convention) + self.saved_by_step_cache(convention)
        return self.macs_without(convention) - self.macs(convention) - elsewhere

    def cache_bytes(self, value_bytes: int, latent_elements: int) -> int:
        """Return the bytes of what VCUT keeps during the run.

        value_bytes: of one number in the dtype that the UNet computes in.
        """
        affine_maps = self.embeddings * self.unet.affine_elements(self.settings.cached)
        return affine_maps * value_bytes + self.step_plan.kept_bytes(latent_elements)

    def expected_lines(self) -> list[str]:
        """Return what the nodes should show after the run, cond and uncond batched together."""
        lines = []
        if self.settings.guidance or self.settings.step_cache:
            saved = self.evaluations_without - self.evaluations
            lines.append(evaluations_line(self.evaluations, saved))
        if self.settings.step_cache:
            lines.append(steps_line(self.step_plan.num_computed, self.num_steps))
        if self.settings.guidance:
            lines += self.plan.lines()
        if self.settings.replaced:
            cached, replaced = len(self.settings.cached), len(self.settings.replaced)
            phases = (self.num_guided_computed > 0) + (self.evaluations_saved_by_cut > 0)
            reused = cached * (self.step_plan.num_computed - phases)
            removed = (replaced - cached) * self.step_plan.num_computed
            lines.append(cross_attention_line(cached * phases, reused, removed))
        return lines
