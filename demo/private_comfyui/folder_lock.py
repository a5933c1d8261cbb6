"""Lets one process at a time work in a folder.

Imports nothing outside the standard library.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextmanager
def locked(file: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Hold ``file`` while the block runs; yield its descriptor. The system frees it at any end.

    tell: called with a sentence where another process has it, which is waited for.
    """
    with file.open("a") as lock:
        if not _try(lock, waits=False):
            tell(f"Waiting for another command that works in {file.parent.name}")
            while not _try(lock, waits=True):
                pass
        yield lock.fileno()


def _try(lock: IO, waits: bool) -> bool:
    try:
        if os.name == "nt":  # which waits ten seconds at most
            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
