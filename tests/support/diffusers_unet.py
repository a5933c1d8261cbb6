"""SVD's UNet in Hugging Face diffusers with a checkpoint's weights, and a sampler for it.

A second implementation to compare with. Nothing here imports ComfyUI or VCUT.
"""

from contextlib import contextmanager

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

# Modules of a checkpoint -> of diffusers; what stands in no table keeps its name.
AROUND_BLOCKS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
IN_RESIDUAL_BLOCK = {  # once for the frames and once, in time_stack, over time
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
IN_TRANSFORMER = {
    "time_stack": "temporal_transformer_blocks",
    "time_pos_embed.0": "time_pos_embed.linear_1",
    "time_pos_embed.2": "time_pos_embed.linear_2",
}
RESIDUAL_EPS = 1e-5  # of SVD's own code and ComfyUI; diffusers takes 1e-6 beside attention


def build_unet(weights: dict[str, Tensor], *, levels: int, layers: int, head_width: int):
    """Return diffusers' UNet in fp32 with the weights of a UNet that has attention in every level.

    weights: under a checkpoint's names, without their prefix; all levels are equally wide.
    layers: residual blocks of one level on the way down. head_width: channels of one head.
    Raises RuntimeError when a weight is missing.
    """
    width = weights["input_blocks.0.0.weight"].shape[0]
    context_width = weights["middle_block.1.transformer_blocks.0.attn2.to_v.weight"].shape[1]
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * levels,
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) * levels,
        block_out_channels=(width,) * levels,
        layers_per_block=layers,
        cross_attention_dim=context_width,
        num_attention_heads=width // head_width,
    )
    unet.load_state_dict(in_layout_of_diffusers(weights, levels, layers), strict=True)
    for name, module in unet.named_modules():
        if "_res_block." in name and isinstance(module, torch.nn.GroupNorm):
            module.eps = RESIDUAL_EPS
    return unet.eval().requires_grad_(False)


def in_layout_of_diffusers(weights: dict[str, Tensor], levels: int, layers: int):
    """Return the weights of a checkpoint under the names that diffusers gives them."""
    places = AROUND_BLOCKS | _numbered_blocks(levels, layers)
    return {_name_in_diffusers(name, places): weight for name, weight in weights.items()}


def _numbered_blocks(levels: int, layers: int) -> dict[str, str]:
    """Return the table of the blocks that a checkpoint numbers through and diffusers by level."""
    places = {}
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = level * (layers + 1)
        for i in range(layers):
            places[f"input_blocks.{first + i + 1}.0"] = f"{down}.resnets.{i}"
            places[f"input_blocks.{first + i + 1}.1"] = f"{down}.attentions.{i}"
        for i in range(layers + 1):
            places[f"output_blocks.{first + i}.0"] = f"{up}.resnets.{i}"
            places[f"output_blocks.{first + i}.1"] = f"{up}.attentions.{i}"
        places[f"input_blocks.{first + layers + 1}.0.op"] = f"{down}.downsamplers.0.conv"
        places[f"output_blocks.{first + layers}.2.conv"] = f"{up}.upsamplers.0.conv"
    return places


def _name_in_diffusers(name: str, places: dict[str, str]) -> str:
    place = next(place for place in places if name.startswith(f"{place}."))
    block, inside = places[place], name.removeprefix(f"{place}.")
    if ".resnets." in block and not inside.startswith("time_mixer."):
        axis = "temporal" if inside.startswith("time_stack.") else "spatial"
        inside = inside.removeprefix("time_stack.")
        return f"{block}.{axis}_res_block.{_renamed(inside, IN_RESIDUAL_BLOCK)}"
    return f"{block}.{_renamed(inside, IN_TRANSFORMER)}"


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def remove_temporal_cross_attention(unet) -> None:
    """Take cross-attention out of the temporal blocks, as diffusers does when it has no context."""
    for name, block in unet.named_modules():
        if "temporal_transformer_blocks." in name and hasattr(block, "attn2"):
            block.attn2 = None


@contextmanager
def averaged_with_zero_embedding(unet):
    """Let every cross-attention L give 1/2 (L(y) + L(0)) for an embedding y.

    Source: Taghipour et al. 2025, eq. 4, https://arxiv.org/abs/2407.19205.
    """

    def average(attention, inputs, named_inputs, output):
        zero = torch.zeros_like(named_inputs["encoder_hidden_states"])
        named_inputs = named_inputs | {"encoder_hidden_states": zero}
        return (output + attention.forward(*inputs, **named_inputs)) / 2

    layers = [layer for name, layer in unet.named_modules() if name.endswith(".attn2")]
    hooks = [layer.register_forward_hook(average, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class EDMSampler:
    """Samples with Euler steps and guidance that grows linearly from frame to frame.

    picture: first frame's latent (1, 4, h, w). embedding: (1, 1, D). numbers: fps - 1, motion
    bucket and augmentation level, (1, 3).
    Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 7 and algorithm 1 without its
    correction, with sigma_data 1 for a network that predicts v, as in Blattmann et al. 2023 (SVD),
    https://arxiv.org/abs/2311.15127.
    """

    def __init__(self, unet, picture: Tensor, embedding: Tensor, numbers: Tensor) -> None:
        self.unet, self.picture, self.embedding, self.numbers = unet, picture, embedding, numbers

    @torch.no_grad()
    def latents(self, x: Tensor, sigmas: Tensor, cfg: float | None = None) -> list[Tensor]:
        """Return the latent (T, 4, h, w) at every sigma; x is the first of them.

        sigmas: descending to 0. cfg: of the last frame; None predicts with the picture alone.
        """
        latents = [x]
        for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
            if cfg is None:
                (denoised,) = self._denoised(x, sigma, 1)
            else:
                scale = torch.linspace(1, cfg, len(x))[:, None, None, None]
                unguided, guided = self._denoised(x, sigma, 0, 1)
                denoised = unguided + scale * (guided - unguided)
            x = x + (next_sigma - sigma) * (x - denoised) / sigma
            latents.append(x)
        return latents

    def _denoised(self, x: Tensor, sigma: Tensor, *strengths: int) -> Tensor:
        """Return D(x; sigma) for each strength: 1 with the picture, 0 with zeros in its place."""
        variance = 1 + sigma**2
        strength = torch.tensor(strengths)[:, None, None]  # (B, 1, 1), as the embeddings
        pictures = (strength[..., None, None] * self.picture).expand(-1, len(x), -1, -1, -1)
        rows = x.expand(len(strengths), *x.shape)
        v = self.unet(
            torch.cat([rows / variance**0.5, pictures], 2),  # (B, T, 8, h, w)
            sigma.log() / 4,
            strength * self.embedding,
            self.numbers.expand(len(strengths), -1),
        ).sample
        return rows / variance - v * sigma / variance**0.5
