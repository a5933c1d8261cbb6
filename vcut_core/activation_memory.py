"""How much memory the activations of a video UNet take at their peak, by its layers' shapes.

Every layer has a few moments at which it holds most; they are written down here as multiples of
its input and output. tests/host/test_slicing_memory.py holds them against a count of every
tensor. Attention is taken to be fused: no matrix of scores.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from .slices import slices_of

# What they hold at most beside a transformer block's input, as multiples of it.
ATTENTION = 7  # x, its norm, query, key, value, output and its projection
FEED_FORWARD = 16  # two projections of 4, the gate's GELU, the product
FEED_FORWARD_PARTS = 2  # a block's slice runs its feed-forward, which takes most, in two


@dataclass(frozen=True)
class LayerShape:
    """A layer by what it makes of the channels: (kind, channels in, channels out)."""

    kind: Literal["conv", "residual", "transformer", "down", "up"]
    channels: int
    out_channels: int


@dataclass(frozen=True)
class UNetShape:
    """A UNet's blocks in the order they run, each a tuple of layers, and its embedding's width."""

    inputs: tuple[tuple[LayerShape, ...], ...]
    middle: tuple[LayerShape, ...]
    outputs: tuple[tuple[LayerShape, ...], ...]
    context_width: int


@dataclass(frozen=True)
class CallShape:
    """One UNet call: rows is conds times frames; height and width are the latent's."""

    rows: int
    height: int
    width: int
    num_frames: int
    itemsize: int


Place = tuple[Literal["input", "middle", "output"], int]  # of a block in the UNet


def places(unet: UNetShape) -> Iterator[Place]:
    """Yield the place of every block."""
    for index in range(len(unet.inputs)):
        yield "input", index
    yield "middle", 0
    for index in range(len(unet.outputs)):
        yield "output", index


def peak_bytes(
    unet: UNetShape,
    call: CallShape,
    scope: str,
    slices: int,
    whole: Collection[Place] = (),
) -> int:
    """Return the peak of live activations of a UNet call, in bytes.

    scope: the layers that are sliced, as in SlicingConfig. slices: of the largest ones, 1 for none.
    whole: places whose transformer blocks run whole, all but their feed-forward.
    """
    return _Walk(unet, call, scope, slices, whole).peak()


class _Walk:
    """Goes through the UNet as a call does, with what is held at each place."""

    def __init__(
        self,
        unet: UNetShape,
        call: CallShape,
        scope: str,
        slices: int,
        whole: Collection[Place],
    ) -> None:
        self.unet, self.call, self.slices, self.whole = unet, call, slices, whole
        self.is_blocks = slices > 1 and scope in ("blocks", "everything")
        self.is_everything = slices > 1 and scope == "everything"
        self.size = (call.height, call.width)
        self.skips: list[tuple[int, tuple[int, int]]] = []  # (channels, size)
        self.most = 0

    def peak(self) -> int:
        """Return the most that is held anywhere."""
        channels = 0
        for index, layers in enumerate(self.unet.inputs):
            channels = self._block(("input", index), layers, self._skip_bytes())
            self.skips.append((channels, self.size))
        channels = self._block(("middle", 0), self.unet.middle, self._skip_bytes())
        for index, layers in enumerate(self.unet.outputs):
            skip, _ = self.skips.pop()
            joint = self._bytes(channels) + self._bytes(skip)
            held = self._skip_bytes()
            self._see(held + joint * (1 if self.is_everything else 2))
            channels = self._block(("output", index), layers, held, joint)
        self._see(3 * self._bytes(channels))  # the last norm and its SiLU
        return self.most

    def _block(
        self, place: Place, layers: tuple[LayerShape, ...], held: int, joint: int = 0
    ) -> int:
        """Run a block; return its channels. joint: its input, where no skip holds it already."""
        held += joint
        current = 0  # the input of the layer that runs, unless it is the block's
        for layer in layers:
            for most in self._moments(layer, place in self.whole):
                self._see(held + current + most)
                if self.is_everything and joint and layer is layers[0]:
                    held, joint = held - joint, 0  # it was handed over and is done with
            if layer.kind in ("down", "up"):
                self.size = self._next_size(layer.kind)
            current = self._bytes(layer.out_channels)
        return layers[-1].out_channels

    def _moments(self, layer: LayerShape, is_whole: bool) -> list[int]:
        """Return the most that a layer makes beside its input, one part of it after another."""
        given, made = self._bytes(layer.channels), self._bytes(layer.out_channels)
        if layer.kind == "residual":
            return self._residual(given, made)
        if layer.kind == "transformer":
            return [self._transformer(made, is_whole) + self._context_bytes()]
        if layer.kind == "up":
            made = self._bytes(layer.out_channels, self._next_size("up"))
            share = self._share(made, self.call.rows) if self.is_everything else 1
            return [math.ceil(made * (1 + share))]
        return [self._bytes(layer.out_channels)]

    def _residual(self, given: int, made: int) -> list[int]:
        """Return the most over frames, then over time."""
        over_frames = max(2 * given, given + made, 3 * made)
        if not self.is_everything:
            return [over_frames, 5 * made]
        frames, pixels = self._share(given, self.call.rows), self._share(given, self.size[0])
        # A slice is joined from its parts first; through time, a float32 copy comes with it.
        copies = max(3, 1 + 4 // self.call.itemsize)
        return [
            math.ceil(made + frames * (over_frames + given)),
            math.ceil(made * (2 + copies * pixels)),
        ]

    def _transformer(self, made: int, is_whole: bool) -> int:
        conds = max(1, self.call.rows // self.call.num_frames)
        frames = self._share(made, self.call.rows)
        pixels = self._share(made, conds * math.prod(self.size))
        if self.is_blocks and not is_whole:
            slice_ = max(ATTENTION, 4 + FEED_FORWARD / FEED_FORWARD_PARTS)
            spatial, temporal = 1 + frames * slice_, 1 + pixels * slice_
        elif self.slices > 1:
            spatial = temporal = max(ATTENTION, 4 + FEED_FORWARD * pixels)
        else:
            spatial = temporal = 3 + FEED_FORWARD
        blend = 3 + 3 * frames if self.is_everything else 5
        return math.ceil(made * max(1 + spatial, 2 + temporal, blend))

    def _share(self, size: int, rows: int) -> float:
        """Return what part of a layer of ``size`` bytes and so many rows its largest slice is."""
        first = self.unet.inputs[0][0].out_channels
        largest = self._bytes(first, (self.call.height, self.call.width))
        slices = min(rows, slices_of(self.slices, size / largest))
        return math.ceil(rows / slices) / rows

    def _next_size(self, kind: str) -> tuple[int, int]:
        height, width = self.size
        if kind == "down":
            return (height + 1) // 2, (width + 1) // 2
        return self.skips[-1][1] if self.skips else (2 * height, 2 * width)

    def _bytes(self, channels: int, size: tuple[int, int] | None = None) -> int:
        return channels * self.call.rows * math.prod(size or self.size) * self.call.itemsize

    def _skip_bytes(self) -> int:
        return sum(self._bytes(channels, size) for channels, size in self.skips)

    def _context_bytes(self) -> int:
        """Return what the embedding takes, repeated for every pixel of a cond."""
        conds = max(1, self.call.rows // self.call.num_frames)
        return conds * math.prod(self.size) * self.unet.context_width * self.call.itemsize

    def _see(self, held: int) -> None:
        self.most = max(self.most, held)
