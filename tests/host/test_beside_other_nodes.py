"""Both nodes beside ComfyUI's own model nodes, wherever in the chain they stand.

The references are the same graph without VCUT, or that graph sampled by a guider of the tests' own
that ends guidance itself.
"""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
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


# --- torch.compile ----------------------------------------------------------------------------

BACKEND = "eager"  # traces and guards as inductor does, and needs no C++ compiler


MIDDLE = "diffusion_model.middle_block.1"
# The whole model, as TorchCompileModel does; and single blocks, as other packs do.
COMPILED = {
    "whole": ["diffusion_model"],
    "blocks": [f"{MIDDLE}.transformer_blocks.0", f"{MIDDLE}.time_stack.0"],
}


def _compiled(model, keys):
    clone = model.clone()
    set_torch_compile_wrapper(clone, backend=BACKEND, keys=keys)
    return clone


@pytest.fixture
def count_graphs():
    """Return a function: how many graphs torch.compile has made in this test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize(("part", "is_compiled_first"), [("whole", False), ("blocks", True)])
def test_compiled_model_is_exact_and_compiled_once(
    tiny, make_small_svd, with_vcut, difference, sample_cut_reference, two_frames, count_graphs,
    part, is_compiled_first,
):  # fmt: skip
    # One video transformer, as every further one takes seconds to compile.
    plain = make_small_svd(transformer_depth=[0], transformer_depth_output=[0, 0])
    reference = sample_cut_reference(plain, steps=4, last_guided_step=2, conditioning=two_frames)
    if is_compiled_first:
        model = with_vcut(_compiled(plain, COMPILED[part]), 3, 4)
    else:
        model = _compiled(with_vcut(plain, 3, 4), COMPILED[part])
    output = tiny.sample(model, steps=4, conditioning=two_frames)
    assert difference(output, reference) < 1e-5
    graphs = count_graphs()
    assert graphs > 0
    other = tiny.conditioning(seed=5, frames=2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = tiny.sample(model, steps=4, conditioning=two_frames)
        tiny.sample(model, steps=4, conditioning=other, seed=7)
    assert torch.equal(again, output)
    assert count_graphs() == graphs
