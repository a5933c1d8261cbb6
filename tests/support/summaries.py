"""Reads the line that a run logs."""

import re


def without_seconds(line: str, instead: str = "") -> str:
    """Return the line without its seconds, or with other ones ``instead``."""
    return re.sub(r"; \d+\.\d s", f"; {instead}" if instead else "", line)
