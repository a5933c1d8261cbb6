"""SVD's VAE, as ComfyUI builds it, as stages that can run in slices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy
from comfy.ldm.modules.diffusionmodules.model import ResnetBlock, nonlinearity
from comfy.ldm.modules.temporal_ae import AE3DConv, AttnVideoBlock, VideoResBlock
from torch import Tensor, nn

from ..vcut_core.video_decoding import FrameStage, Stage, TimeConvStage, TimeStage
from .forwards import is_watched
from .layer_calls import norm_then_conv


def stages_of(autoencoder: Any) -> list[Stage] | None:
    """Return the way from latent to pixels of SVD's VAE, None unless it is as it was made.

    autoencoder: of a comfy.sd.VAE, with a VideoDecoder. Weights are read when a stage runs.
    """
    decoder = autoencoder.decoder
    if not _decodes_plainly(autoencoder) or not all(map(_is_known, _parts(decoder))):
        return None
    builder = _Builder()
    if (conv := getattr(autoencoder, "post_quant_conv", None)) is not None:
        builder.frames(conv, conv.out_channels)
    builder.frames(decoder.conv_in, decoder.conv_in.out_channels)
    builder.residual(decoder.mid.block_1)
    # Query, key and value beside its input and output: twice what a residual block has.
    builder.frames(decoder.mid.attn_1, decoder.mid.block_1.out_channels, inner=2)
    builder.residual(decoder.mid.block_2)
    for number, level in reversed(list(enumerate(decoder.up))):
        for block in level.block:
            builder.residual(block)
        if number:
            builder.upsample(level.upsample, level.block[-1].out_channels)
    last = decoder.conv_out
    builder.frames(
        lambda x: super(AE3DConv, last).forward(nonlinearity(decoder.norm_out(x))),
        last.out_channels,
    )
    builder.end_frames()
    return [*builder.stages, TimeConvStage(last.time_mix_conv)]


def _decodes_plainly(autoencoder: Any) -> bool:
    """Whether an autoencoder decodes with its decoder and nothing but a convolution before it."""
    if "decode" in vars(autoencoder):
        return False
    if type(autoencoder).decode is AutoencodingEngineLegacy.decode:
        return autoencoder.bn is None and autoencoder.max_batch_size is None
    return type(autoencoder).decode is AutoencodingEngine.decode


def _parts(decoder: Any) -> Iterator[Any]:
    yield from (decoder, decoder.conv_out)
    yield from (decoder.mid.block_1, decoder.mid.block_2, decoder.mid.attn_1)
    for level in decoder.up:
        yield from level.block
        yield from level.attn


def _is_known(part: Any) -> bool:
    """Whether a part of the decoder is what the stages take it for, and nobody hooks into it.

    Hooks further in, on convolutions and on norms over space, are called as ever.
    """
    if is_watched(part):
        return False
    if isinstance(part, VideoResBlock):
        stack = part.time_stack
        if any(is_watched(module) for module in stack.modules()):
            return False
        convs = (stack.in_layers[-1], stack.out_layers[-1])
        return (
            all(isinstance(conv, nn.Conv3d) and conv.kernel_size[1:] == (1, 1) for conv in convs)
            and isinstance(stack.skip_connection, nn.Identity)
            and stack.skip_t_emb
            and not (stack.updown or stack.use_scale_shift_norm)
        )
    return not isinstance(part, (ResnetBlock, AttnVideoBlock))  # time in other places


class _Builder:
    """Joins what works on single frames, so that only one tensor waits for each stage."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._scale = 1  # of the picture to the latent, in one dimension
        self._functions: list[Callable[[Tensor], Tensor]] = []
        self._size = self._channels = 0

    def frames(self, function: Callable[[Tensor], Tensor], channels: int, inner: int = 1) -> None:
        """Add layers that give each frame so many channels, and have ``inner`` times as many."""
        self._functions.append(function)
        size = max(channels * inner, self._channels) * self._scale**2
        self._size, self._channels = max(self._size, size), channels

    def upsample(self, layer: nn.Module, channels: int) -> None:
        """Add a layer that doubles the frames' sides."""
        self._scale *= 2
        self.frames(layer, channels)

    def residual(self, block: Any) -> None:
        """Add a residual block: over frames, then over time."""
        self.frames(functools.partial(ResnetBlock.forward, block, temb=None), block.out_channels)
        self.end_frames()
        stack = block.time_stack

        def norms(x: Tensor):
            return norm_then_conv(stack.in_layers, x), norm_then_conv(stack.out_layers, x)

        def mix(own: Tensor, temporal: Tensor) -> Tensor:
            alpha = block.get_alpha(bs=1).to(own)
            return alpha * temporal + (1.0 - alpha) * own

        self.stages.append(TimeStage(norms, mix, block.out_channels * self._scale**2))

    def end_frames(self) -> None:
        """End a stage of frames."""
        functions = list(self._functions)

        def compute(x: Tensor) -> Tensor:
            for function in functions:
                x = function(x)
            return x

        rest_size = self._channels * self._scale**2
        self.stages.append(FrameStage(compute, self._size, rest_size))
        self._functions.clear()
        self._size = rest_size
