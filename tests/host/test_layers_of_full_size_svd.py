"""The full-size SVD, without its weights: meta tensors have shapes and take no memory."""

import pytest
from vcut.comfy_adapter import with_technique
from vcut.comfy_adapter.sampling_run import SamplingRun, run_facts
from vcut.comfy_adapter.settings import settings_of
from vcut.comfy_adapter.unet_in_run import UNetInRun
from vcut.tests.support.cross_attentions import find_cross_attentions
from vcut.vcut_core.cross_attention import CrossAttentionConfig

PLACES = [f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)]
PLACES += ["middle_block.1"]
PLACES += [f"output_blocks.{n}.1" for n in range(3, 12)]


def _count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_unet_has_the_parameters_of_svd_when_built_from_its_config(full_size):
    assert _count(full_size.model.diffusion_model.parameters()) == 1_524_623_082


def test_every_cross_attention_is_found_and_named(full_size):
    expected = [
        (f"diffusion_model.{place}.{stack}.0.attn2", kind)
        for place in PLACES
        for stack, kind in (("transformer_blocks", "spatial"), ("time_stack", "temporal"))
    ]
    assert len(expected) == 16 + 16
    assert sorted(find_cross_attentions(full_size.model.diffusion_model)) == sorted(expected)


def test_found_layers_hold_100_million_parameters(full_size):
    # to_q, to_k, to_v, to_out with its bias: 2 C^2 + 2 x 1024 C + C for width C.
    # 320: 860,480 in 10 layers; 640: 2,130,560 in 10; 1280: 5,899,520 in 12
    paths = [path for path, _ in find_cross_attentions(full_size.model.diffusion_model)]
    count = sum(_count(full_size.get_model_object(path).parameters()) for path in paths)
    assert count == 8_604_800 + 21_305_600 + 70_794_240


@pytest.mark.parametrize(
    ("temporal", "spatial", "spatial_count", "temporal_count"),
    [("cached", "cached", 16, 16), ("remove", "keep", 0, 16), ("keep", "cached", 16, 0)],
)
def test_only_the_wanted_layers_are_answered_in_a_run_and_none_after_it(
    full_size, temporal, spatial, spatial_count, temporal_count
):
    model = with_technique(full_size, CrossAttentionConfig(temporal, spatial))
    unet = full_size.model.diffusion_model
    facts = run_facts(model, (25, 4, 72, 128), model.model_options)
    run = SamplingRun(settings_of(model.model_options), facts)
    with UNetInRun(unet, run.techniques, is_copy=False):
        answered = [name for name, module in unet.named_modules() if "forward" in vars(module)]
    layers = [name for name in answered if name.endswith("attn2")]
    assert sum("transformer_blocks" in name for name in layers) == spatial_count
    assert sum("time_stack" in name for name in layers) == temporal_count
    blocks = [name for name in answered if not name.endswith("attn2")]
    assert sorted(blocks) == sorted(name.removesuffix(".attn2") for name in layers)
    assert not [name for name, module in unet.named_modules() if "forward" in vars(module)]
    assert full_size.object_patches == model.object_patches == {}
