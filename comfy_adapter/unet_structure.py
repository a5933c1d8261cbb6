"""Where the layers of an SVD UNet are, and what shapes they have."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample

from ..vcut_core.activation_memory import LayerShape, UNetShape
from ..vcut_core.calls import Axis
from .host_model import UNET, own_object

STACKS: tuple[tuple[Axis, str], ...] = (
    ("spatial", "transformer_blocks"),
    ("temporal", "time_stack"),
)


def transformer_blocks(diffusion_model) -> Iterator[tuple[str, Axis, Any]]:
    """Yield (path from the model, axis, block) for every block of the video transformers."""
    for name, module in diffusion_model.named_modules():
        if isinstance(module, SpatialVideoTransformer):
            for axis, stack in STACKS:
                for index, block in enumerate(getattr(module, stack)):
                    yield f"{UNET}.{name}.{stack}.{index}", axis, block


def attn2_of(block) -> torch.nn.Module | None:
    """Return a block's cross-attention; another pack's block may have none."""
    return getattr(block, "attn2", None)


def own_modules(diffusion_model, displaced: Mapping) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield (path from the model, module) of a UNet as it was loaded.

    displaced: path -> what object patches have replaced there (ModelPatcher.object_patches_backup),
        read in place of the patch.
    """
    pending = [(UNET, diffusion_model)]
    while pending:
        path, module = pending.pop()
        module = displaced.get(path, module)
        if isinstance(module, torch.nn.Module):
            yield path, module
            children = reversed(module._modules.items())
            pending += [(f"{path}.{name}", child) for name, child in children]


def unet_shape(patcher) -> UNetShape:
    """Return the shapes of the layers that a patcher's UNet was loaded with.

    Other packs' object patches may be on the model now: a clone's stay until the next is loaded.
    """
    return UNetShape(
        _block_shapes(patcher, f"{UNET}.input_blocks"),
        _block_shape(patcher, f"{UNET}.middle_block"),
        _block_shapes(patcher, f"{UNET}.output_blocks"),
        patcher.model.model_config.unet_config.get("context_dim") or 0,
    )


def _block_shapes(patcher, path: str) -> tuple[tuple[LayerShape, ...], ...]:
    count = len(own_object(patcher, path))
    return tuple(_block_shape(patcher, f"{path}.{index}") for index in range(count))


def _block_shape(patcher, path: str) -> tuple[LayerShape, ...]:
    count = len(own_object(patcher, path))
    return tuple(_layer_shape(own_object(patcher, f"{path}.{index}")) for index in range(count))


def _layer_shape(layer) -> LayerShape:
    if isinstance(layer, SpatialVideoTransformer):
        return LayerShape("transformer", layer.in_channels, layer.in_channels)
    if isinstance(layer, ResBlock):
        return LayerShape("residual", layer.channels, layer.out_channels)
    if isinstance(layer, Downsample):
        return LayerShape("down", layer.channels, layer.out_channels)
    if isinstance(layer, Upsample):
        return LayerShape("up", layer.channels, layer.out_channels)
    return LayerShape("conv", layer.in_channels, layer.out_channels)
