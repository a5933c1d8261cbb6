"""What travels from a sampling run to the layers, in the host's transformer_options."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .sampling_run import SamplingRun

KEY = "vcut"  # the pack's key in every host dictionary that it writes to


@dataclass(frozen=True)
class CallInfo:
    """What attn2 needs to know of the model call it runs in; travels in transformer_options.

    embedding_scale: factor already applied to the embeddings; part of every cache key, because a
        scaled cond keeps its uuid (EasyCache finds conds by it).
    may_cache: all frames of a cond share one embedding, the same in every call.
    time_context: (conds, 1, D) when the temporal layers are given a context of no width.
    """

    run: "SamplingRun"
    embedding_scale: float
    may_cache: bool
    time_context: torch.Tensor | None = None
