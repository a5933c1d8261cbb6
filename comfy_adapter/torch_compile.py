"""What runs inside of torch.compile, and what must not."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Return ``function`` as torch.compile must leave it: compiled, it would compile at each call.

    Typed here, since torch's own types lose a method's binding.
    """
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def compiled_module(module: Any) -> Any:
    """Return the module that torch.compile has wrapped, None where ``module`` is no wrapper."""
    return getattr(module, "_orig_mod", None)


def modules_in_compiled_parts(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the modules below ``module`` that lie in a part which torch.compile has wrapped."""
    for part in module.modules():
        inner = compiled_module(part)
        if inner is not None:
            yield from inner.modules()
