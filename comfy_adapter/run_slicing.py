"""How one run slices, and what its sliced layers need to know of the call they run in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..vcut_core.feature_slicing import AUTOMATIC, SlicingConfig, map_slices, slices_of


class RunSlicing:
    """State of one run.

    config: as the user left it. slices: of the largest layers; smaller ones are cut into fewer.
    expected_bytes: the peak of activations that this should give.
    """

    def __init__(self, config: SlicingConfig, slices: int, expected_bytes: int = 0) -> None:
        self.config = config
        self.slices = slices
        self.expected_bytes = expected_bytes
        self.is_inside_block = self.is_in_later_slice = False
        self._largest = 1  # elements of an activation at the UNet's full resolution
        self._parts: list[Tensor] = []  # what an output block's residual block is to join

    def slices_for(self, elements: int) -> int:
        """Return how many slices a layer of so many elements is cut into."""
        return slices_of(self.slices, elements / self._largest)

    @property
    def has_blocks(self) -> bool:
        """Whether whole transformer blocks run in slices."""
        return self.slices > 1 and self.config.scope != "feed_forward"

    def over_rows(self, x: Tensor, function: Callable[[int, int], Tensor]) -> Tensor:
        """Return a transformer block's output for x (B, S, C), ``function`` doing one slice."""

        def run_slice(start: int, stop: int) -> Tensor:
            self.is_in_later_slice = start > 0
            return function(start, stop)

        self.is_inside_block = True
        try:
            return map_slices(run_slice, x.shape[0], self.slices_for(x.numel()))
        finally:
            self.is_inside_block = self.is_in_later_slice = False

    def describe(self) -> str:
        """Return the choice and the expected peak for the run's line."""
        how = "automatic" if self.config.slices == AUTOMATIC else "as set"
        count = f"{self.slices} slices" if self.slices > 1 else "off"
        return (
            f"slicing {self.config.scope}: {count} ({how}), "
            f"{self.expected_bytes / 1e6:,.0f} MB of activations expected"
        )

    def begin_call(self, x: Tensor, unet: nn.Module) -> None:
        """Take note of the size of a UNet call, x (B, C, H, W)."""
        self._largest = max(1, x.shape[0] * x.shape[2:].numel() * unet.model_channels)
        self._parts.clear()

    def take_parts(self, x: Tensor) -> list[Tensor]:
        """Return the tensors that x stands for, forgetting them; x itself unless it is empty."""
        parts, self._parts = self._parts, []
        return parts if parts and x.numel() == 0 else [x]

    @torch.compiler.disable
    def hand_over(self, h: Tensor, skip: Tensor | None, transformer_options: dict):
        """Output-block patch: keep h and skip for the residual block; give the host empty ones.

        The host would join them and hold the joint until the whole output block is done. On newer
        hosts another pack's patch may have taken the skip away.
        """
        if skip is None:
            return h, skip
        self._parts = [h, skip]
        return tuple(part.new_empty((part.shape[0], 0, *part.shape[2:])) for part in (h, skip))
