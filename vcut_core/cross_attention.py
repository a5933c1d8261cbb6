"""Cross-attention over ONE embedding token: an affine map of the token, evaluated once a run.

Softmax over a single key is always 1, so attention returns the value vector whatever the query:
the layer equals ``L(y) = to_out(to_v(y))``. Source: arXiv 2407.19205, section III.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from einops import repeat
from torch import Tensor

from .calls import AttentionCall, Axis, BlockCall, Kind, UNetCall
from .technique import RunFacts, Technique

TemporalMode = Literal["cached", "remove", "keep"]
SpatialMode = Literal["cached", "keep"]
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

    temporal: TemporalMode = "cached"
    spatial: SpatialMode = "cached"

    def __post_init__(self) -> None:
        for name, choices in (("temporal", TEMPORAL_MODES), ("spatial", SPATIAL_MODES)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {value}")

    def mode(self, axis: Axis) -> str:
        """Return what becomes of the cross-attentions of an axis."""
        return self.spatial if axis == "spatial" else self.temporal


class AffineOutputCache:
    """The affine outputs of one sampling run. Belongs to that run and is discarded with it.

    A key must name everything an output depends on: layer, conds, rows, device, dtype.
    ``computed`` and ``reused`` count affine maps.
    """

    def __init__(self) -> None:
        self.computed = 0
        self.reused = 0
        self._values: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable | None, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return the value under ``key``, computed the first time; a None key is never kept."""
        if key is not None and key in self._values:
            self.reused += 1
            return self._values[key]
        value = evaluate()
        self.computed += 1
        if key is not None:
            self._values[key] = value
        return value

    def nbytes(self) -> int:
        """Return the memory held, in bytes."""
        return sum(value.nbytes for value in self._values.values())


def affine_map(layer, context: Tensor) -> Tensor:
    """Return L(context) of a cross-attention with ``to_v`` and ``to_out``: (B, 1, D) -> (B, 1, C).

    The layers are called, never their weights multiplied: weights may be offloaded or quantised.
    """
    return layer.to_out(layer.to_v(context))


def is_single_token(
    context: Tensor | None, value: Tensor | None, mask: Tensor | None
) -> TypeGuard[Tensor]:
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


def expand_rows(value: Tensor, x: Tensor) -> Tensor:
    """Expand value (G, 1, C) over x (G*R, S, C): each row of value serves R rows and S tokens.

    Returns a view of shape (G*R, S, C) whose S axis has stride 0: read it, never write to it.
    """
    if value.shape[0] not in (1, x.shape[0]):
        value = repeat(value, "g 1 c -> (g r) 1 c", r=x.shape[0] // value.shape[0])
    return value.expand(x.shape[0], x.shape[1], -1)


def zeros(x: Tensor) -> Tensor:
    """Return zeros in x's shape and dtype as a view of one element: read it, never write to it."""
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)


def affine_attention(call: AttentionCall) -> Tensor:
    """Return the affine map of one token, expanded to (B, S, C): attention itself for several."""
    if not is_single_token(call.context, call.value, call.mask):
        return call.compute_own(call)
    if call.embedding_id is None:
        tokens = call.context if call.value is None else call.value
    else:
        tokens = call.embedding()
    assert tokens is not None
    output = expand_rows(affine_map(call.layer, tokens), call.x)
    return output.contiguous() if call.may_write_output else output


def removed_attention(call: AttentionCall) -> Tensor:
    """Return zeros in the shape of x."""
    return torch.zeros_like(call.x) if call.may_write_output else zeros(call.x)


class CachedCrossAttention(Technique):
    """Answers cross-attentions over one token from affine outputs kept for the run."""

    key = "cross_attention"
    config_class = CrossAttentionConfig
    acts_on_copies = True

    def __init__(self, config: CrossAttentionConfig, facts: RunFacts) -> None:
        super().__init__(config, facts)
        self.cache = AffineOutputCache()
        self.removed = 0
        self.compiled: Counter[str] = Counter()  # mode -> calls inside of torch.compile
        self._calls = 0
        self._expected_calls = 0

    def wants_layer(self, kind: Kind, axis: Axis | None) -> bool:
        """Return whether it may answer such layers."""
        return kind in ("block", "cross-attention") and axis is not None and self._answers(axis)

    def _answers(self, axis: Axis) -> bool:
        return self.config.mode(axis) != "keep"

    def before_unet(self, call: UNetCall) -> UNetCall:
        """Count the layers to answer; spare the UNet the embedding repeated for every pixel."""
        for axis, count in call.cross_attentions.items():
            compiled = call.compiled_cross_attentions.get(axis, 0)
            self._expected_calls += (count - compiled) * self._answers(axis)
            self.compiled[self.config.mode(axis)] += compiled
        if self._answers("temporal") and call.can_shorten_time_context():
            call = call.changed(shortens_time_context=True)
        return call

    def around_layer(self, call: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """Return the output of a transformer block, or of a cross-attention that it calls."""
        if isinstance(call, BlockCall):
            return self._around_block(call, compute)
        return self._around_attention(call, compute)

    def _around_block(self, call: BlockCall, compute: Callable[[Any], Tensor]) -> Tensor:
        attention = call.attention
        if attention is None or not self._is_constant(attention):
            return compute(call)
        if not call.can_skip_attention:
            return compute(call.changed(needs_whole_batch=True))
        self._calls += 1
        return compute(call.changed(attention_output=self._constant(attention)))

    def _around_attention(self, call: AttentionCall, compute: Callable[[Any], Tensor]) -> Tensor:
        is_constant = self._is_constant(call)
        if call.is_first_slice:
            self._calls += 1
            if not is_constant:
                self.fallbacks["cross-attention computed in full: several image tokens"] += 1
        if not is_constant:
            return compute(call)
        constant = self._constant(call)
        output = zeros(call.x) if constant is None else expand_rows(constant, call.x)
        if call.may_write_output:
            return output.clone(memory_format=torch.contiguous_format)
        return output

    def _is_removed(self, call: AttentionCall) -> bool:
        return self.config.mode(call.axis) == "remove"

    def _is_constant(self, call: AttentionCall) -> bool:
        return self._is_removed(call) or is_single_token(call.context, call.value, call.mask)

    def _constant(self, call: AttentionCall) -> Tensor | None:
        """Return what the layer adds, (G, 1, C) for G groups of rows; None when it is removed."""
        if self._is_removed(call):
            self.removed += 1
            return None
        if call.embedding_id is None:  # the next call may have another context or value
            tokens = call.context if call.value is None else call.value
            assert tokens is not None
            return self.cache.get(None, lambda: affine_map(call.layer, tokens))
        key = (call.layer, call.embedding_id, call.num_groups(), call.x.device, call.x.dtype)
        return self.cache.get(key, lambda: affine_map(call.layer, call.embedding()))

    def compiled_attention(self, axis: Axis) -> Callable[[AttentionCall], Tensor] | None:
        """Return the affine map itself: it costs little, and a compiler fuses it."""
        return {"cached": affine_attention, "remove": removed_attention, "keep": None}[
            self.config.mode(axis)
        ]

    def finish(self, is_complete: bool) -> None:
        """Count the layers that another pack has answered instead."""
        bypassed = self._expected_calls - self._calls
        if bypassed > 0 and is_complete:
            self.fallbacks["cross-attention not cached: another pack replaces it"] += bypassed

    def lines(self) -> list[str]:
        """Return how many affine maps were computed and how many came from the cache."""
        if not (self._answers("spatial") or self._answers("temporal")):
            return ["cross-attention: kept"]
        counts = (self.cache.computed, self.cache.reused, self.removed)
        lines = []
        if any(counts) or not self.compiled.total():
            lines.append(cross_attention_line(*counts))
        if self.compiled.total():
            lines.append(compiled_line(self.compiled["cached"], self.compiled["remove"]))
        return lines

    def counts(self) -> dict[str, Any]:
        """Return the affine maps and the bytes kept for them."""
        return {
            "computed": self.cache.computed,
            "reused": self.cache.reused,
            "removed": self.removed,
            "compiled": self.compiled["cached"] + self.compiled["remove"],
            "cache_bytes": self.cache.nbytes(),
        }


def cross_attention_line(computed: int, reused: int, removed: int) -> str:
    """Return the counts of a run, or of a run to come, in words."""
    end = f", {removed} removed" if removed else ""
    return f"cross-attention: {computed} computed, {reused} from cache{end}"


def compiled_line(affine: int, removed: int) -> str:
    """Return what compiled code did of cross-attention: nothing is kept between its calls."""
    end = f", {removed} removed" if removed else ""
    return f"cross-attention in compiled code: {affine} affine maps{end}"
