"""Feature slicing: layers run slice by slice, the same picture in a fraction of the memory.

Frames are independent in spatial layers, pixels in temporal ones.
Source: after Zhan et al., "Fast and Memory-Efficient Video Diffusion Using Streamlined Inference",
NeurIPS 2024 (feature slicer, operator grouping). Differs from source: exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .activation_memory import FEED_FORWARD_PARTS
from .calls import Axis, BlockCall, Kind, LayerCall, ResidualCall, UNetCall
from .slices import map_slices, slices_of
from .slicing_memory import AUTOMATIC, CONDS, MAX_SLICES, ActivationPeak, SlicedMemory
from .technique import RunFacts, Technique

Scope = Literal["blocks", "feed_forward", "everything"]
SCOPES = ("blocks", "feed_forward", "everything")
SLICED_LAYERS: dict[str, tuple[Kind, ...]] = {
    "feed_forward": ("feed-forward",),
    "blocks": ("feed-forward", "block"),
    "everything": ("feed-forward", "block", "residual", "upsample", "blend"),
}


@dataclass(frozen=True)
class SlicingConfig:
    """The user's choice.

    slices: 0 chooses the fewest that fit when a run starts, 1 is off.
    scope: ``feed_forward`` slices the feed-forward layers, ``blocks`` whole transformer blocks,
        ``everything`` the residual blocks too.
    Raises ValueError when the number is out of range or the word unknown.
    """

    slices: int = AUTOMATIC
    scope: Scope = "blocks"

    def __post_init__(self) -> None:
        if not AUTOMATIC <= self.slices <= MAX_SLICES:
            raise ValueError(
                f"expected slices from {AUTOMATIC} (automatic) to {MAX_SLICES}, got {self.slices}"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"expected scope to be one of {', '.join(SCOPES)}, got {self.scope}")


class FeatureSlicing(Technique):
    """Slices of one run.

    slices: of the largest layers; smaller ones are cut into fewer.
    expected_bytes: the peak of activations that this should give.
    """

    key = "slicing"
    config_class = SlicingConfig
    runs_uncompiled = True

    def __init__(self, config: SlicingConfig, facts: RunFacts) -> None:
        super().__init__(config, facts)
        self.memory = SlicedMemory(config.slices, config.scope, facts.memory, facts.num_frames)
        self.slices, self.expected_bytes = 1, 0
        self._largest = 1  # elements of an activation at the UNet's full resolution
        self._is_inside_block = False
        if len(facts.latent_shape) == 4:  # else no latent of SVD
            self.slices = self.memory.choose(*self._largest_call())
            self.expected_bytes = self.memory.peak(*self._largest_call(), self.slices)

    def memory_required(self, rows: int, size: tuple[int, int]) -> float | None:
        """Return the bytes that a sliced call of (rows, 4, *size) needs."""
        if self.facts.num_other_gpus or not self.expected_bytes:
            return None
        return self.memory.required(rows, size, self.slices)

    def peak(self) -> ActivationPeak:
        """Return what the run's activations should take, and take without slicing."""
        whole = self.memory.peak(*self._largest_call(), 1)
        return ActivationPeak(self.slices, self.expected_bytes, whole)

    def _largest_call(self) -> tuple[int, tuple[int, ...]]:
        """Return rows and size of a call of cond and uncond together."""
        return CONDS * self.facts.num_frames, self.facts.latent_shape[2:]

    def wants_layer(self, kind: Kind, axis: Axis | None) -> bool:
        """Return whether layers of this kind are sliced."""
        return self.slices > 1 and kind in SLICED_LAYERS[self.config.scope]

    def before_unet(self, call: UNetCall) -> UNetCall:
        """Note the size of a UNet call and let its residual blocks join their own inputs."""
        self._largest = max(1, call.elements)
        if self.wants_layer("residual", None) and call.can_defer_concat():
            call = call.changed(defers_concat=True)
        return call

    def around_layer(self, call: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """Return the layer's output, computed slice by slice."""
        if isinstance(call, ResidualCall):
            return self._around_residual(call, compute)
        if isinstance(call, BlockCall):
            return self._around_block(call, compute)
        is_part = call.kind == "feed-forward" and self._is_inside_block
        slices = FEED_FORWARD_PARTS if is_part else self._slices_for(call.elements)
        return _over_rows(call, compute, slices)

    def _around_block(self, call: BlockCall, compute: Callable[[Any], Tensor]) -> Tensor:
        if call.is_patched or call.needs_whole_batch:
            self.fallbacks["block not sliced: another pack patches it"] += 1
            return compute(call)
        self._is_inside_block = True
        try:
            return _over_rows(call, compute, self._slices_for(call.elements))
        finally:
            self._is_inside_block = False

    def _around_residual(self, call: ResidualCall, compute: Callable[[Any], Tensor]) -> Tensor:
        slices = self._slices_for(call.elements)
        if slices == 1:
            return compute(call)
        output = map_slices(call.compute_frames, call.num_rows, slices)
        call.release_input()
        return call.compute_time(output, slices)

    def _slices_for(self, elements: int) -> int:
        """Return how many slices a layer of so many elements is cut into."""
        return slices_of(self.slices, elements / self._largest)

    def lines(self) -> list[str]:
        """Return the choice and the expected peak."""
        how = "automatic" if self.config.slices == AUTOMATIC else "as set"
        scope = self.config.scope
        count = f"{scope} in {self.slices} slices ({how})" if self.slices > 1 else f"off ({how})"
        return [f"slicing: {count}", f"{self.expected_bytes / 1e6:,.0f} MB of activations expected"]

    def details(self) -> list[str]:
        """Return on how many GPUs nothing is sliced."""
        count = self.facts.num_other_gpus
        return [f"not sliced on {count} other GPU{'s' if count > 1 else ''}"] if count else []

    def counts(self) -> dict[str, Any]:
        """Return the choice and the expected peak in bytes."""
        scope, expected = self.config.scope, self.expected_bytes
        return {"slices": self.slices, "scope": scope, "expected_bytes": expected}


def _over_rows(call: LayerCall, compute: Callable[[Any], Tensor], slices: int) -> Tensor:
    if slices == 1:
        return compute(call)
    return map_slices(lambda start, stop: compute(call.rows(start, stop)), call.num_rows, slices)
