"""The seam: what a technique is, what it may know of a run, and how several of them compose."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .activation_memory import Place, UNetShape
from .calls import Axis, CondsCall, Kind, PredictionCall, UNetCall


class MemoryFacts(Protocol):
    """What is known of the model's memory, as it is now."""

    @property
    def unet(self) -> UNetShape:
        """The shapes of the UNet's layers."""
        ...

    def itemsize(self) -> int:
        """Return the bytes of one number of an activation."""
        ...

    def free_bytes(self) -> int:
        """Return the bytes that activations may take beside all of the model's weights."""
        ...

    def patched_places(self) -> Sequence[Place]:
        """Return where other packs work inside of transformer blocks."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its model is loaded.

    latent_shape: (frames, 4, H, W) for SVD. num_frames: of one UNet call's cond.
    num_other_gpus: copies of the model that sample beside it.
    announce: shows lines on the technique's node while the run is in progress.
    """

    latent_shape: tuple[int, ...]
    num_frames: int
    memory: MemoryFacts
    num_other_gpus: int
    announce: Callable[["Technique", list[str]], None] = lambda _technique, _lines: None


class Technique:
    """One way to save work, for the length of one sampling run.

    Made from its frozen settings when the run starts and discarded when it ends, so nothing is
    ever reset. A subclass overrides the hooks that it uses.

    key: its name in the settings of a model. config_class: of its settings.
    saves_evaluations: whether it leaves out UNet evaluations; its node then shows their count.
    acts_on_copies: whether it also changes layers of the model's copies, which another thread may
        call. runs_uncompiled: whether the blocks that it wants stay out of torch.compile. In
        compiled code ``around_layer`` is never called.
    evaluations_saved: those that it left out. fallbacks: why it stepped aside -> how often.
    """

    key: ClassVar[str]
    config_class: ClassVar[type]
    saves_evaluations: ClassVar[bool] = False
    acts_on_copies: ClassVar[bool] = False
    runs_uncompiled: ClassVar[bool] = False

    def __init__(self, config: Any, facts: RunFacts) -> None:
        self.config = config
        self.facts = facts
        self.evaluations_saved = 0
        self.fallbacks: Counter[str] = Counter()

    def memory_required(self, rows: int, size: tuple[int, int]) -> float | None:
        """Return the bytes of a UNet call of (rows, 4, *size); None leaves the host's estimate."""
        return None

    def phase(self, sigma: float, sigmas: Sequence[float]) -> Hashable:
        """Return what of the technique changes predictions abruptly during a run over ``sigmas``.

        Equal values: the predictions at two sigmas lie on one smooth path.
        """
        return None

    def around_prediction(
        self, call: PredictionCall, compute: Callable[[PredictionCall], Tensor]
    ) -> Tensor:
        """Return the denoised latent that the sampler asks for, guidance included."""
        return compute(call)

    def around_conds(
        self, call: CondsCall, compute: Callable[[CondsCall], list[Tensor]]
    ) -> list[Tensor]:
        """Return a prediction for each cond; ``compute`` evaluates those that are present."""
        return compute(call)

    def before_unet(self, call: UNetCall) -> UNetCall:
        """Take note of a UNet call; return it with what the technique asks for."""
        return call

    def wants_layer(self, kind: Kind, axis: Axis | None) -> bool:
        """Return whether ``around_layer`` is to be called for such layers in this run."""
        return False

    def around_layer(self, call: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """Return the layer's output for one of the layer calls."""
        return compute(call)

    def compiled_attention(self, axis: Axis) -> Callable[[Any], Tensor] | None:
        """Return what ``around_layer`` is for cross-attentions in compiled code; None: nothing.

        A function of an AttentionCall alone, the same in every run: what it counts, keeps or reads
        elsewhere would be compiled anew each time.
        """
        return None

    def finish(self, is_complete: bool) -> None:
        """Take the last counts when the run has ended."""

    def lines(self) -> list[str]:
        """Return what the technique did, a short line each."""
        return []

    def details(self) -> list[str]:
        """Return what only the log tells."""
        return []

    def counts(self) -> dict[str, Any]:
        """Return what the technique did as plain data."""
        return {}


def chain(techniques: Iterable[Technique], hook: str, innermost: Callable) -> Callable:
    """Return ``innermost`` inside the hook of every technique that has one, the first outermost."""
    compute = innermost
    for technique in reversed(list(techniques)):
        if has_hook(technique, hook):
            compute = _around(getattr(technique, hook), compute)
    return compute


def has_hook(technique: Technique, hook: str) -> bool:
    """Whether the technique's class has a ``hook`` of its own."""
    return getattr(type(technique), hook) is not getattr(Technique, hook)


def _around(hook: Callable, compute: Callable) -> Callable:
    return lambda call: hook(call, compute)
