"""The calls of a sampling run that a technique may change, from the sampler down to one layer.

A technique hands a changed copy of a call to what comes after it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from .transformer_block import constant_of_rows

Axis = Literal["spatial", "temporal"]
Same = TypeVar("Same", bound="Call")
Rows = TypeVar("Rows", bound="LayerCall")
Kind = Literal["block", "cross-attention", "feed-forward", "residual", "upsample", "blend"]


@dataclass(frozen=True)
class Call:
    """What all calls share."""

    def changed(self: Same, **fields) -> Same:
        """Return a copy with other ``fields``.

        As dataclasses.replace, but without a call of __init__: every slice of a layer needs one.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **fields)
        return copy


@dataclass(frozen=True)
class PredictionCall(Call):
    """The sampler asks for the denoised latent, guidance included, at one sigma.

    x: the noisy latent, (frames, 4, H, W).
    sigma, sigmas: as in CondsCall.
    phase: returns what the prediction at a sigma depends on beside x and sigma.
    count_evaluations: returns the UNet evaluations of the run so far, with those that other
        techniques left out.
    must_compute: why nothing else may stand in for this prediction.
    takes_euler_steps: whether all that the sampler does with it is a step of Euler's method.
    """

    x: Tensor
    sigma: Callable[[], float]
    sigmas: Callable[[], Sequence[float]]
    phase: Callable[[float], Hashable]
    count_evaluations: Callable[[], int]
    must_compute: str | None = None
    takes_euler_steps: bool = False


@dataclass(frozen=True)
class CondsCall(Call):
    """The sampler asks for the prediction of each cond at one sigma.

    is_present: for each cond, whether there is one to evaluate.
    cond_ids: names of the entries of the first cond.
    sigma, sigmas: functions that read this call's sigma and the run's schedule, num_steps + 1
        floats, from the device. Call them only where the answer depends on them.
    count_evaluations: the UNet evaluations that the cond of an index costs.
    embedding_scale: factor on the image embedding of the first cond.
    """

    is_present: tuple[bool, ...]
    cond_ids: frozenset[Hashable]
    sigma: Callable[[], float]
    sigmas: Callable[[], Sequence[float]]
    count_evaluations: Callable[[int], int]
    embedding_scale: float = 1.0

    @property
    def is_pair(self) -> bool:
        """Whether cond and uncond are both asked for: a guided evaluation."""
        return self.is_present == (True, True)

    @property
    def is_first_alone(self) -> bool:
        """Whether the first cond is the only one to evaluate."""
        return bool(self.is_present) and self.is_present[0] and sum(self.is_present) == 1

    def first_alone(self) -> "CondsCall":
        """Return the call without all conds but the first."""
        alone = tuple(index == 0 for index in range(len(self.is_present)))
        return self.changed(is_present=alone)


@dataclass(frozen=True)
class UNetCall(Call):
    """One call of the UNet, cond and uncond batched or not.

    elements: of an activation at the UNet's full resolution.
    cross_attentions: how many layers of each axis the UNet has. compiled_cross_attentions: those of
        them that run inside of torch.compile.
    can_shorten_time_context: whether only cached cross-attentions would read the image embedding
        that the UNet repeats for every pixel. can_defer_concat: whether a sliced residual block
        may join the UNet's features and skip itself.
    shortens_time_context, defers_concat: what a technique asks for.
    """

    elements: int
    cross_attentions: Mapping[Axis, int]
    compiled_cross_attentions: Mapping[Axis, int]
    can_shorten_time_context: Callable[[], bool]
    can_defer_concat: Callable[[], bool]
    shortens_time_context: bool = False
    defers_concat: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerCall(Call):
    """A call of a layer that treats its rows independently.

    inputs: tensors with a row each along their first axis. elements: how many numbers its largest
        activation has.
    compute_own: runs the layer itself on a call like this one.
    start: the first of these rows in the batch.
    """

    kind: Kind
    inputs: tuple[Tensor | None, ...]
    elements: int
    compute_own: Callable[[Any], Tensor]
    start: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of this call."""
        first = self.inputs[0]
        assert first is not None
        return first.shape[0]

    def rows(self: Rows, start: int, stop: int) -> Rows:
        """Return the call for the rows from start to stop of this one."""
        inputs = tuple(None if given is None else given[start:stop] for given in self.inputs)
        return self.changed(inputs=inputs, start=self.start + start)


@dataclass(frozen=True, kw_only=True)
class AttentionCall(Call):
    """A call of one cross-attention.

    layer: with ``to_v`` and ``to_out``. x: (B, S, C). context, value: (B, L, D); value is None
        unless a patch passes its own.
    num_groups: rows of x that share an embedding form a group; B is a multiple of num_groups.
    embedding: returns one row for each group, (G, 1, D).
    embedding_id: names the embedding of all groups; None when the next call may have another.
    is_first_slice: False when an earlier slice of the same layer was counted already.
    """

    kind: Kind = "cross-attention"
    axis: Axis
    layer: nn.Module
    x: Tensor
    context: Tensor | None
    value: Tensor | None = None
    mask: Tensor | None = None
    num_groups: Callable[[], int]
    embedding: Callable[[], Tensor]
    embedding_id: Hashable | None
    compute_own: Callable[[Any], Tensor]
    is_first_slice: bool = True
    may_write_output: bool = False  # an expanded view must then become a tensor of its own


NOT_REPLACED = object()  # as the attention output of a block that computes its own


@dataclass(frozen=True, kw_only=True)
class BlockCall(LayerCall):
    """A call of one transformer block; inputs are x (B, S, C) and context (B, L, D).

    attention: its cross-attention, None where it is not one that can be replaced.
    attention_output: what cross-attention adds, (G, 1, C) for G groups of rows, or None for
        nothing, once a technique has replaced it.
    is_patched: another pack works inside the block. can_skip_attention: nobody would notice if
        cross-attention and its norm are not called.
    needs_whole_batch: cross-attention finds a row's group by its place, so rows stay together.
    """

    attention: AttentionCall | None
    is_patched: bool
    can_skip_attention: bool
    attention_output: Any = NOT_REPLACED
    needs_whole_batch: bool = False

    @property
    def is_attention_replaced(self) -> bool:
        """Whether a technique has computed what cross-attention adds."""
        return self.attention_output is not NOT_REPLACED

    def rows(self, start: int, stop: int) -> "BlockCall":
        """Return the call for the rows from start to stop of this one."""
        call = super().rows(start, stop)
        if self.is_attention_replaced:
            output = constant_of_rows(self.attention_output, start, stop, self.num_rows)
            call = call.changed(attention_output=output)
        return call


@dataclass(frozen=True, kw_only=True)
class ResidualCall(Call):
    """A call of one residual block over frames, then over time.

    num_rows: frames of the whole batch. compute_frames: the spatial half for the frames from start
    to stop, (stop - start, C, H, W). Its input cannot be changed. release_input: forgets the input
    once that is done.
    compute_time: the temporal half of all frames (B, C, H, W), in place, in so many slices.
    """

    kind: Kind = "residual"
    num_rows: int
    elements: int
    compute_own: Callable[[Any], Tensor]
    compute_frames: Callable[[int, int], Tensor]
    release_input: Callable[[], None]
    compute_time: Callable[[Tensor, int], Tensor]
