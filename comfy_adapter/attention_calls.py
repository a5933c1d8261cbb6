"""Calls of transformer blocks and of their cross-attentions, as the techniques see them."""

from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, CrossAttention

from ..vcut_core.calls import AttentionCall, Axis, BlockCall
from ..vcut_core.transformer_block import forward_with_constant
from .call_state import CallState, call_state_of
from .forwards import has_forward, has_hooks
from .other_patches import is_patched_inside
from .pruned_layers import PrunedCrossAttention
from .torch_compile import uncompiled
from .unet_structure import attn2_of

ANSWERED = (CrossAttention, PrunedCrossAttention)  # classes of attn2 that a technique may answer


def is_answerable(layer: object) -> bool:
    """Return whether a cross-attention is the host's or ours, not another pack's."""
    return type(layer) in ANSWERED


def is_host_block(block: torch.nn.Module) -> bool:
    """Return whether a transformer block is the host's own."""
    return type(block) is BasicTransformerBlock


def forward_block(
    axis: Axis, stays_out: bool, block, x, context: Any = None, transformer_options={}
):
    """Return a transformer block's output, (B, S, C) for x (B, S, C).

    stays_out: of compiled code, which reads nothing of a run: it would be compiled for that alone.
    """
    if torch.compiler.is_compiling() and not stays_out:
        return type(block).forward(block, x, context, transformer_options)
    return _run_block(axis, block, x, context, transformer_options)


@uncompiled  # looks up and counts; compiled, it would compile anew at every call
def _run_block(axis: Axis, block, x, context: Any, options: dict):
    state = call_state_of(options)
    if state is None or state.unet is None:
        return type(block).forward(block, x, context, options)
    unet = state.unet
    is_patched = is_patched_inside(options, options.get("block"), options.get("block_index", 0))

    def compute(call: BlockCall):
        rows: Any
        rows, rows_context = call.inputs
        if call.is_attention_replaced:
            return forward_with_constant(block, rows, call.attention_output, options)
        unet.is_in_later_slice = call.start > 0
        try:
            return type(block).forward(block, rows, rows_context, options)
        finally:
            unet.is_in_later_slice = False

    layer = attn2_of(block)
    attention = None
    if layer is not None and has_forward(layer, forward_attention):
        attention = _attention_call(axis, layer, x, context, None, None, options, state)
    call = BlockCall(
        kind="block",
        inputs=(x, context),
        elements=x.numel(),
        compute_own=compute,
        attention=attention,
        is_patched=is_patched,
        can_skip_attention=not (
            is_patched
            or block.disable_self_attn
            or block.switch_temporal_ca_to_sa
            or layer is None
            or has_hooks(layer)
            or has_hooks(block.norm2)
            or torch.is_grad_enabled()
        ),
    )
    return unet.run_layer(call, axis)


def forward_attention(
    axis: Axis, compiled, layer, x, context=None, value=None, mask=None, transformer_options={}
):
    """Return (B, S, C) for x (B, S, C), context and value (B, L, D).

    compiled: a function of an AttentionCall that stands for the layer in compiled code; None: the
        layer itself.
    """
    given = (layer, x, context, value, mask, transformer_options)
    state = call_state_of(transformer_options)
    if state is None:
        return _own_attention(*given)
    if torch.compiler.is_compiling():
        if compiled is None:
            return _own_attention(*given)
        return compiled(_attention_call(axis, *given, state))
    return _run_attention(axis, *given, state)


def _own_attention(layer, x, context, value, mask, options: dict):
    return type(layer).forward(layer, x, context, value, mask, transformer_options=options)


@uncompiled
def _run_attention(axis: Axis, layer, x, context, value, mask, options: dict, state: CallState):
    given = (layer, x, context, value, mask, options)
    if state.unet is None:
        return _own_attention(*given)
    return state.unet.run_layer(_attention_call(axis, *given, state), axis)


def _attention_call(
    axis: Axis, layer, x, context: Any, value, mask, options: dict, state: CallState
) -> AttentionCall:
    uuids = tuple(options.get("uuids") or ())
    patches = options.get("patches", {})
    is_fixed = state.is_embedding_fixed and uuids and "attn2_patch" not in patches

    def rows_per_group() -> int:
        if axis == "spatial":  # the host repeats each cond's context over the frames
            return x.shape[0] // len(uuids)
        height, width = options["activations_shape"][-2:]  # and here over h*w pixels
        return height * width

    def embedding() -> Any:
        return context[:: rows_per_group()] if context.shape[-1] else state.short_context

    def compute(call: AttentionCall):
        own = type(layer).forward
        given = (call.x, call.context, call.value, call.mask)
        return own(layer, *given, transformer_options=options)

    return AttentionCall(
        axis=axis,
        layer=layer,
        x=x,
        context=context,
        value=value,
        mask=mask,
        num_groups=lambda: x.shape[0] // rows_per_group(),
        embedding=embedding,
        embedding_id=(uuids, state.embedding_scale) if is_fixed else None,
        compute_own=compute,
        is_first_slice=not state.unet.is_in_later_slice,
        may_write_output="attn2_output_patch" in patches,
    )
