"""One UNet while a run lasts: its layers' forwards, and its calls as the techniques see them."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from comfy.ldm.modules.attention import FeedForward, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample, VideoResBlock
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..vcut_core.calls import Axis, Kind, UNetCall
from ..vcut_core.cross_attention import is_single_token
from ..vcut_core.technique import Technique, chain
from .attention_calls import forward_attention, forward_block, is_answerable, is_host_block
from .call_state import CALL_KEY, call_state_of
from .deferred_concat import DeferredConcat, is_host_loop
from .forwards import Forwards, has_forward, has_hooks
from .layer_calls import (
    forward_blend,
    forward_feed_forward,
    forward_residual,
    forward_upsample,
    has_expected_layout,
)
from .other_patches import is_patched_inside
from .torch_compile import modules_in_compiled_parts, uncompiled
from .unet_structure import attn2_of, transformer_blocks


class UNetInRun:
    """A UNet with the techniques that act on it.

    is_copy: a copy of the run's own UNet, called in another thread or for conds with hooks. Only
        cross-attention is answered there: nothing else of a run may be shared by threads.
    """

    def __init__(self, unet: Any, techniques: Sequence[Technique], is_copy: bool):
        self.unet = unet
        self.deferred_concat = DeferredConcat()
        self.is_in_later_slice = False
        self.techniques = [t for t in techniques if t.acts_on_copies or not is_copy]
        self._is_copy = is_copy
        self._blocks = list(transformer_blocks(unet))
        self._forwards = Forwards()
        self._chains: dict[tuple[Kind, Axis | None], Callable] = {}

    def __enter__(self) -> "UNetInRun":
        with ExitStack() as stack:
            stack.enter_context(self._forwards)
            self._install()
            stack.pop_all()  # installed in full: leave that to __exit__
        return self

    def __exit__(self, *exception) -> None:
        self._forwards.__exit__(*exception)
        self.deferred_concat.clear()

    def run_layer(self, call: Any, axis: Axis | None = None) -> Tensor:
        """Return the layer's output, through the techniques that want such layers."""
        key = (call.kind, axis)
        if key not in self._chains:
            wanting = self._wanting(call.kind, axis)
            self._chains[key] = chain(wanting, "around_layer", _compute_own)
        return self._chains[key](call)

    def _wanting(self, kind: Kind, axis: Axis | None) -> list[Technique]:
        return [technique for technique in self.techniques if technique.wants_layer(kind, axis)]

    def _compiled_attention(self, axis: Axis) -> Callable | None:
        """Return what stands for a cross-attention in compiled code, None: the layer itself."""
        found = (technique.compiled_attention(axis) for technique in self.techniques)
        return next((function for function in found if function is not None), None)

    @uncompiled  # counts and looks up; compiled, it would compile anew at every call
    def prepare_call(
        self, executor, args: tuple, kwargs: dict, options: dict, is_compiling: bool
    ) -> tuple[tuple, dict]:
        """Return (args, kwargs) with which to call the UNet, once the techniques have seen them.

        executor: of the DIFFUSION_MODEL wrapper. options: the transformer_options among args or
        kwargs.
        """
        x = args[0] if args else kwargs["x"]
        context = kwargs.get("context", args[2] if len(args) > 2 else None)
        call = UNetCall(
            elements=self._elements(x),
            cross_attentions=self._cross_attentions,
            compiled_cross_attentions=self._compiled_cross_attentions,
            can_shorten_time_context=lambda: (
                not is_compiling and self._can_shorten_time_context(context, kwargs, options)
            ),
            can_defer_concat=lambda: (
                is_host_loop(self.unet, executor, options) and self._output_blocks_take_parts()
            ),
        )
        call = self._announced(call)
        return self._host_call(call, args, kwargs, options, context)

    def prepare_compiled_call(self, x: Tensor, options: dict) -> dict:
        """Return the transformer_options with which to call the UNet inside of torch.compile.

        x: (rows, channels, H, W). Compiled code must not meet the wrapper that counts and prepares.
        """
        self._announced(
            UNetCall(
                elements=self._elements(x),
                cross_attentions=self._cross_attentions,
                compiled_cross_attentions=self._cross_attentions,
                can_shorten_time_context=lambda: False,
                can_defer_concat=lambda: False,
            )
        )
        self._forwards.keep_for_compiled_code()
        state = call_state_of(options)
        changed = {} if state is None else {CALL_KEY: replace(state, unet=self)}
        wrappers = {**options["wrappers"], WrappersMP.DIFFUSION_MODEL: {}}
        return {**options, **changed, "wrappers": wrappers}

    def _announced(self, call: UNetCall) -> UNetCall:
        for technique in self.techniques:
            call = technique.before_unet(call)
        return call

    def _elements(self, x: Tensor) -> int:
        return x.shape[0] * x.shape[2:].numel() * self.unet.model_channels

    @functools.cached_property
    def _cross_attentions(self) -> Counter[Axis]:
        return Counter(axis for _path, axis, block in self._blocks if attn2_of(block) is not None)

    @functools.cached_property
    def _compiled_cross_attentions(self) -> Counter[Axis]:
        compiled = set(modules_in_compiled_parts(self.unet))
        if compiled:
            self._forwards.keep_for_compiled_code()
        return Counter(axis for _path, axis, block in self._blocks if attn2_of(block) in compiled)

    def _host_call(
        self, call: UNetCall, args: tuple, kwargs: dict, options: dict, context
    ) -> tuple[tuple, dict]:
        """Return the host's (args, kwargs) for ``call``."""
        self.deferred_concat.clear()
        changed, time_context = options, {}
        state = call_state_of(options)
        if state is not None:
            state = replace(state, unet=self)
            if call.shortens_time_context:
                # The host repeats the embedding for every pixel in each of 16 blocks; a cached
                # output needs it once for each cond.
                once = context[:: kwargs["num_video_frames"]]
                state = replace(state, short_context=once)
                time_context = {"time_context": context[..., :0]}
            changed = {**changed, CALL_KEY: state}
        if call.defers_concat:
            changed = self.deferred_concat.options_that_defer(changed)
        args, kwargs = with_options(args, kwargs, options, changed)
        return args, {**kwargs, **time_context}

    def _install(self) -> None:
        for kind, axis, module, function, arguments in self._replacements():
            if self._wanting(kind, axis):
                self._forwards.install(module, function, *arguments)

    def _replacements(self) -> Iterator[tuple[Kind, Axis | None, Any, Any, tuple]]:
        """Yield (kind, axis, module, the forward for it, its first arguments)."""
        for _path, axis, block in self._blocks:
            layer = attn2_of(block)
            if layer is not None and is_answerable(layer):
                compiled = self._compiled_attention(axis)
                yield "cross-attention", axis, layer, forward_attention, (axis, compiled)
        if self._is_copy:
            return
        for _path, axis, block in self._blocks:
            if is_host_block(block):
                stays_out = any(t.runs_uncompiled for t in self._wanting("block", axis))
                yield "block", axis, block, forward_block, (axis, stays_out)
                for part in (block.ff_in, block.ff):
                    if type(part) is FeedForward:
                        yield "feed-forward", None, part, forward_feed_forward, (self,)
        for module in self.unet.modules():
            if type(module) is VideoResBlock and has_expected_layout(module):
                yield "residual", None, module, forward_residual, (self,)
            elif type(module) is Upsample:
                yield "upsample", None, module, forward_upsample, (self,)
            elif type(module) is SpatialVideoTransformer:
                yield "blend", None, module.time_mixer, forward_blend, (self,)

    def _can_shorten_time_context(self, context, kwargs: dict, options: dict) -> bool:
        """Return whether only cached cross-attentions read the embedding of the temporal blocks."""
        state = call_state_of(options)
        temporal = [block for _path, axis, block in self._blocks if axis == "temporal"]
        return bool(
            temporal
            and not self._is_copy
            and state is not None
            and state.is_embedding_fixed
            and options.get("uuids")
            and kwargs.get("time_context") is None
            and kwargs.get("num_video_frames")
            and is_single_token(context, None, None)
            and not is_patched_inside(options)
            and all(_has_answered_attention(block) for block in temporal)
        )

    def _output_blocks_take_parts(self) -> bool:
        first_layers = [block[0] for block in self.unet.output_blocks]
        return all(self._forwards.is_installed(m) and not has_hooks(m) for m in first_layers)


def with_options(args: tuple, kwargs: dict, options: dict, changed: dict) -> tuple[tuple, dict]:
    """Return (args, kwargs) with ``changed`` where ``options`` stands in them."""
    return (
        tuple(changed if arg is options else arg for arg in args),
        {name: changed if arg is options else arg for name, arg in kwargs.items()},
    )


def _has_answered_attention(block: torch.nn.Module) -> bool:
    layer = attn2_of(block)
    return layer is not None and has_forward(layer, forward_attention)


def _compute_own(call: Any) -> Tensor:
    return call.compute_own(call)
