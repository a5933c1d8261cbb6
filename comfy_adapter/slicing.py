"""How many slices a run takes, and what the host is told that it needs.

ComfyUI plans with ``memory_required`` of the model that all clones share: it reckons what to keep
on the GPU before it loads a clone, and whether cond and uncond go together at every step. So the
estimate stands on the model while a run of a sliced clone lasts, and on the clone for who asks it.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from comfy.model_patcher import ModelPatcher

from ..vcut_core.activation_memory import CallShape, LayerShape, UNetShape, peak_bytes, places
from ..vcut_core.feature_slicing import AUTOMATIC, MAX_SLICES, SlicingConfig
from .call_info import KEY
from .host_model import UNET, computing_dtype, memory_for_activations, own_object
from .other_patches import is_patched_inside
from .run_slicing import RunSlicing

# Kernels take memory of their own, and an allocator never packs tightly.
MARGIN = 1.25
# The host takes cond and uncond in one call only where so many times its estimate is free.
HOST_MARGIN = 1.5
CONDS = 2


class MemoryEstimate:
    """What one UNet call of a sliced model needs, called in place of ``memory_required``.

    slices, transformer_options: those of the run in progress; AUTOMATIC and None where none is.
    """

    def __init__(
        self,
        patcher,
        config: SlicingConfig,
        slices: int = AUTOMATIC,
        num_frames: int = 0,
        transformer_options: dict | None = None,
    ) -> None:
        self.config, self.slices, self.num_frames = config, slices, num_frames
        self._options = transformer_options
        self._patcher = weakref.ref(patcher)  # on which this may hang
        self._model = patcher.model
        self._devices = patcher.load_device, patcher.offload_device
        self._unet = unet_shape(patcher)

    def __call__(self, input_shape, *args, **kwargs) -> float:
        """Return bytes for a latent (rows, 4, H, W), rows being conds times frames."""
        if len(input_shape) != 4:  # no latent of SVD
            return type(self._model).memory_required(self._model, input_shape, *args, **kwargs)
        rows = input_shape[0]
        slices = self.slices or self.choose(rows, input_shape[2:])
        return MARGIN * self.peak(rows, input_shape[2:], slices)

    def peak(self, rows: int, size, slices: int) -> int:
        """Return the peak of activations in bytes, size being (height, width) of the latent."""
        patcher = self._asked()  # as it is now: another pack may have changed it since
        itemsize = computing_dtype(patcher).itemsize
        call = CallShape(rows, *size, self.num_frames or rows, itemsize)
        options = self._options or patcher.model_options.get("transformer_options", {})
        whole = [place for place in places(self._unet) if is_patched_inside(options, place)]
        return peak_bytes(self._unet, call, self.config, slices, whole)

    def choose(self, rows: int, size) -> int:
        """Return the fewest slices with which a call of so many rows fits, or the most there are.

        Where two conds never fit together, the host calls the model for one at a time.
        """
        if self.config.slices != AUTOMATIC:
            return self.config.slices
        free = memory_for_activations(self._asked())
        for calls, host_margin in ((1, HOST_MARGIN), (CONDS, 1.0)):
            for slices in range(1, MAX_SLICES + 1):
                peak = self.peak(max(1, rows // calls), size, slices)
                if MARGIN * host_margin * peak <= free:
                    return slices
        return MAX_SLICES

    def _asked(self) -> ModelPatcher:
        """Return the patcher, or a plain one of its model where this alone is left of it."""
        return self._patcher() or ModelPatcher(self._model, *self._devices)


def plan_slicing(patcher, vcut: dict, latent_shape, model_options: dict):
    """Return (RunSlicing, MemoryEstimate) for a run over ``latent_shape``, or (None, None)."""
    config: SlicingConfig | None = vcut.get("slicing")
    if config is None or len(latent_shape) != 4:
        return None, None
    handler = model_options.get("context_handler")
    num_frames = min(latent_shape[0], getattr(handler, "context_length", latent_shape[0]))
    options = model_options["transformer_options"]
    estimate = MemoryEstimate(patcher, config, AUTOMATIC, num_frames, options)
    rows = CONDS * num_frames
    estimate.slices = estimate.choose(rows, latent_shape[2:])
    expected_bytes = estimate.peak(rows, latent_shape[2:], estimate.slices)
    return RunSlicing(config, estimate.slices, expected_bytes), estimate


@contextmanager
def told_to_host(base_model, estimate: MemoryEstimate | None) -> Iterator[None]:
    """Let the host plan with ``estimate`` until the end of the with."""
    if estimate is None:
        yield
        return
    own = vars(base_model).get("memory_required")
    base_model.memory_required = estimate
    try:
        yield
    finally:
        if own is None:
            del base_model.memory_required
        else:
            base_model.memory_required = own


def follow_slicing(patcher) -> None:
    """Let a clone of a sliced model answer for itself when another pack asks it what it needs."""
    options = patcher.model_options.get("transformer_options", {})
    config = options.get(KEY, {}).get("slicing")
    if config is not None:
        patcher.memory_required = MemoryEstimate(patcher, config)


def unet_shape(patcher) -> UNetShape:
    """Return the shapes of an SVD UNet's layers, without any clone's object patches."""

    def blocks(name: str) -> tuple[tuple[LayerShape, ...], ...]:
        path = f"{UNET}.{name}"
        count = len(own_object(patcher, path))
        return tuple(_block_shape(patcher, f"{path}.{index}") for index in range(count))

    return UNetShape(
        blocks("input_blocks"),
        _block_shape(patcher, f"{UNET}.middle_block"),
        blocks("output_blocks"),
        patcher.model.model_config.unet_config["context_dim"],
    )


def _block_shape(patcher, path: str) -> tuple[LayerShape, ...]:
    count = len(own_object(patcher, path))
    return tuple(_layer_shape(own_object(patcher, f"{path}.{index}")) for index in range(count))


def _layer_shape(layer) -> LayerShape:
    if isinstance(layer, SpatialVideoTransformer):
        return LayerShape("transformer", layer.in_channels, layer.in_channels)
    if isinstance(layer, ResBlock):
        return LayerShape("residual", layer.channels, layer.out_channels)
    if isinstance(layer, Downsample):
        return LayerShape("down", layer.channels, layer.out_channels)
    if isinstance(layer, Upsample):
        return LayerShape("up", layer.channels, layer.out_channels)
    return LayerShape("conv", layer.in_channels, layer.out_channels)
