"""FasterCache's CFG-Cache: uncond is made of cond and the difference that a full step left.

Lv et al.: FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality, ICLR
2025, arXiv 2410.19355, section 3.3: low and high frequencies of the difference apart, the first
weighted up early and the second late.
"""

import torch
from comfy.patcher_extension import WrappersMP

from .schedule import step_of

FIRST_SKIPPED = 0.36  # of the steps: from timestep 641 of 1000 down, as its authors set it
ALPHA = 0.2  # how much more the difference counts, low frequencies early and high ones late
RADIUS = 5  # the low frequencies are within the shorter side over this


def with_cfg_cache(model, every: int = 5):
    """Return a clone that evaluates uncond in every ``every``-th step only, once it may skip."""
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "rival", _CFGCache(every))
    return clone


class _CFGCache:
    def __init__(self, every: int) -> None:
        self.every = every
        self.kept: tuple | None = None  # low, high, scale of the model's output there

    def __call__(self, executor, model, conds, x, timestep, model_options):
        sigma = float(timestep[0])
        step, num_steps = step_of(sigma, model_options["transformer_options"])
        # The denoised latent is x less the model's own output times this.
        scale = sigma / (sigma**2 + 1) ** 0.5
        since = step - round(FIRST_SKIPPED * num_steps)
        if since < 0 or since % self.every == 0 or self.kept is None:
            cond, uncond = executor(model, conds, x, timestep, model_options)
            self.kept = (*_frequencies(uncond - cond), scale)
            return [cond, uncond]
        cond, _ = executor(model, [conds[0], None], x, timestep, model_options)
        low, high, old_scale = self.kept
        is_early = step < num_steps / 2
        low, high = low * (1 + ALPHA * is_early), high * (1 + ALPHA * (not is_early))
        return [cond, cond + (low + high) * (scale / old_scale)]


def _frequencies(difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the low and the high frequencies over space of (frames, 4, H, W)."""
    height, width = difference.shape[-2:]
    y, x = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.fftfreq(width), indexing="ij")
    reach = min(height, width) // RADIUS
    is_low = (y * height) ** 2 + (x * width) ** 2 <= reach**2
    spectrum = torch.fft.fft2(difference.float())
    low = torch.fft.ifft2(spectrum * is_low.to(difference.device)).real
    return low, difference - low
