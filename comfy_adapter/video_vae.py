"""SVD's VAE as stages that can run in slices, and decoding with it beside ComfyUI's models."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine, AutoencodingEngineLegacy
from comfy.ldm.modules.diffusionmodules.model import ResnetBlock, nonlinearity
from comfy.ldm.modules.temporal_ae import AE3DConv, AttnVideoBlock, VideoDecoder, VideoResBlock
from torch import Tensor, nn

from ..vcut_core.video_decoding import (
    AUTOMATIC,
    MAX_SLICES,
    DecodeMemory,
    FrameStage,
    Stage,
    TimeConvStage,
    TimeStage,
    decode_video,
)
from .forwards import is_watched
from .layer_calls import norm_then_conv

NO_TIME_AXIS = ["as VAE Decode does:", "this VAE has no time axis"]
HOOKED_INTO = ["as VAE Decode does:", "another pack hooks into this VAE"]


@dataclass(frozen=True)
class Decoded:
    """What was decoded, and how. images: (T, H, W, 3) in 0..1. lines: for the node."""

    images: Tensor
    lines: list[str]


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


def decode(vae, samples: Tensor, slices: int) -> Decoded:
    """Return the video of a latent (T, 4, h, w), decoded as one by a VAE (comfy.sd.VAE).

    slices: 0 for the fewest that fit. A VAE without a time axis decodes as VAE Decode does.
    Raises ValueError for a latent of another kind of model, RuntimeError when neither the device
    nor the system memory holds what has to wait.
    """
    management = comfy.model_management
    vae.throw_exception_if_invalid()
    if not isinstance(getattr(vae.first_stage_model, "decoder", None), VideoDecoder):
        return Decoded(vae.decode(samples), NO_TIME_AXIS)
    stages = None
    if type(vae).decode is comfy.sd.VAE.decode and "decode" not in vars(vae):
        stages = stages_of(vae.first_stage_model)
    if stages is None:
        return Decoded(vae.decode(samples), HOOKED_INTO)
    if samples.shape[1] != vae.latent_channels:
        raise ValueError(
            f"expected a latent of {vae.latent_channels} channels, as this VAE's, got "
            f"{samples.shape[1]}. Connect the LATENT of SVD's sampler, or the VAE of its model"
        )
    device, dtype = vae.device, vae.vae_dtype
    frames, _, height, width = samples.shape
    memory = DecodeMemory(stages, frames, height * width, dtype.itemsize)
    missing = vae.patcher.model_size() - vae.patcher.loaded_size()
    free = management.get_free_memory(device) - max(0, missing)
    chosen = slices if slices != AUTOMATIC else memory.choose(free)
    whole = vae.memory_used_decode(samples.shape, dtype)
    while (images := _decode_in(vae, samples, stages, memory, chosen)) is None:
        if chosen >= MAX_SLICES:
            raise RuntimeError(
                f"expected {memory.required_bytes(chosen, 0) / 1e9:.1f} GB of free memory to "
                "decode in the most slices, and it was not there. Close other programs, or make "
                "the video smaller"
            )
        chosen = min(MAX_SLICES, 2 * chosen)
        management.soft_empty_cache()
    at_once = min(frames, max(1, int(free / whole)))
    lines = [f"{frames} frames decoded as one video", _slices_line(chosen, slices, memory)]
    if at_once < frames:
        count = f"{at_once} frame{'' if at_once == 1 else 's'}"
        lines.append(f"VAE Decode would have taken {count} at a time")
    return Decoded(images, lines)


def _slices_line(chosen: int, asked: int, memory: DecodeMemory) -> str:
    how = " (automatic)" if asked == AUTOMATIC else ""
    count = f"{chosen} slice{'' if chosen == 1 else 's'}"
    return f"{count}{how}, {memory.working_bytes(chosen) / 1e9:.1f} GB at once"


def _decode_in(vae, samples, stages, memory: DecodeMemory, slices: int) -> Tensor | None:
    """Return the pictures, None when memory ran out.

    An exception holds on to all tensors of the frames it came through, so it ends here.
    """
    management = comfy.model_management
    device, dtype = vae.device, vae.vae_dtype
    working = memory.required_bytes(slices, 0)
    management.load_models_gpu([vae.patcher], memory_required=working)
    free = management.get_free_memory(device)
    room = free - working
    frames = samples.shape[0]
    if room < memory.resting_bytes and not management.is_device_cpu(device):
        _require_system_memory(memory.resting_bytes)

    def rest(number: int, frame: Tensor) -> Tensor:
        """Let a frame wait on the device while all of its like fit there."""
        return frame if frame.nbytes * frames <= room else system.rest(number, frame)

    bar = comfy.utils.ProgressBar(len(stages))
    done = 0

    def note(stage: int) -> None:
        nonlocal done
        management.throw_exception_if_processing_interrupted()
        if stage != done:
            done = stage
            bar.update_absolute(stage)

    keeps_hidden = memory.keeps_hidden(slices, free)
    samples = samples.to(dtype)
    try:
        with torch.inference_mode(), SystemMemory(memory.resting_bytes // frames) as system:
            if slices == 1:
                pixels = vae.first_stage_model.decode(samples.to(device))
            else:
                pixels = decode_video(samples, stages, slices, device, rest, note, keeps_hidden)
            images = vae.process_output(pixels.to(vae.output_device).float())
    except management.OOM_EXCEPTION:
        return None
    return images.movedim(1, -1)


class SystemMemory:
    """Where frames of up to so many bytes wait off the device, pinned where ComfyUI offers it.

    Copies are not asynchronous: what is read next is read on the CPU.
    """

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._buffers: dict[int, Tensor] = {}
        self._pinned: list[Tensor] = []

    def __enter__(self) -> "SystemMemory":
        return self

    def __exit__(self, *_exception) -> None:
        for buffer in self._pinned:
            comfy.model_management.unpin_memory(buffer)
        self._pinned.clear()
        self._buffers.clear()

    def rest(self, number: int, frame: Tensor) -> Tensor:
        """Return a copy of a frame in the place of that number."""
        if number not in self._buffers:
            self._buffers[number] = self._new_buffer()
        buffer = self._buffers[number][: frame.nbytes].view(frame.dtype)
        return buffer.view(frame.shape).copy_(frame)

    def _new_buffer(self) -> Tensor:
        # ComfyUI pins nothing but parameters.
        buffer = nn.Parameter(torch.empty(self._frame_bytes, dtype=torch.uint8), False)
        pin = getattr(comfy.model_management, "pin_memory", None)
        if pin is not None and pin(buffer):
            self._pinned.append(buffer)
        return buffer


def _require_system_memory(needed: int) -> None:
    available = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > available:
        raise RuntimeError(
            f"expected {needed / 1e9:.1f} GB of free system memory for the frames that wait, got "
            f"{available / 1e9:.1f} GB. Close other programs, or put Latent From Batch before this "
            "node and decode fewer frames at a time"
        )
