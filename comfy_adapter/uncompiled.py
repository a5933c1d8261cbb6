"""Keeps what counts and looks up out of torch.compile."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Return ``function`` as torch.compile must leave it: compiled, it would compile at each call.

    Typed here, since torch's own types lose a method's binding.
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]
