"""What travels from a sampling run to the layers, in the host's transformer_options."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

CALL_KEY = "vcut_call"


@dataclass(frozen=True)
class CallState:
    """What a layer needs to know of the model call it runs in.

    embedding_scale: factor already applied to the embeddings; part of every cache key, because a
        scaled cond keeps its uuid (EasyCache finds conds by it).
    is_embedding_fixed: all frames of a cond share one embedding, the same in every call.
    unet: the UNetInRun that is called, once it is.
    short_context: (conds, 1, D) when the temporal layers are given a context of no width.
    """

    embedding_scale: float
    is_embedding_fixed: bool
    unet: Any = None
    short_context: Tensor | None = None


def call_state_of(transformer_options: dict) -> CallState | None:
    """Return the state of the call in progress, None outside a run of ours."""
    return transformer_options.get(CALL_KEY)
