"""Layers of an SVD UNet that run slice by slice while a run of ours lasts.

Each sliced layer gets another ``forward`` for the length of one run, and calls its own on slices.
Where something of another pack wants to see a whole batch inside of it, it is left alone.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, FeedForward, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules import openaimodel
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    ResBlock,
    UNetModel,
    Upsample,
    VideoResBlock,
)
from comfy.ldm.modules.diffusionmodules.util import AlphaBlender
from torch import Tensor, nn

from ..vcut_core.feature_slicing import (
    FEED_FORWARD_PARTS,
    NormThenConv,
    map_slices,
    temporal_residual_in_place,
)
from .run_slicing import RunSlicing


@contextmanager
def sliced_layers(unet: nn.Module, slicing: RunSlicing) -> Iterator[None]:
    """Let the layers that ``slicing`` names run in slices until the end of the with."""
    installed = []
    try:
        for module, forward in _stand_ins(unet, slicing) if slicing.slices > 1 else ():
            if "forward" not in vars(module):  # else another pack's
                module.forward = functools.partial(forward, slicing, module)
                installed.append((module, module.forward))
        yield
    finally:
        for module, forward in installed:
            if vars(module).get("forward") is forward:
                del module.forward


def _stand_ins(unet: nn.Module, slicing: RunSlicing):
    """Yield (module, the forward to run in its place) for every layer that is to be sliced."""
    is_everything = slicing.config.scope == "everything"
    for module in unet.modules():
        if type(module) is BasicTransformerBlock:
            for layer in (module.ff_in, module.ff):
                if type(layer) is FeedForward:
                    yield layer, _feed_forward
        elif is_everything and type(module) is VideoResBlock and _is_familiar(module):
            yield module, _video_residual
        elif is_everything and type(module) is Upsample:
            yield module, _upsample
        elif is_everything and type(module) is SpatialVideoTransformer:
            yield module.time_mixer, _blend


@torch.compiler.disable  # a slice is no work for a compiler, and the loop would be unrolled
def _feed_forward(slicing: RunSlicing, layer: FeedForward, x: Tensor) -> Tensor:
    """Return the feed-forward of x (B, S, C), each token on its own."""
    slices = FEED_FORWARD_PARTS if slicing.is_inside_block else slicing.slices_for(x.numel())
    tokens = x.reshape(-1, x.shape[-1])
    output = map_slices(
        lambda start, stop: type(layer).forward(layer, tokens[start:stop]),
        tokens.shape[0],
        slices,
    )
    return output.view(*x.shape[:-1], -1)


@torch.compiler.disable
def _upsample(slicing: RunSlicing, layer: Upsample, x: Tensor, output_shape=None) -> Tensor:
    """Return the upsampled frames x (B, C, H, W), each on its own."""
    return map_slices(
        lambda start, stop: type(layer).forward(layer, x[start:stop], output_shape=output_shape),
        x.shape[0],
        slicing.slices_for(4 * x.numel()),
    )


@torch.compiler.disable
def _blend(
    slicing: RunSlicing,
    mixer: AlphaBlender,
    x_spatial: Tensor,
    x_temporal: Tensor,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    """Return the blend of two (B, S, C), each frame on its own where all have one weight."""
    slices = slicing.slices_for(x_spatial.numel()) if image_only_indicator is None else 1
    return map_slices(
        lambda start, stop: type(mixer).forward(
            mixer, x_spatial[start:stop], x_temporal[start:stop], image_only_indicator
        ),
        x_spatial.shape[0],
        slices,
    )


@torch.compiler.disable
def _video_residual(
    slicing: RunSlicing,
    block: VideoResBlock,
    x: Tensor,
    emb: Tensor,
    num_video_frames: int,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    """Return the block's output for x (B, C, H, W): over frames, then over rows of pixels."""
    parts = slicing.take_parts(x)
    slices = slicing.slices_for(sum(part.numel() for part in parts))
    if slices == 1 or torch.is_grad_enabled():  # below, a gradient's input would be written over
        x = _join(parts, 0, None)
        parts.clear()
        return type(block).forward(block, x, emb, num_video_frames, image_only_indicator)
    output = map_slices(
        lambda start, stop: ResBlock.forward(block, _join(parts, start, stop), emb[start:stop]),
        parts[0].shape[0],
        slices,
    )
    parts.clear()
    stack = block.time_stack
    frames = emb.unflatten(0, (-1, num_video_frames))
    embedding = stack.emb_layers(frames).type(output.dtype).movedim(1, 2)  # (B, C, T)
    temporal_residual_in_place(
        output.unflatten(0, (-1, num_video_frames)),
        _norm_then_conv(stack.in_layers, output),
        _norm_then_conv(stack.out_layers, output),
        embedding,
        lambda spatial, temporal: block.time_mixer(
            x_spatial=spatial, x_temporal=temporal, image_only_indicator=image_only_indicator
        ),
        slices,
    )
    return output


def _join(parts: list[Tensor], start: int, stop: int | None) -> Tensor:
    """Return a slice of the frames of parts, their channels joined."""
    pieces = [part[start:stop] for part in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _norm_then_conv(layers: nn.Sequential, x: Tensor) -> NormThenConv:
    norm = layers[0]
    return NormThenConv(*_weight_and_bias(norm, x), norm.eps, norm.num_groups, layers[-1])


def _weight_and_bias(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both on x's device and in its dtype: they may be offloaded, paged or carry a LoRA."""
    if not hasattr(norm, "weight_function"):  # not of the host's classes
        return norm.weight, norm.bias
    if not hasattr(comfy.ops, "uncast_bias_weight"):  # an older host
        return comfy.ops.cast_bias_weight(norm, x)
    weight, bias, loan = comfy.ops.cast_bias_weight(norm, x, offloadable=True)
    own = weight.clone(), bias.clone()  # what is lent may be overwritten once it is given back
    comfy.ops.uncast_bias_weight(norm, weight, bias, loan)
    return own


def _is_familiar(block: VideoResBlock) -> bool:
    """Whether the block's way through time is the one that ``_video_residual`` follows."""
    stack = block.time_stack
    kinds = [[type(layer) for layer in layers] for layers in (stack.in_layers, stack.out_layers)]
    norms, convs = (
        (stack.in_layers[0], stack.out_layers[0]),
        (stack.in_layers[-1], stack.out_layers[-1]),
    )
    return (
        [len(k) for k in kinds] == [3, 4]
        and all(isinstance(norm, nn.GroupNorm) for norm in norms)
        and all(isinstance(conv, nn.Conv3d) and conv.kernel_size[1:] == (1, 1) for conv in convs)
        and isinstance(stack.skip_connection, nn.Identity)
        and not (stack.updown or stack.skip_t_emb or stack.use_scale_shift_norm)
        and stack.exchange_temb_dims
        and not any(_is_watched(module) for module in block.modules())
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody has put a hook on a module, or a forward in place of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@torch.compiler.disable
def with_slicing(slicing: RunSlicing, executor, args: tuple, kwargs: dict, options: dict):
    """Return a UNet call's (args, kwargs) so that its sliced layers know what they run in.

    executor: of the DIFFUSION_MODEL wrapper, about to call the UNet's own loop over blocks.
    options: the transformer_options among args or kwargs.
    """
    unet = executor.class_obj
    slicing.begin_call(args[0] if args else kwargs["x"], unet)
    patches = options.get("patches", {})
    # Newer hosts offer such a patch a residual block's input before the block gets it.
    if not _may_hand_over(unet, executor) or patches.get("forward_timestep_embed_patch"):
        return args, kwargs
    # Last, so that the patches of other packs get what they always got.
    after = [*patches.get("output_block_patch", []), slicing.hand_over]
    changed = {**options, "patches": {**patches, "output_block_patch": after}}
    args = tuple(changed if arg is options else arg for arg in args)
    return args, {name: changed if arg is options else arg for name, arg in kwargs.items()}


def _may_hand_over(unet: nn.Module, executor) -> bool:
    """Whether nobody but sliced residual blocks can see what enters the output blocks."""
    own = getattr(executor.original, "__func__", None)
    steps = openaimodel.forward_timestep_embed  # read now: packs replace it at any time
    return (
        type(unet) is UNetModel
        and own is UNetModel._forward
        and {own.__module__, steps.__module__} == {UNetModel.__module__}
        and all(_takes_parts(block[0]) for block in unet.output_blocks)
    )


def _takes_parts(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return (
        isinstance(forward, functools.partial)
        and forward.func is _video_residual
        and not (module._forward_hooks or module._forward_pre_hooks)
    )
