"""One UNet call of full-size SVD on the meta device: every shape and every storage, no memory.

The call goes through the pack's own run, so it is patched and sliced as a sampler's is. Attention
counts as fused (flash attention and its like): it makes an output and no matrix of scores.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from full_size_svd import UNET
from live_memory import LiveMemory
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

CONDS = {1: [0], 2: [1, 0]}


def meta_svd(dtype: torch.dtype = torch.float16):
    """Return a ModelPatcher of SVD at full size without its weights."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SVD_img2vid(UNET)
    config.set_inference_dtype(dtype, None)
    model = comfy.model_base.SVD_img2vid(config, device="meta")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


class LocatedMemory(LiveMemory):
    """LiveMemory that knows in which module each storage was made.

    peak_place: the module that ran at the peak. at_peak: (bytes, module that made them), largest
    first.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.peak_place = ""
        self.at_peak: list[tuple[int, str]] = []
        self._names = {id(module): name for name, module in unet.named_modules()}
        self._weights = {
            tensor.untyped_storage()._cdata for tensor in (*unet.parameters(), *unet.buffers())
        }
        self._path = [""]
        self._made: dict[int, tuple[int, str]] = {}

    @contextmanager
    def watching(self):
        """Count until the end of the with."""
        # For all modules: a hook on one would tell the slicer that somebody watches it.
        hooks = [
            torch_module.register_module_forward_pre_hook(self._enter_module),
            torch_module.register_module_forward_hook(self._leave_module),
        ]
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Without inference mode, operators made of others arrive here taken apart as kernels run
        # them; LiveMemory's own way would take upsampling apart into what no kernel makes.
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return output

    def _enter_module(self, module, _inputs) -> None:
        self._path.append(self._names.get(id(module), self._path[-1]))

    def _leave_module(self, _module, _inputs, _output) -> None:
        self._path.pop()

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._weights:
            return
        if key not in self._alive:
            self._made[key] = (storage.nbytes(), self._path[-1])
        before = self.peak_bytes
        super()._add(storage)
        if self.peak_bytes > before:
            self.peak_place = self._path[-1]
            alive = [self._made[key] for key in self._alive]
            self.at_peak = sorted(alive, reverse=True)


def measure_call(
    patcher, *, frames: int = 25, height: int = 576, width: int = 1024, conds: int = 2
) -> LocatedMemory:
    """Return what one UNet call held, sizes in pixels, for a patcher whose model is on meta."""
    from vcut.comfy_adapter.call_state import CALL_KEY, CallState
    from vcut.comfy_adapter.sampling_run import SamplingRun, run_facts
    from vcut.comfy_adapter.settings import settings_of

    rows, size = frames * conds, (height // 8, width // 8)
    base = patcher.model
    options = patcher.model_options
    settings = settings_of(options)
    run = None
    if settings:
        run = SamplingRun(settings, run_facts(patcher, (frames, 4, *size), options))
        options = run.options_with_wrappers(options)
    transformer_options = {
        **options["transformer_options"],
        "cond_or_uncond": CONDS[conds],
        "uuids": [str(index) for index in range(conds)],
        "optimized_attention_override": _fused_attention,
    }
    if run is not None:
        transformer_options[CALL_KEY] = CallState(1.0, is_embedding_fixed=True)

    def call(_guider):
        unet = base.diffusion_model
        memory = LocatedMemory(unet)
        with memory.watching(), torch.no_grad():
            _call_unet(unet, rows, size, frames, base.get_dtype(), transformer_options)
        return memory

    patcher.patch_model(load_weights=False)
    try:
        if run is None:
            return call(None)
        return run.sampler_sample(call, SimpleNamespace(inner_model=base))
    finally:
        patcher.unpatch_model(unpatch_weights=False)


def _call_unet(unet, rows: int, size, frames: int, dtype, transformer_options: dict) -> None:
    def empty(*shape):
        return torch.empty(rows, *shape, dtype=dtype, device="meta")

    unet(
        empty(UNET["in_channels"], *size),
        torch.empty(rows, device="meta"),
        context=empty(1, UNET["context_dim"]),
        y=empty(UNET["adm_in_channels"]),
        num_video_frames=frames,
        transformer_options=transformer_options,
    )


def _fused_attention(_function, query, _key, _value, _heads, *_args, **_kwargs):
    return query.new_empty(query.shape)
