"""Cross-attention over ONE embedding token: an affine map of the token, evaluated once a run.

Softmax over a single key is always 1, so attention returns the value vector whatever the query:
the layer equals ``L(y) = to_out(to_v(y))``. Source: arXiv 2407.19205, section III.
Must not know who owns the layers, nor how a run begins and ends.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from torch import Tensor, nn

TEMPORAL_MODES = ("cached", "remove", "keep")
SPATIAL_MODES = ("cached", "keep")


@dataclass(frozen=True)
class CrossAttentionConfig:
    """What becomes of the two kinds of cross-attention.

    temporal: ``cached`` evaluates the affine map once a run, exact up to rounding; ``remove``
        returns zeros, the paper's setting; ``keep`` leaves the layer alone.
    spatial: ``cached`` or ``keep``, as above.
    Raises ValueError for any other word.
    """

    temporal: Literal["cached", "remove", "keep"] = "cached"
    spatial: Literal["cached", "keep"] = "cached"

    def __post_init__(self) -> None:
        for name, choices in (("temporal", TEMPORAL_MODES), ("spatial", SPATIAL_MODES)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value}")


class ValueCache:
    """The affine outputs of one sampling run. Belongs to that run and is dropped with it.

    A key must name everything an output depends on: layer, conds, rows, device, dtype.
    ``evaluated`` and ``reused`` count affine maps.
    """

    def __init__(self) -> None:
        self.evaluated = 0
        self.reused = 0
        self._values: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable | None, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return the value under ``key``, evaluating it the first time; never keep a None key."""
        if key is not None and key in self._values:
            self.reused += 1
            return self._values[key]
        value = evaluate()
        self.evaluated += 1
        if key is not None:
            self._values[key] = value
        return value

    def nbytes(self) -> int:
        """Return the memory held, in bytes."""
        return sum(value.nbytes for value in self._values.values())


class AffineCrossAttention(nn.Module):
    """Stand-in for a cross-attention layer that sees one embedding token.

    Keeps every child of the layer it replaces under the child's own name and owns no weights, so
    weight patches (LoRA), offloading and saving see the very parameters that they saw before.

    original: a layer with ``to_q, to_k, to_v, to_out`` and a forward of
        ``(x, context, value, mask, transformer_options)``.
    is_removed: return zeros in place of the affine map.
    """

    def __init__(self, original: nn.Module, is_removed: bool = False) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple: a registered child would double every weight
        for name, child in original.named_children():
            self.add_module(name, child)
        for name in ("heads", "dim_head", "attn_precision"):  # read by other packs
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))
        self.is_removed = is_removed
        self.train(original.training)

    @property
    def original(self) -> nn.Module:
        """The layer this one stands in for."""
        return self._original[0]

    def affine(self, context: Tensor) -> Tensor:
        """Return L(context): (B, 1, D) -> (B, 1, C)."""
        return self.to_out(self.to_v(context))


def is_single_token(context: Tensor | None, value: Tensor | None, mask: Tensor | None) -> bool:
    """Whether attention over ``context`` (B, L, D) reduces to the affine map: one token, no mask.

    value: (B, L, D) where a patch passes its own, else None. Reads shapes only.
    """
    tokens = context if value is None else value
    return (
        mask is None
        and context is not None
        and context.shape[1] == 1
        and tokens is not None
        and tokens.shape[1] == 1
    )


def spread(value: Tensor, x: Tensor) -> Tensor:
    """Spread value (G, 1, C) over x (G*R, S, C): each row of value serves R rows and S tokens.

    Returns a view of shape (G*R, S, C) whose S axis has stride 0: read it, never write to it.
    """
    if value.shape[0] not in (1, x.shape[0]):
        value = repeat(value, "g 1 c -> (g r) 1 c", r=x.shape[0] // value.shape[0])
    return value.expand(x.shape[0], x.shape[1], -1)


def zeros(x: Tensor) -> Tensor:
    """Return zeros in x's shape and dtype as a view of one element: read it, never write to it."""
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)
