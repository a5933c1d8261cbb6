"""Lets one process at a time work in a folder.

Imports nothing outside the standard library.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, waits: bool) -> None:  # ten seconds at most
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, waits: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))


@contextmanager
def locked(file: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold ``file`` while the block runs; yield its descriptor. The system frees it at any end.

    tell: called with a sentence where another process has it, which is waited for.
    """
    with file.open("a") as lock:
        if not _has_locked(lock.fileno(), waits=False):
            tell(f"Waiting for another command that works in {file.parent.name}")
            while not _has_locked(lock.fileno(), waits=True):
                pass
        yield lock.fileno()


def _has_locked(descriptor: int, waits: bool) -> bool:
    try:
        _lock(descriptor, waits)
    except OSError:
        return False
    return True
