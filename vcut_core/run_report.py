"""What one sampling run did: counts as data, short lines for the nodes, one line for the log."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .technique import Technique


@dataclass
class RunReport:
    """Counts of one run.

    unet_evaluations: forward passes of the UNet, one for each cond in a batch.
    elapsed_s: seconds from the first evaluation to the end.
    """

    techniques: Sequence[Technique]
    unet_evaluations: int = 0
    elapsed_s: float = 0.0
    is_complete: bool = False

    @property
    def evaluations_saved(self) -> int:
        """UNet evaluations that the techniques left out."""
        return sum(technique.evaluations_saved for technique in self.techniques)

    def node_lines(self, technique: Technique) -> list[str]:
        """Return the facts of one technique, for its node."""
        evaluations = self._evaluations_of(technique) if technique.saves_evaluations else []
        fallbacks = _fallbacks([technique])
        return [*self._start(), *evaluations, *technique.lines(), *fallbacks, self._seconds()]

    def lines(self) -> list[str]:
        """Return everything: what was done first, details at the end."""
        lines = [line for technique in self.techniques for line in technique.lines()]
        details = [detail for technique in self.techniques for detail in technique.details()]
        fallbacks = _fallbacks(self.techniques)
        parts = [self._evaluations(), *lines, self._seconds(), *details, *fallbacks]
        return [*self._start(), *parts]

    def log_line(self) -> str:
        """Return everything in one line."""
        return "; ".join(self.lines())

    def data(self) -> dict[str, Any]:
        """Return the counts as plain data: numbers, words and dicts of them."""
        return {
            "unet_evaluations": self.unet_evaluations,
            "evaluations_saved": self.evaluations_saved,
            "elapsed_s": self.elapsed_s,
            "is_complete": self.is_complete,
            "techniques": {t.key: t.counts() for t in self.techniques},
            "fallbacks": dict(sum((t.fallbacks for t in self.techniques), Counter())),
        }

    def _start(self) -> list[str]:
        return [] if self.is_complete else ["stopped early"]

    def _evaluations(self) -> str:
        return evaluations_line(self.unet_evaluations, self.evaluations_saved)

    def _evaluations_of(self, technique: Technique) -> list[str]:
        """Return the count, and the technique's part where others leave evaluations out too."""
        others = sum(other.saves_evaluations for other in self.techniques) - 1
        own = f"{technique.evaluations_saved} of {self.evaluations_saved} saved here"
        return [self._evaluations(), *([own] if others else [])]

    def _seconds(self) -> str:
        return f"{self.elapsed_s:.1f} s"


def evaluations_line(evaluations: int, saved: int) -> str:
    """Return how many UNet evaluations a run takes of those that it would take without VCUT."""
    return f"{evaluations} of {evaluations + saved} UNet evaluations"


def _fallbacks(techniques: Sequence[Technique]) -> list[str]:
    counts = [item for technique in techniques for item in technique.fallbacks.items()]
    return [f"{why} ({count} call{'' if count == 1 else 's'})" for why, count in counts]
