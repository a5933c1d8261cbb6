"""What the host is told that a sliced model needs.

ComfyUI plans with ``memory_required`` of the model that all clones share: it decides what to keep
on the GPU before it loads a clone, and whether cond and uncond go together at every step. So the
estimate is on the model while a run of a sliced clone lasts, and on the clone for whoever asks it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from comfy.model_patcher import ModelPatcher

from ..vcut_core.activation_memory import Place, UNetShape, places
from ..vcut_core.feature_slicing import SlicingConfig
from ..vcut_core.slicing_memory import AUTOMATIC, SlicedMemory
from .host_model import computing_dtype, memory_for_activations
from .other_patches import is_patched_inside
from .unet_structure import unet_shape


class HostMemory:
    """MemoryFacts of a patcher's model, read from the host at each question.

    transformer_options: those of the run in progress; None reads the patcher's own.
    """

    def __init__(self, patcher, transformer_options: dict | None = None) -> None:
        self._unet: UNetShape | None = None
        self._options = transformer_options
        self._patcher = weakref.ref(patcher)  # weak: the patcher may hold this
        self._model = patcher.model
        self._devices = patcher.load_device, patcher.offload_device

    @property
    def unet(self) -> UNetShape:
        """The shapes of the UNet's layers."""
        if self._unet is None:  # read only when something is sliced
            self._unet = unet_shape(self._current())
        return self._unet

    def itemsize(self) -> int:
        """Return the bytes of one number of an activation."""
        return computing_dtype(self._current()).itemsize

    def free_bytes(self) -> int:
        """Return the bytes that activations may take beside all of the model's weights."""
        return memory_for_activations(self._current())

    def patched_places(self) -> list[Place]:
        """Return where other packs work inside of transformer blocks."""
        options = self._options
        if options is None:
            options = self._current().model_options.get("transformer_options", {})
        return [place for place in places(self.unet) if is_patched_inside(options, place)]

    def _current(self) -> ModelPatcher:
        """Return the patcher, or a plain one of its model where only this is left of it."""
        return self._patcher() or ModelPatcher(self._model, *self._devices)


class MemoryEstimate:
    """Called in place of a model's ``memory_required``.

    required: (rows, size) -> bytes of a UNet call, or None for what ``own`` says.
    """

    def __init__(self, own: Callable, required: Callable[[int, tuple], float | None]) -> None:
        self._own, self._required = own, required

    def __call__(self, input_shape, *args, **kwargs) -> float:
        """Return bytes for a latent (rows, 4, H, W), rows being conds times frames."""
        is_latent = len(input_shape) == 4  # else no latent of SVD
        needed = self._required(input_shape[0], tuple(input_shape[2:])) if is_latent else None
        return self._own(input_shape, *args, **kwargs) if needed is None else needed


@contextmanager
def memory_estimate_installed(base_model, required: Callable | None) -> Iterator[None]:
    """Let the host plan with ``required`` while the with block lasts; None changes nothing."""
    if required is None:
        yield
        return
    own = vars(base_model).get("memory_required")
    base_model.memory_required = MemoryEstimate(base_model.memory_required, required)
    try:
        yield
    finally:
        if own is None:
            del base_model.memory_required
        else:
            base_model.memory_required = own


def estimate_for_clone(patcher, config: SlicingConfig) -> MemoryEstimate:
    """Return the estimate of a sliced clone that is not sampling."""
    memory = SlicedMemory(config.slices, config.scope, HostMemory(patcher))
    base_model = patcher.model
    return MemoryEstimate(
        lambda *args, **kwargs: base_model.memory_required(*args, **kwargs),
        lambda rows, size: memory.required(rows, size, AUTOMATIC),
    )
