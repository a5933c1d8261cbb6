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
    return max(_Moments(unet, call, scope, slices, whole).of_call())


Size = tuple[int, int]  # height and width of an activation


class _Moments:
    """The bytes that are held at each moment of a UNet call."""

    def __init__(
        self,
        unet: UNetShape,
        call: CallShape,
        scope: str,
        slices: int,
        whole: Collection[Place],
    ) -> None:
        self.unet = unet
        self.call = call
        self.slices = slices
        self.whole = whole
        self.is_blocks = slices > 1 and scope in ("blocks", "everything")
        self.is_everything = slices > 1 and scope == "everything"
        self.full_size = (call.height, call.width)

    def of_call(self) -> Iterator[int]:
        """Yield what is held at each moment of the whole call."""
        size = self.full_size
        skips: list[tuple[int, Size]] = []  # channels and size
        for index, layers in enumerate(self.unet.inputs):
            yield from self._of_block(("input", index), layers, size, self._skip_bytes(skips))
            size = _size_after(layers, size)
            skips.append((layers[-1].out_channels, size))
        yield from self._of_block(("middle", 0), self.unet.middle, size, self._skip_bytes(skips))
        channels = self.unet.middle[-1].out_channels
        for index, layers in enumerate(self.unet.outputs):
            skip, _ = skips.pop()
            joint = self._bytes(channels, size) + self._bytes(skip, size)
            held = self._skip_bytes(skips)
            yield held + joint * (1 if self.is_everything else 2)
            up_to = skips[-1][1] if skips else None
            yield from self._of_block(("output", index), layers, size, held, joint, up_to)
            size = _size_after(layers, size, up_to)
            channels = layers[-1].out_channels
        yield 3 * self._bytes(channels, size)  # the last norm and its SiLU

    def _of_block(
        self,
        place: Place,
        layers: tuple[LayerShape, ...],
        size: Size,
        held: int,
        joint: int = 0,
        up_to: Size | None = None,
    ) -> Iterator[int]:
        """Yield what is held while a block runs.

        joint: its input, where no skip holds it already. up_to: the size that it is upsampled to.
        """
        held += joint
        current = 0  # the input of the layer that runs, unless it is the block's
        for layer in layers:
            for most in self._of_layer(layer, size, place in self.whole, up_to):
                yield held + current + most
                if self.is_everything and joint and layer is layers[0]:
                    held, joint = held - joint, 0  # the layer has taken it and is done with it
            size = _size_after((layer,), size, up_to)
            current = self._bytes(layer.out_channels, size)

    def _of_layer(
        self, layer: LayerShape, size: Size, is_whole: bool, up_to: Size | None
    ) -> list[int]:
        """Return the most that a layer makes beside its input, one part of it after another."""
        given, made = self._bytes(layer.channels, size), self._bytes(layer.out_channels, size)
        if layer.kind == "residual":
            return self._of_residual(given, made, size)
        if layer.kind == "transformer":
            return [self._of_transformer(made, size, is_whole) + self._context_bytes(size)]
        if layer.kind == "up":
            made = self._bytes(layer.out_channels, _size_after((layer,), size, up_to))
            share = self._share(made, self.call.rows) if self.is_everything else 1
            return [math.ceil(made * (1 + share))]
        return [made]

    def _of_residual(self, given: int, made: int, size: Size) -> list[int]:
        """Return the most over frames, then over time."""
        over_frames = max(2 * given, given + made, 3 * made)
        if not self.is_everything:
            return [over_frames, 5 * made]
        frames, pixels = self._share(given, self.call.rows), self._share(given, size[0])
        # A slice is joined from its parts first; through time, a float32 copy comes with it.
        copies = max(3, 1 + 4 // self.call.itemsize)
        return [
            math.ceil(made + frames * (over_frames + given)),
            math.ceil(made * (2 + copies * pixels)),
        ]

    def _of_transformer(self, made: int, size: Size, is_whole: bool) -> int:
        frames = self._share(made, self.call.rows)
        pixels = self._share(made, self._conds() * math.prod(size))
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
        largest = self._bytes(self.unet.inputs[0][0].out_channels, self.full_size)
        slices = min(rows, slices_of(self.slices, size / largest))
        return math.ceil(rows / slices) / rows

    def _bytes(self, channels: int, size: Size) -> int:
        return channels * self.call.rows * math.prod(size) * self.call.itemsize

    def _skip_bytes(self, skips: list[tuple[int, Size]]) -> int:
        return sum(self._bytes(channels, size) for channels, size in skips)

    def _context_bytes(self, size: Size) -> int:
        """Return what the embedding takes, repeated for every pixel of a cond."""
        return self._conds() * math.prod(size) * self.unet.context_width * self.call.itemsize

    def _conds(self) -> int:
        return max(1, self.call.rows // self.call.num_frames)


def _size_after(layers: tuple[LayerShape, ...], size: Size, up_to: Size | None = None) -> Size:
    """Return the size after ``layers``. up_to: what an upsampling gives, else the double."""
    for layer in layers:
        height, width = size
        if layer.kind == "down":
            size = (height + 1) // 2, (width + 1) // 2
        elif layer.kind == "up":
            size = up_to or (2 * height, 2 * width)
    return size
