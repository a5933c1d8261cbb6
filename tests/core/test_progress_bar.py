"""How a command tells its progress: a bar on a terminal, two lines in a log."""

import ast
import io
import re
import sys

import pytest
from command_line import progress_bar
from private_comfyui.environments import PACK


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _told(monkeypatch, stream: io.StringIO, total: int | None, steps: int, initial: int = 0) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("video", total, initial=initial) as bar:
        for _ in range(steps):
            bar.update()
            bar.set_postfix_str("loss 0.1")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("total", "steps", "lines"),
    [
        (25, 25, r"video: 25 steps\nvideo: done in 0\.\d s\n"),
        (1, 1, r"video: 1 step\nvideo: done in 0\.\d s\n"),
        (25, 3, r"video: 25 steps\nvideo: stopped at 3 of 25 after 0\.\d s\n"),
        (None, 3, r"video: started\nvideo: done in 0\.\d s\n"),
    ],
)
def test_start_and_end_are_told_where_stderr_is_no_terminal(monkeypatch, total, steps, lines):
    told = _told(monkeypatch, io.StringIO(), total, steps)
    assert re.fullmatch(lines, told), told


def test_log_says_where_a_resumed_command_goes_on(monkeypatch):
    told = _told(monkeypatch, io.StringIO(), 25, steps=5, initial=20)
    assert re.fullmatch(r"video: 25 steps, 20 done before\nvideo: done in 0\.\d s\n", told), told


def test_bar_on_a_terminal_knows_its_total_before_the_first_step(monkeypatch):
    told = _told(monkeypatch, Terminal(), 25, steps=0)
    assert "video:" in told and "0/25" in told and "done in" not in told


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_end_is_not_told_when_the_command_fails(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with pytest.raises(OSError), progress_bar("video", 25):
        raise OSError("the disk is full")
    assert "done" not in sys.stderr.getvalue() and "stopped" not in sys.stderr.getvalue()


def test_nothing_else_makes_bars_of_its_own():
    """Elsewhere a bar in a log would be one long line of carriage returns."""
    files = [*(PACK / "demo").rglob("*.py"), *(PACK / "benchmarks").glob("*.py")]
    importers = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "tqdm":
                importers.add(file.name)
    assert importers == {"command_line.py"}
