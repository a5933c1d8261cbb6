"""Calls of feed-forward, residual, upsampling and blending layers, as the techniques see them."""

import comfy.ops
import torch
from comfy.ldm.modules.attention import FeedForward
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, Upsample, VideoResBlock
from comfy.ldm.modules.diffusionmodules.util import AlphaBlender
from torch import Tensor, nn

from ..vcut_core.calls import LayerCall, ResidualCall
from ..vcut_core.temporal_residual import NormThenConv, temporal_residual_in_place
from .forwards import is_watched
from .torch_compile import uncompiled


@uncompiled  # a slice is no work for a compiler, and the loop would be unrolled
def forward_feed_forward(unet, layer: FeedForward, x: Tensor) -> Tensor:
    """Return the feed-forward of x (B, S, C), each token on its own."""
    call = LayerCall(
        kind="feed-forward",
        inputs=(x.reshape(-1, x.shape[-1]),),
        elements=x.numel(),
        compute_own=lambda call: type(layer).forward(layer, *call.inputs),
    )
    return unet.run_layer(call).view(*x.shape[:-1], -1)


@uncompiled
def forward_upsample(unet, layer: Upsample, x: Tensor, output_shape=None) -> Tensor:
    """Return the upsampled frames x (B, C, H, W), each on its own."""
    call = LayerCall(
        kind="upsample",
        inputs=(x,),
        elements=4 * x.numel(),
        compute_own=lambda call: type(layer).forward(
            layer, *call.inputs, output_shape=output_shape
        ),
    )
    return unet.run_layer(call)


@uncompiled
def forward_blend(
    unet,
    mixer: AlphaBlender,
    x_spatial: Tensor,
    x_temporal: Tensor,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    """Return the blend of two (B, S, C), each frame on its own where all have one weight."""
    if image_only_indicator is not None:
        return type(mixer).forward(mixer, x_spatial, x_temporal, image_only_indicator)
    call = LayerCall(
        kind="blend",
        inputs=(x_spatial, x_temporal),
        elements=x_spatial.numel(),
        compute_own=lambda call: type(mixer).forward(mixer, *call.inputs, image_only_indicator),
    )
    return unet.run_layer(call)


@uncompiled
def forward_residual(
    unet,
    block: VideoResBlock,
    x: Tensor,
    emb: Tensor,
    num_video_frames: int,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    """Return the block's output for x (B, C, H, W)."""
    parts = unet.deferred_concat.take(x)

    def compute_whole(_call) -> Tensor:
        joined = _join(parts, 0, None)
        parts.clear()
        return type(block).forward(block, joined, emb, num_video_frames, image_only_indicator)

    def compute_frames(start: int, stop: int) -> Tensor:
        return ResBlock.forward(block, _join(parts, start, stop), emb[start:stop])

    def compute_time(output: Tensor, slices: int) -> Tensor:
        stack = block.time_stack
        frames = emb.unflatten(0, (-1, num_video_frames))
        embedding = stack.emb_layers(frames).type(output.dtype).movedim(1, 2)  # (B, C, T)
        temporal_residual_in_place(
            output.unflatten(0, (-1, num_video_frames)),
            norm_then_conv(stack.in_layers, output),
            norm_then_conv(stack.out_layers, output),
            embedding,
            lambda spatial, temporal: block.time_mixer(
                x_spatial=spatial, x_temporal=temporal, image_only_indicator=image_only_indicator
            ),
            slices,
        )
        return output

    call = ResidualCall(
        num_rows=parts[0].shape[0],
        elements=sum(part.numel() for part in parts),
        compute_own=compute_whole,
        compute_frames=compute_frames,
        release_input=parts.clear,
        compute_time=compute_time,
    )
    if torch.is_grad_enabled():  # a gradient's input would be written over
        return compute_whole(call)
    return unet.run_layer(call)


def _join(parts: list[Tensor], start: int, stop: int | None) -> Tensor:
    """Return a slice of the frames of parts, their channels joined."""
    pieces = [part[start:stop] for part in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def norm_then_conv(layers, x: Tensor) -> NormThenConv:
    """Return a ResBlock's group norm and convolution over time, for an input like ``x``.

    layers: its in_layers or out_layers, the norm first and the convolution last.
    """
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


def has_expected_layout(block: VideoResBlock) -> bool:
    """Return whether the block's way through time is the one that ``forward_residual`` follows."""
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
        and not any(is_watched(module) for module in block.modules())
    )
