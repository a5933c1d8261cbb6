"""What the commands of this repository share: how they read options and tell progress."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def whole_number(low: int, high: int | None = None, step: int = 1) -> Callable[[str], int]:
    """Return what reads a whole number of these bounds, a multiple of ``step``.

    It raises argparse's own error otherwise, which the user sees as one sentence.
    """
    bounds = f", {low} or more" if high is None else f" from {low} to {high}"
    expected = f"a whole number{bounds}" + (f", a multiple of {step}" if step > 1 else "")

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high) or value % step:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    return read


positive = whole_number(1)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str = "step", initial: int = 0) -> Iterator:
    """Yield a tqdm bar, shown on a terminal; elsewhere a line tells the start and one the end.

    total: None when it is not known yet. initial: what an earlier command has done of it.
    """
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    started_at = time.monotonic()
    if not is_terminal:
        count = f"{total} {unit}{'' if total == 1 else 's'}" if total is not None else "started"
        before = f", {initial} done before" if initial else ""
        sys.stderr.write(f"{title}: {count}{before}\n")
    with open(os.devnull, "w") as nowhere:
        file = sys.stderr if is_terminal else nowhere
        with tqdm(
            desc=title, total=total, unit=unit, initial=initial, dynamic_ncols=True, file=file
        ) as bar:
            yield bar
    if not is_terminal:
        is_done = bar.total is None or bar.n >= bar.total
        end = "done in" if is_done else f"stopped at {bar.n} of {bar.total} after"
        sys.stderr.write(f"{title}: {end} {time.monotonic() - started_at:.1f} s\n")
