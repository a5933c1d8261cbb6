"""A UNet without the weights that VCUT never needs, and a patcher that knows they are gone.

One token makes queries, keys and their norm useless: to_q, to_k and norm2 of every cross-attention
go, and with ``remove`` the temporal layers' to_v and to_out too.
"""

import copy
import functools
import logging

import torch
from torch import nn

from .layers import HostCrossAttention, cross_attention_blocks

logger = logging.getLogger(__name__)

LOADER = "VCUT Load SVD Checkpoint"
STOCK_LOADER = "the Image Only checkpoint loader"
PRUNED_MODES = ("cached", "remove")


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


class PrunedCrossAttention(HostCrossAttention):
    """A cross-attention that is an affine map, or nothing, by the weights that it has."""

    def __init__(self, layer: nn.Module, kind: str, is_removed: bool) -> None:
        super().__init__(layer, kind, is_removed)
        self._original = ()  # the layer would keep its weights alive
        self.to_q = PrunedLinear(layer.to_q.weight.shape[1])
        self.to_k = PrunedLinear(layer.to_k.weight.shape[1])
        if is_removed:
            self.to_v = PrunedLinear(layer.to_v.weight.shape[1])
            self.to_out = nn.Sequential(PrunedLinear(layer.to_out[0].weight.shape[1]))

    def __deepcopy__(self, memo):
        """Return a pruned copy: this layer is the model's own."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    @property
    def original(self) -> nn.Module:
        """This layer: nothing stands behind it."""
        return self

    def require_weights_for(self, mode: str) -> None:
        """Raise ValueError when ``mode`` (cached, remove, keep) needs weights that are gone."""
        if mode == "keep":
            raise ValueError(
                f"expected a model with all its weights for {self.kind} keep, got one from "
                f"{LOADER}. Use {STOCK_LOADER} for keep"
            )
        if mode == "cached" and self.is_removed:
            raise ValueError(
                f"expected a model with temporal cross-attention for temporal cached, got one "
                f"that {LOADER} has loaded without. Set temporal to cached there"
            )

    def attend(self, x, context, *_args):
        """Raise RuntimeError: without queries and keys there is no attention over tokens."""
        tokens = "none" if context is None else context.shape[1]
        raise RuntimeError(
            f"{LOADER}: expected 1 image embedding token, got {tokens}. Connect a single picture "
            f"to SVD_img2vid_Conditioning, or use {STOCK_LOADER}."
        )


def prune(diffusion_model: nn.Module, temporal: str) -> None:
    """Take out of an SVD UNet, in place, what ``temporal`` (cached or remove) does not need."""
    for _path, kind, block in cross_attention_blocks(diffusion_model):
        is_removed = kind == "temporal" and temporal == "remove"
        block.attn2 = PrunedCrossAttention(block.attn2, kind, is_removed)
        block.norm2 = nn.Identity()  # it normalised the query


def adopt_pruned(patcher, temporal: str) -> None:
    """Prune the model of a patcher that is just loaded and make the patcher account for it.

    Raises ValueError for a ``temporal`` that needs the weights.
    """
    if temporal not in PRUNED_MODES:
        raise ValueError(
            f"{LOADER}: expected temporal to be one of {', '.join(PRUNED_MODES)}, got {temporal}. "
            f"Use {STOCK_LOADER} for it."
        )
    size_before = patcher.model_size()
    prune(patcher.model.diffusion_model, temporal)
    patcher.size = 0  # makes the host measure anew
    freed = size_before - patcher.model_size()
    patcher.model.model_loaded_weight_memory = max(0, patcher.loaded_size() - freed)
    patcher.model.state_dict_for_saving = _refuse_saving  # this model object is nobody else's yet
    patcher.__class__ = _pruned_class(type(patcher), temporal)


def _refuse_saving(*_args, **_kwargs):
    raise RuntimeError(
        f"{LOADER}: expected a whole model to save, got one without the weights that VCUT does not "
        f"need. Use {STOCK_LOADER} for saving."
    )


def follow_pruned(old, new) -> None:
    """Prune the model of ``new``, a clone of ``old`` onto another model, as that of ``old`` is."""
    temporal = getattr(old, "pruned_temporal", None)
    if not temporal:
        return
    blocks = cross_attention_blocks(new.model.diffusion_model)
    if not all(isinstance(b.attn2, PrunedCrossAttention) for *_, b in blocks):
        if hasattr(new, "pruned_temporal"):
            new.__class__ = type(new).__base__  # adopt_pruned adds ours again
        adopt_pruned(new, temporal)
    elif not hasattr(new, "pruned_temporal"):  # a newer host's delegate, made a second time
        new.__class__ = _pruned_class(type(new), temporal)


@functools.cache
def _pruned_class(base: type, temporal: str) -> type:
    """Return ``base``, a ModelPatcher class, with patches for pruned weights left out."""

    class PrunedModelPatcher(base):
        pruned_temporal = temporal

        def add_patches(self, patches, *args, **kwargs):
            kept, dropped = self._without_pruned(patches)
            if dropped:
                logger.info(
                    "VCUT: %d weight patches left out: they are for weights that cannot change "
                    "the picture",
                    len(dropped),
                )
            # The host warns of every key that does not come back.
            return [*super().add_patches(kept, *args, **kwargs), *dropped]

        def add_hook_patches(self, hook, patches, *args, **kwargs):
            kept, _ = self._without_pruned(patches)
            return super().add_hook_patches(hook, kept, *args, **kwargs)

        def _without_pruned(self, patches: dict) -> tuple[dict, list]:
            dropped = [key for key in patches if self._is_pruned(key)]
            return {k: patch for k, patch in patches.items() if k not in dropped}, dropped

        def _is_pruned(self, key: str | tuple) -> bool:
            name = key if isinstance(key, str) else key[0]
            try:
                return isinstance(self.model.get_submodule(name.rpartition(".")[0]), PrunedLinear)
            except AttributeError:
                return False

    return PrunedModelPatcher
