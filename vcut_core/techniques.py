"""The techniques of the pack, in the order in which a call passes through them.

The step cache comes first: a step that it predicts reaches nobody else. Cross-attention comes
before slicing: its constant belongs to the whole batch and is cut for a slice.
"""

from collections.abc import Mapping

from .cross_attention import CachedCrossAttention
from .feature_slicing import FeatureSlicing
from .guidance_cut import GuidanceCut
from .step_cache import StepCache
from .technique import RunFacts, Technique

TECHNIQUES: tuple[type[Technique], ...] = (
    StepCache,
    GuidanceCut,
    CachedCrossAttention,
    FeatureSlicing,
)


def create_techniques(configs: Mapping[str, object], facts: RunFacts) -> list[Technique]:
    """Return a run's techniques, in order, for configs by their technique's key."""
    return [kind(configs[kind.key], facts) for kind in TECHNIQUES if kind.key in configs]


def technique_for(config: object) -> type[Technique]:
    """Return the technique that ``config`` belongs to. Raises LookupError for anything else."""
    for technique in TECHNIQUES:
        if type(config) is technique.config_class:
            return technique
    raise LookupError(f"expected the config of a technique, got {type(config).__name__}")
