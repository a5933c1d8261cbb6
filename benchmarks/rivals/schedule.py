"""Where a run is in its schedule."""


def step_of(sigma: float, transformer_options: dict) -> tuple[int, int]:
    """Return (step from 0, number of steps) of an evaluation at ``sigma``."""
    starts = transformer_options["sample_sigmas"][:-1].tolist()
    return max(0, sum(start >= sigma * (1 - 1e-5) for start in starts) - 1), len(starts)
