"""Decoding with SVD's VAE beside ComfyUI's models: in what memory, and where frames wait."""

from dataclasses import dataclass

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.temporal_ae import VideoDecoder
from torch import Tensor, nn

from ..vcut_core.video_decoding import AUTOMATIC, MAX_SLICES, DecodeMemory, decode_video
from .vae_stages import stages_of

NO_TIME_AXIS = ["as VAE Decode does:", "this VAE has no time axis"]
HOOKED_INTO = ["as VAE Decode does:", "another pack hooks into this VAE"]


@dataclass(frozen=True)
class Decoded:
    """What was decoded, and how. images: (T, H, W, 3) in 0..1. lines: for the node."""

    images: Tensor
    lines: list[str]


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
