"""The full-size SVD, without its weights: meta tensors have shapes and take no memory."""

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from vcut.nodes.comfy_adapter import (
    HostCrossAttention,
    find_cross_attentions,
    patch_cross_attentions,
)
from vcut.vcut_core.cross_attention import CrossAttentionConfig

# Of SVD and SVD-XT, from Stability AI's svd.yaml; heads come from ComfyUI's own config.
UNET = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 1024,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
}
PLACES = [f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)]
PLACES += ["middle_block.1"]
PLACES += [f"output_blocks.{n}.1" for n in range(3, 12)]


@pytest.fixture(scope="module")
def svd():
    config = comfy.supported_models.SVD_img2vid(UNET)
    config.set_inference_dtype(torch.float16, None)
    model = comfy.model_base.SVD_img2vid(config, device="meta")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def _count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_unet_has_the_parameters_of_svd_when_built_from_its_config(svd):
    assert _count(svd.model.diffusion_model.parameters()) == 1_524_623_082


def test_every_cross_attention_is_found_and_named(svd):
    expected = [
        (f"diffusion_model.{place}.{stack}.0.attn2", kind)
        for place in PLACES
        for stack, kind in (("transformer_blocks", "spatial"), ("time_stack", "temporal"))
    ]
    assert len(expected) == 16 + 16
    assert sorted(find_cross_attentions(svd.model.diffusion_model)) == sorted(expected)


def test_found_layers_hold_100_million_parameters(svd):
    # to_q, to_k, to_v, to_out with its bias: 2 C^2 + 2 x 1024 C + C for width C.
    # 320: 860,480 in 10 layers; 640: 2,130,560 in 10; 1280: 5,899,520 in 12
    paths = [path for path, _ in find_cross_attentions(svd.model.diffusion_model)]
    count = sum(_count(svd.get_model_object(path).parameters()) for path in paths)
    assert count == 8_604_800 + 21_305_600 + 70_794_240


@pytest.mark.parametrize(
    ("temporal", "spatial", "spatial_count", "temporal_count"),
    [("cached", "cached", 16, 16), ("remove", "keep", 0, 16), ("keep", "cached", 16, 0)],
)
def test_only_the_wanted_layers_are_replaced(svd, temporal, spatial, spatial_count, temporal_count):
    clone = patch_cross_attentions(svd, CrossAttentionConfig(temporal, spatial))
    paths = list(clone.object_patches)
    assert all(isinstance(layer, HostCrossAttention) for layer in clone.object_patches.values())
    assert sum("transformer_blocks" in path for path in paths) == spatial_count
    assert sum("time_stack" in path for path in paths) == temporal_count
    assert svd.object_patches == {}


def test_replacements_share_the_parameters_of_what_they_replace(svd):
    clone = patch_cross_attentions(svd, CrossAttentionConfig())
    for path, layer in clone.object_patches.items():
        original = dict(svd.get_model_object(path).named_parameters())
        own = dict(layer.named_parameters())
        assert own.keys() == original.keys()
        assert all(own[name] is original[name] for name in own)
        assert list(layer.buffers()) == []
