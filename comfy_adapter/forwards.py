"""The one place that puts forwards on modules for the length of a run, and takes them out again."""

import functools
from collections.abc import Callable

from torch import nn

KEPT = "_vcut_forward"


class Forwards:
    """Forwards that stand on modules while the with block lasts.

    A module on which another pack has put a forward is left alone.
    """

    def __init__(self) -> None:
        self._installed: dict[nn.Module, functools.partial] = {}
        self._has_compiled_code = False

    def __enter__(self) -> "Forwards":
        return self

    def __exit__(self, *_exception) -> None:
        for module in list(self._installed):
            if self.is_installed(module):
                del module.forward
            if self._has_compiled_code:
                vars(module)[KEPT] = self._installed[module]
        self._installed.clear()

    def keep_for_compiled_code(self) -> None:
        """Use the same forwards in the next run: without them torch.compile drops its code."""
        self._has_compiled_code = True

    def install(self, module: nn.Module, function: Callable, *arguments) -> None:
        """Let ``module`` run ``function(*arguments, module, ...)`` in place of its own forward."""
        if "forward" in vars(module):
            return
        forward = functools.partial(function, *arguments, module)
        kept = vars(module).get(KEPT)
        if kept is not None and (kept.func, kept.args) == (forward.func, forward.args):
            forward = kept
        self._installed[module] = forward
        module.forward = forward

    def is_installed(self, module: nn.Module) -> bool:
        """Return whether calls of ``module`` still reach the function that was installed."""
        own = vars(module).get("forward")
        return own is not None and self._installed.get(module) is own


def has_forward(module: nn.Module, function: Callable) -> bool:
    """Return whether ``function`` is what some run has installed on ``module``."""
    forward = vars(module).get("forward")
    return isinstance(forward, functools.partial) and forward.func is function


def is_watched(module: nn.Module) -> bool:
    """Return whether somebody has put a hook on a module, or a forward in place of its own."""
    return has_hooks(module) or "forward" in vars(module)


def has_hooks(module: nn.Module) -> bool:
    """Return whether somebody has put a forward hook on a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
