"""Sigmas of a sampler's schedule: comparisons that hold across the ways to compute one."""

from collections.abc import Sequence

# Samplers compute a sigma anew (exp of a log, say), so equal sigmas differ in their last bits.
SIGMA_TOLERANCE = 1e-5


def is_rising(sigmas: Sequence[float]) -> bool:
    """Whether a schedule rises anywhere, as in unsampling."""
    return any(later > earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False))


def is_below(sigma: float, limit: float) -> bool:
    """Whether ``sigma`` is below ``limit``, and not only by rounding."""
    return sigma < limit * (1 - SIGMA_TOLERANCE)


def is_same(sigma: float, other: float) -> bool:
    """Whether two sigmas differ by rounding at most."""
    return abs(sigma - other) <= SIGMA_TOLERANCE * max(sigma, other)
