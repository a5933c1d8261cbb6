"""Layers of a UNet that was loaded without the weights that cannot change the picture.

One token makes queries, keys and their norm useless: to_q, to_k and norm2 of every cross-attention
go, and with ``remove`` the temporal layers' to_v and to_out too.
"""

from typing import Any

import torch
from torch import nn

from ..vcut_core.calls import Axis
from ..vcut_core.cross_attention import affine_map, expand_rows, is_single_token, zeros
from .unet_structure import transformer_blocks

LOADER = "VCUT Load SVD Checkpoint"
STOCK_LOADER = "the Image Only checkpoint loader"


class PrunedLinear(nn.Module):
    """Stands where a linear layer was: the name without the weight.

    The buffer of zero bytes keeps the weight's key, so that the host finds a place for a LoRA's
    part and hands it to ``add_patches``, which drops it.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, in_features))

    def forward(self, *_args, **_kwargs):
        """Raise RuntimeError: only another pack's attention patch calls this."""
        raise RuntimeError(
            f"{LOADER}: expected no attention patch of another pack (IP-Adapter, ...) on this "
            f"model, found one. Use {STOCK_LOADER} and VCUT Patch SVD Model with it."
        )


class PrunedCrossAttention(nn.Module):
    """A cross-attention that is an affine map, or nothing, by the weights that it has."""

    def __init__(self, layer, axis: Axis, is_removed: bool) -> None:
        super().__init__()
        self.axis, self.is_removed = axis, is_removed
        for name in ("heads", "dim_head", "attn_precision"):  # read by other packs
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.to_q = PrunedLinear(layer.to_q.weight.shape[1])
        self.to_k = PrunedLinear(layer.to_k.weight.shape[1])
        self.to_v, self.to_out = layer.to_v, layer.to_out
        if is_removed:
            self.to_v = PrunedLinear(layer.to_v.weight.shape[1])
            self.to_out = nn.Sequential(PrunedLinear(layer.to_out[0].weight.shape[1]))
        self.train(layer.training)

    def forward(self, x, context: Any = None, value=None, mask=None, transformer_options={}):
        """Return (B, S, C) for x (B, S, C) and one token of context or value, (B, 1, D).

        Raises RuntimeError for more: without queries and keys there is no attention over tokens.
        """
        if self.is_removed:
            return zeros(x)
        if not is_single_token(context, value, mask):
            tokens = "none" if context is None else context.shape[1]
            raise RuntimeError(
                f"{LOADER}: expected 1 image embedding token, got {tokens}. Connect a single "
                f"picture to SVD_img2vid_Conditioning, or use {STOCK_LOADER}."
            )
        return expand_rows(affine_map(self, context if value is None else value), x)


def prune(diffusion_model: nn.Module, temporal: str) -> None:
    """Take out of an SVD UNet, in place, what ``temporal`` (cached or remove) does not need."""
    for _path, axis, block in transformer_blocks(diffusion_model):
        is_removed = axis == "temporal" and temporal == "remove"
        block.attn2 = PrunedCrossAttention(block.attn2, axis, is_removed)
        block.norm2 = nn.Identity()  # it normalised the query
