"""Transformer blocks that skip what only a cross-attention's query needs, while a run lasts.

The host's block normalises the query of each cross-attention and adds the result in a pass of its
own, even when the layer is an affine map that looks at neither. Here the block's ``forward`` is
another for the length of one run; where anything of another pack wants to see the block's inside,
it is the host's again.
"""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock

from ..vcut_core.cross_attention import is_single_token
from ..vcut_core.transformer_block import constant_of_rows, forward_with_constant
from .call_info import KEY, CallInfo
from .layers import HostCrossAttention, cross_attention_blocks
from .other_patches import is_patched_inside

UNSLICED = "slicing of a block that another pack has patched"  # as the run's line says it


@contextmanager
def constant_blocks(diffusion_model) -> Iterator[list[torch.nn.Module]]:
    """Let the transformer blocks of a loaded UNet use their constants until the end of the with.

    Yields its temporal blocks.
    """
    installed, temporal = [], []
    try:
        for _path, kind, block in cross_attention_blocks(diffusion_model):
            temporal += [block] if kind == "temporal" else []
            if type(block) is BasicTransformerBlock and "forward" not in vars(block):
                block.forward = functools.partial(_forward, block)
                installed.append((block, block.forward))
        yield temporal
    finally:
        for block, forward in installed:
            if vars(block).get("forward") is forward:
                del block.forward


def with_short_time_context(args: tuple, kwargs: dict, transformer_options: dict) -> dict:
    """Return a UNet call's kwargs, its time context of no width where only our layers read it.

    The host repeats the embedding for every pixel in each of 16 blocks; a constant needs it once
    for each cond, which CallInfo then carries.
    """
    call = transformer_options.get(KEY)
    context = kwargs.get("context", args[2] if len(args) > 2 else None)
    if not (
        isinstance(call, CallInfo)
        and call.may_cache
        and transformer_options.get("uuids")
        and kwargs.get("time_context") is None
        and kwargs.get("num_video_frames")
        and is_single_token(context, None, None)
        and not is_patched_inside(transformer_options)
        and all(map(_has_our_attention, call.run.temporal_blocks))
        and call.run.temporal_blocks
        and not torch.compiler.is_compiling()
    ):
        return kwargs
    once = context[:: kwargs["num_video_frames"]]
    transformer_options[KEY] = dataclasses.replace(call, time_context=once)
    return {**kwargs, "time_context": context[..., :0]}


def _has_our_attention(block) -> bool:
    return isinstance(getattr(block, "attn2", None), HostCrossAttention)


def _forward(block, x, context=None, transformer_options={}):
    """Return the block's output, (B, S, C) for x (B, S, C)."""
    slicing = _slicing(transformer_options)
    if slicing is not None and torch.compiler.is_compiling():
        return _forward_uncompiled(block, x, context, transformer_options)
    if not _has_constant(block, context, transformer_options):
        own = functools.partial(type(block).forward, block, transformer_options=transformer_options)
        if slicing is not None and not _has_independent_rows(block, context):
            transformer_options[KEY].run.summary.untouched[UNSLICED] += 1
            slicing = None
        if slicing is None:
            return own(x, context=context)
        return slicing.over_rows(
            x, lambda start, stop: own(x[start:stop], context=_rows(context, start, stop))
        )
    call = transformer_options[KEY]
    call.run.attn2_calls += 1
    constant = block.attn2.constant(x, context, None, call, transformer_options)
    if slicing is None:
        return forward_with_constant(block, x, constant, transformer_options)
    return slicing.over_rows(
        x,
        lambda start, stop: forward_with_constant(
            block,
            x[start:stop],
            constant_of_rows(constant, start, stop, x.shape[0]),
            transformer_options,
        ),
    )


_forward_uncompiled = torch.compiler.disable(_forward)


def _slicing(transformer_options: dict):
    """Return how the run slices this block, or None: not, or another pack works inside of it."""
    call = transformer_options.get(KEY)
    slicing = call.run.slicing if isinstance(call, CallInfo) else None
    if slicing is None or not slicing.has_blocks:
        return None
    if _is_this_block_patched(transformer_options):
        call.run.summary.untouched[UNSLICED] += 1
        return None
    return slicing


def _has_independent_rows(block, context) -> bool:
    """Whether the block without a constant can be told nothing wrong by a slice of its rows."""
    is_ours = isinstance(block.attn2, HostCrossAttention)  # finds a row's cond by its place
    return not is_ours or not (block.attn2.is_removed or is_single_token(context, None, None))


def _rows(context, start: int, stop: int):
    return None if context is None else context[start:stop]


def _has_constant(block, context, transformer_options: dict) -> bool:
    """Whether the block's cross-attention is ours to answer and nobody else looks at its inside."""
    layer = block.attn2
    return (
        isinstance(layer, HostCrossAttention)
        and isinstance(transformer_options.get(KEY), CallInfo)
        and (layer.is_removed or is_single_token(context, None, None))
        and not (block.disable_self_attn or block.switch_temporal_ca_to_sa)
        and not _is_this_block_patched(transformer_options)
        and not any(_has_hooks(module) for module in (layer, block.norm2))
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # compiled code would outlive this run
    )


def _is_this_block_patched(transformer_options: dict) -> bool:
    index = transformer_options.get("block_index", 0)
    return is_patched_inside(transformer_options, transformer_options.get("block"), index)


def _has_hooks(module: torch.nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
