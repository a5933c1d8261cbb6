"""Both nodes beside ComfyUI's own model nodes, wherever in the chain they stand.

The references are the same graph without VCUT, or that graph sampled by a guider of the tests' own
that ends guidance itself.
"""

import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_model_advanced import (
    ModelSamplingContinuousEDM,
    ModelSamplingDiscrete,
    RescaleCFG,
)
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance, VideoTriangleCFGGuidance
from vcut.comfy_adapter import with_technique
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig


def _lora(model):
    """A patch on a layer that VCUT leaves alone; attn2 has a file of its own."""
    clone = model.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0.weight"
    assert clone.add_patches({key: ("diff", (torch.eye(64),))})
    return clone


OTHER_NODES = {
    "LoRA": _lora,
    "VideoLinearCFGGuidance": lambda model: VideoLinearCFGGuidance().patch(model, 1.0)[0],
    "VideoTriangleCFGGuidance": lambda model: VideoTriangleCFGGuidance().patch(model, 1.0)[0],
    "RescaleCFG": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "FreeU": lambda model: _free_u(FreeU, model, 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": lambda model: _free_u(FreeU_V2, model, 1.3, 1.4, 0.9, 0.2),
    "PerturbedAttentionGuidance": lambda model: PerturbedAttentionGuidance.execute(
        model, 3.0
    ).result[0],
    "ModelSamplingContinuousEDM": lambda model: ModelSamplingContinuousEDM().patch(
        model, "v_prediction", 120.0, 0.002
    )[0],
    "ModelSamplingDiscrete": lambda model: ModelSamplingDiscrete().patch(
        model, "v_prediction", False
    )[0],
}


def _free_u(node, model, *strengths):
    """Patch with FreeU, which acts on layers 2 and 4 times as wide as the model says it is."""
    config = model.model.model_config.unet_config
    width = config["model_channels"]
    config["model_channels"] = width // 2
    try:
        return node().patch(model, *strengths)[0]
    finally:
        config["model_channels"] = width


# L: VCUT Patch SVD Model, G: VCUT Guidance Scheduler, o: the other node
ORDERS = ("oLG", "LGo", "GoL")


def _chain(order, model, other, guidance):
    nodes = {
        "L": lambda model: with_technique(model, CrossAttentionConfig()),
        "G": lambda model: with_technique(model, guidance),
        "o": other,
    }
    for letter in order:
        model = nodes[letter](model)
    return model


@pytest.fixture(scope="module")
def two_frames(tiny):
    return tiny.conditioning(frames=2)


@pytest.mark.parametrize("name", OTHER_NODES)
def test_never_cut_vcut_changes_nothing_beside(tiny, biased, difference, two_frames, name):
    other = OTHER_NODES[name]
    reference = tiny.sample(other(biased), steps=3, conditioning=two_frames)
    assert difference(reference, tiny.sample(biased, steps=3, conditioning=two_frames)) > 1e-4
    for order in ORDERS[:2]:
        model = _chain(order, biased, other, GuidanceConfig(4, 3))
        output = tiny.sample(model, steps=3, conditioning=two_frames)
        assert difference(output, reference) < 1e-5, order
    again = tiny.sample(other(biased), steps=3, conditioning=two_frames)
    assert torch.equal(again, reference), "VCUT stays on after it is bypassed"


@pytest.mark.parametrize("name", OTHER_NODES)
def test_cut_gives_the_averaged_conditional_prediction_beside(
    tiny, biased, difference, sample_cut_reference, two_frames, name
):
    other = OTHER_NODES[name]
    reference = sample_cut_reference(
        other(biased), steps=3, last_guided_step=1, conditioning=two_frames
    )
    for order in ORDERS:
        model = _chain(order, biased, other, GuidanceConfig(2, 3))
        output = tiny.sample(model, steps=3, conditioning=two_frames)
        assert difference(output, reference) < 1e-5, order


def test_the_extra_evaluations_of_perturbed_attention_are_named(
    tiny, with_vcut, traced, summaries, two_frames
):
    other = OTHER_NODES["PerturbedAttentionGuidance"]
    model, trace = traced(other(with_vcut(tiny.model, 2, 3)))
    tiny.sample(model, steps=3, conditioning=two_frames)
    # step 1: uncond with cond, and the perturbed cond; steps 2 and 3: cond, and the perturbed one
    assert trace == [[1, 0], [0], [0], [0], [0], [0]]
    assert "7 of 9 UNet evaluations" in summaries()[0]
    assert "not cut: another node evaluates one cond alone (1 call)" in summaries()[0]


# --- attention of another pack ----------------------------------------------------------------


@pytest.mark.parametrize("is_override_first", [True, False])
def test_attention_of_another_pack_does_all_that_is_left(
    tiny, with_vcut, difference, two_frames, is_override_first
):
    """Packs that bring faster attention (Sage) override the host's function for a model."""
    calls = []

    def attention(host_attention, query, key, *args, **kwargs):
        calls.append(key.shape[1])
        return host_attention(query, key, *args, **kwargs)

    def overridden(model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = attention
        return clone

    reference = tiny.sample(overridden(tiny.model), steps=2, conditioning=two_frames)
    stock = list(calls)
    calls.clear()
    order = [overridden, with_vcut] if is_override_first else [with_vcut, overridden]
    model = tiny.model
    for node in order:
        model = node(model)
    output = tiny.sample(model, steps=2, conditioning=two_frames)
    assert difference(output, reference) < 1e-5
    # 2 steps of 16 transformers: self-attention over space and time, cross-attention over 1 token.
    assert len(stock) == 2 * 16 * 4
    assert stock.count(1) == 2 * 16 * 2
    assert len(calls) == 2 * 16 * 2
