"""VCUT in a model that torch.compile has compiled, whole or in parts.

The backend ``eager`` traces and guards as inductor does, and needs no C++ compiler. The UNet has
one video transformer, as every further one takes seconds to trace.
"""

import pytest
import torch
from comfy.ldm.modules import attention
from comfy_api.torch_helpers import set_torch_compile_wrapper

MIDDLE = "diffusion_model.middle_block.1"
PARTS = [f"{MIDDLE}.transformer_blocks.0", f"{MIDDLE}.time_stack.0"]
STEPS, CUT_STEP = 4, 3


@pytest.fixture
def plain(make_small_svd):
    return make_small_svd(transformer_depth=[0], transformer_depth_output=[0, 0])


@pytest.fixture
def two_frames(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    # The host takes it on a GPU; its attention for CPUs looks for free memory, which cannot be
    # traced.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def count_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(model, keys=("diffusion_model",), fullgraph=False):
    clone = model.clone()
    set_torch_compile_wrapper(clone, backend="eager", keys=list(keys), fullgraph=fullgraph)
    return clone


def by_object_patch(model, **options):
    """Compile as packs did before the host's wrapper."""
    clone = model.clone()
    unet = clone.get_model_object("diffusion_model")
    clone.add_object_patch("diffusion_model", torch.compile(unet, backend="eager", **options))
    return clone


@pytest.mark.parametrize("compile_whole", [compiled, by_object_patch])
def test_whole_model_is_one_graph_for_each_batch_and_nothing_more(
    tiny, plain, with_vcut, difference, sample_cut_reference, two_frames, compile_whole, summaries
):
    # fullgraph: a break would be an error. A guided batch and an unguided one: two graphs.
    reference = sample_cut_reference(
        plain, steps=STEPS, last_guided_step=2, conditioning=two_frames
    )
    model = compile_whole(with_vcut(plain, CUT_STEP, STEPS), fullgraph=True)
    output = tiny.sample(model, steps=STEPS, conditioning=two_frames)
    assert difference(output, reference) < 1e-5
    assert count_graphs() == 2
    other = tiny.conditioning(seed=5, frames=2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = tiny.sample(model, steps=STEPS, conditioning=two_frames)
        tiny.sample(model, steps=STEPS, conditioning=other, seed=7)
    assert torch.equal(again, output)
    assert count_graphs() == 2
    # 2 guided evaluations of cond and uncond in one call each, 2 unguided: 4 calls of 2 layers.
    assert "6 of 8 UNet evaluations" in summaries()[0]
    assert "cross-attention in compiled code: 8 affine maps" in summaries()[0]


def test_same_model_without_vcut_is_stock_after_a_compiled_run(
    tiny, plain, with_vcut, difference, two_frames
):
    reference = tiny.sample(plain, steps=2, conditioning=two_frames)
    tiny.sample(compiled(with_vcut(plain, 2, 2)), steps=2, conditioning=two_frames)
    assert (
        difference(tiny.sample(compiled(plain), steps=2, conditioning=two_frames), reference) < 1e-5
    )
    assert torch.equal(tiny.sample(plain, steps=2, conditioning=two_frames), reference)


def test_removed_cross_attention_is_removed_in_compiled_code(
    tiny, plain, with_vcut, difference, two_frames, summaries
):
    patched = with_vcut(plain, temporal="remove")
    reference = tiny.sample(patched, steps=1, conditioning=two_frames)
    output = tiny.sample(compiled(patched, fullgraph=True), steps=1, conditioning=two_frames)
    assert difference(output, reference) < 1e-5
    assert "cross-attention in compiled code: 1 affine maps, 1 removed" in summaries()[1]


def test_compiled_parts_are_exact_and_compiled_once(
    tiny, plain, with_vcut, difference, sample_cut_reference, two_frames, summaries
):
    reference = sample_cut_reference(
        plain, steps=STEPS, last_guided_step=2, conditioning=two_frames
    )
    model = with_vcut(compiled(plain, PARTS), CUT_STEP, STEPS)
    output = tiny.sample(model, steps=STEPS, conditioning=two_frames)
    assert difference(output, reference) < 1e-5
    graphs = count_graphs()
    assert graphs > 0
    other = tiny.conditioning(seed=5, frames=2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = tiny.sample(model, steps=STEPS, conditioning=two_frames)
        tiny.sample(model, steps=STEPS, conditioning=other, seed=7)
    assert torch.equal(again, output)
    assert count_graphs() == graphs
    assert "cross-attention in compiled code: 8 affine maps" in summaries()[0]
    assert "another pack" not in summaries()[0]
