"""Lets the residual blocks of a UNet's way up join their two inputs themselves, slice by slice.

The host joins the features with the skip and holds the joint until the whole output block is done.
"""

from comfy.ldm.modules.diffusionmodules import openaimodel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from .torch_compile import uncompiled


class DeferredConcat:
    """What the next output block's residual block is to join."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def options_that_defer(self, transformer_options: dict) -> dict:
        """Return options whose last output-block patch defers the concat."""
        patches = transformer_options.get("patches", {})
        # Last, so that the patches of other packs get what they always got.
        after = [*patches.get("output_block_patch", []), self.defer]
        return {**transformer_options, "patches": {**patches, "output_block_patch": after}}

    @uncompiled
    def defer(self, h: Tensor, skip: Tensor | None, _transformer_options: dict):
        """Output-block patch: keep h and skip for the residual block; give the host empty ones.

        On newer hosts another pack's patch may have taken the skip away.
        """
        if skip is None:
            return h, skip
        self._parts = [h, skip]
        return tuple(part.new_empty((part.shape[0], 0, *part.shape[2:])) for part in (h, skip))

    def take(self, x: Tensor) -> list[Tensor]:
        """Return the tensors that x stands for and forget them; x itself unless it is empty."""
        parts, self._parts = self._parts, []
        return parts if parts and x.numel() == 0 else [x]

    def clear(self) -> None:
        """Forget what was kept."""
        self._parts = []


def is_host_loop(unet: nn.Module, executor, transformer_options: dict) -> bool:
    """Return whether only the host's own loop over blocks sees what enters the output blocks.

    executor: of the DIFFUSION_MODEL wrapper, about to call that loop.
    """
    own = getattr(executor.original, "__func__", None)
    steps = openaimodel.forward_timestep_embed  # read now: packs replace it at any time
    patches = transformer_options.get("patches", {})
    return (
        type(unet) is UNetModel
        and own is UNetModel._forward
        and {own.__module__, steps.__module__} == {UNetModel.__module__}
        # Newer hosts offer such a patch a residual block's input before the block gets it.
        and not patches.get("forward_timestep_embed_patch")
    )
