"""Reads a LATENT as the frames of one video."""


def frames_of(latent: dict, name: str):
    """Return the frames (T, C, h, w) of a LATENT. Raises ValueError for anything else.

    name: of the input.
    """
    samples = latent["samples"]
    if not samples.is_nested and samples.ndim == 4 and len(samples):
        return samples
    got = "several latents" if samples.is_nested else tuple(samples.shape)
    raise ValueError(
        f"expected the frames of one video (frames, 4, height, width) in {name}, got {got}. "
        "Connect the LATENT of the sampler"
    )
