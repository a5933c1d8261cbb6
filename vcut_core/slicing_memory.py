"""How much memory a sliced UNet call needs, and the fewest slices with which it fits."""

from dataclasses import dataclass

from .activation_memory import CallShape, peak_bytes
from .technique import MemoryFacts

AUTOMATIC = 0
MAX_SLICES = 64
# Kernels take memory of their own, and an allocator never packs tightly.
MARGIN = 1.25
# ComfyUI takes cond and uncond in one call only where so many times its estimate is free.
HOST_MARGIN = 1.5
CONDS = 2


@dataclass(frozen=True)
class ActivationPeak:
    """Bytes of activations at the peak of a run in so many slices, and of one without slicing."""

    slices: int
    sliced_bytes: int
    whole_bytes: int


class SlicedMemory:
    """The memory of a UNet whose layers of ``scope`` run in slices.

    slices: as the user set them, AUTOMATIC to choose. num_frames: of one cond; 0 when every row of
        a call is a frame of one.
    """

    def __init__(self, slices: int, scope: str, facts: MemoryFacts, num_frames: int = 0) -> None:
        self.slices, self.scope = slices, scope
        self.facts, self.num_frames = facts, num_frames

    def required(self, rows: int, size, slices: int = AUTOMATIC) -> float:
        """Return the bytes to plan with for a call of (rows, 4, *size)."""
        return MARGIN * self.peak(rows, size, slices or self.choose(rows, size))

    def peak(self, rows: int, size, slices: int) -> int:
        """Return the peak of activations in bytes, size being (height, width) of the latent."""
        height, width = size
        num_frames = self.num_frames or rows
        call = CallShape(rows, height, width, num_frames, self.facts.itemsize())
        return peak_bytes(self.facts.unet, call, self.scope, slices, self.facts.patched_places())

    def choose(self, rows: int, size) -> int:
        """Return the fewest slices with which a call of so many rows fits, or the most there are.

        Where two conds never fit together, ComfyUI calls the model for one at a time.
        """
        if self.slices != AUTOMATIC:
            return self.slices
        free = self.facts.free_bytes()
        for calls, host_margin in ((1, HOST_MARGIN), (CONDS, 1.0)):
            for slices in range(1, MAX_SLICES + 1):
                peak = self.peak(max(1, rows // calls), size, slices)
                if MARGIN * host_margin * peak <= free:
                    return slices
        return MAX_SLICES
