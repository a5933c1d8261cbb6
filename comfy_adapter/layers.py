"""The cross-attention layers of an SVD UNet: where they are, and what stands in for one."""

import copy
from collections.abc import Iterator, Mapping

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer

from ..vcut_core.cross_attention import AffineCrossAttention, is_single_token, spread, zeros
from .call_info import KEY, CallInfo
from .host_model import UNET


def unet_modules(diffusion_model, displaced: Mapping = {}) -> Iterator[tuple[str, object]]:
    """Yield (path from the model, module) of a UNet.

    displaced: path -> what object patches have replaced there (ModelPatcher.object_patches_backup),
        read in place of the patch.
    """
    pending = [(UNET, diffusion_model)]
    while pending:
        path, module = pending.pop()
        module = displaced.get(path, module)
        if isinstance(module, torch.nn.Module):
            yield path, module
            children = reversed(module._modules.items())
            pending += [(f"{path}.{name}", child) for name, child in children]


def cross_attention_blocks(
    diffusion_model, displaced: Mapping = {}
) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Yield (path from the model, "spatial" or "temporal", block) for every block with an attn2.

    A block of another pack that has no such attribute is yielded too. displaced: see unet_modules.
    """
    for path, module in unet_modules(diffusion_model, displaced):
        if not isinstance(module, SpatialVideoTransformer):
            continue
        for kind, stack in (("spatial", "transformer_blocks"), ("temporal", "time_stack")):
            for index, live in enumerate(getattr(module, stack)):
                block_path = f"{path}.{stack}.{index}"
                block = displaced.get(block_path, live)
                live_attention = getattr(block, "attn2", block)
                if displaced.get(f"{block_path}.attn2", live_attention) is not None:
                    yield block_path, kind, block


def find_cross_attentions(diffusion_model, displaced: Mapping = {}) -> list[tuple[str, str]]:
    """Return (path from the model, "spatial" or "temporal") of every attn2 of an SVD UNet.

    displaced: see unet_modules.
    """
    blocks = cross_attention_blocks(diffusion_model, displaced)
    return [(f"{path}.attn2", kind) for path, kind, _ in blocks]


class HostCrossAttention(AffineCrossAttention):
    """AffineCrossAttention with ComfyUI's calling convention; keeps nothing between calls."""

    def __init__(self, original: torch.nn.Module, kind: str, is_removed: bool) -> None:
        super().__init__(original, is_removed)
        self.kind = kind

    def __deepcopy__(self, memo):
        """Return a copy of the layer itself: nothing on a copied model would take this one out."""
        return copy.deepcopy(self.original, memo)

    @torch.compiler.disable  # looks up and counts; compiled, it would compile anew at every call
    def forward(self, x, context=None, value=None, mask=None, transformer_options={}):
        """Return (B, S, C) for x (B, S, C), context and value (B, 1, D)."""
        call = transformer_options.get(KEY)
        run = call.run if isinstance(call, CallInfo) else None
        is_counted = run is not None and not run.is_in_later_slice
        if is_counted:
            run.attn2_calls += 1
        if not (self.is_removed or is_single_token(context, value, mask)):
            if is_counted:
                run.summary.untouched["cross-attention over several tokens"] += 1
            return self.attend(x, context, value, mask, transformer_options)
        constant = self.constant(x, context, value, call, transformer_options)
        output = zeros(x) if constant is None else spread(constant, x)
        patches = transformer_options.get("patches", {})
        if "attn2_output_patch" in patches:  # another pack's; it may write in place
            return output.clone(memory_format=torch.contiguous_format)
        return output

    def attend(self, x, context, value, mask, transformer_options):
        """Return what the layer that this one stands in for makes of several tokens."""
        return self.original(
            x, context=context, value=value, mask=mask, transformer_options=transformer_options
        )

    def constant(self, x, context, value, call, transformer_options):
        """Return what this layer adds, (G, 1, C) for G groups of rows of x; None when removed.

        x: (B, S, C), read for its rows, device and dtype only. call: CallInfo or None.
        """
        is_run = isinstance(call, CallInfo)
        if self.is_removed:
            if is_run:
                call.run.summary.removed += 1
            return None
        if not is_run:  # outside a run of ours there is nowhere to keep it
            return self.affine(context if value is None else value)
        uuids = transformer_options.get("uuids")
        is_patched = "attn2_patch" in transformer_options.get("patches", {})
        if is_patched or not call.may_cache or uuids is None:
            # Context and value may differ in the next call.
            return call.run.cache.get(
                None, lambda: self.affine(context if value is None else value)
            )
        if self.kind == "temporal":  # the host repeated each cond's context over h*w pixels
            height, width = transformer_options["activations_shape"][-2:]
            group = height * width
        else:  # and here over the frames
            group = x.shape[0] // len(uuids)
        key = (self, tuple(uuids), call.embedding_scale, x.shape[0] // group, x.device, x.dtype)
        rows = context[::group] if context.shape[-1] else call.time_context
        return call.run.cache.get(key, lambda: self.affine(rows))
