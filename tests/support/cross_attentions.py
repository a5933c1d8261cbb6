"""Finds the cross-attentions of an SVD UNet."""

from vcut.comfy_adapter.unet_structure import attn2_of, transformer_blocks


def find_cross_attentions(diffusion_model) -> list[tuple[str, str]]:
    """Return (path from the model, "spatial" or "temporal") of every attn2."""
    return [
        (f"{path}.attn2", axis)
        for path, axis, block in transformer_blocks(diffusion_model)
        if attn2_of(block) is not None
    ]
