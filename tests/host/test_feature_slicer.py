"""VCUT Feature Slicer in the real ComfyUI: the same picture, in slices, and nothing left behind."""

import re

import comfy.model_management as management
import pytest
import torch
from comfy.ldm.modules.diffusionmodules import openaimodel
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from comfy_api.torch_helpers import set_torch_compile_wrapper
from vcut.comfy_adapter import prune_model, with_technique
from vcut.comfy_adapter.deferred_concat import DeferredConcat
from vcut.comfy_adapter.memory_estimate import MemoryEstimate
from vcut.nodes.feature_slicer import FeatureSlicer
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SCOPES, SlicingConfig

FRAMES = 3
STEPS = 2
# The small model of random weights enlarges rounding; in float64 there is none to speak of.
EXACT = 1e-6


@pytest.fixture(scope="module")
def small(make_small_svd):
    return make_small_svd(dtype=torch.float64)


@pytest.fixture(scope="module")
def conditioning(tiny):
    # 11 x 13 latent pixels, and 6 rows of frames: no number of slices below divides them all.
    positive, negative, latent = tiny.conditioning(frames=FRAMES)
    return positive, negative, {"samples": torch.zeros(FRAMES, 4, 11, 13)}


@pytest.fixture(scope="module")
def sample(tiny, conditioning):
    return lambda model, **kw: tiny.sample(
        model, **{"steps": STEPS, "conditioning": conditioning, **kw}
    )


@pytest.fixture(scope="module")
def expected(small, sample):
    return sample(small)


def sliced(model, scope="everything", slices=4):
    return FeatureSlicer.execute(model, slices, scope).result[0]


def _replaced_forwards(model) -> list[str]:
    named = model.model.diffusion_model.named_modules()
    return [name for name, module in named if "forward" in vars(module)]


# --- the same picture ---------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_whole_run_is_exact(tiny, unpatched, difference, scope):
    output = tiny.sample(sliced(tiny.model, scope, 3), steps=25)
    assert difference(output, unpatched) < 1e-5


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("slices", [2, 5, 64])
def test_sizes_that_do_not_divide_and_slices_beyond_the_rows_are_exact(
    small, sample, expected, difference, scope, slices
):
    assert difference(sample(sliced(small, scope, slices)), expected) < EXACT


@pytest.mark.parametrize("frames", [1, 4])
def test_other_numbers_of_frames_are_exact(tiny, small, difference, frames):
    options = {"steps": STEPS, "conditioning": tiny.conditioning(frames=frames)}
    reference = tiny.sample(small, **options)
    assert difference(tiny.sample(sliced(small), **options), reference) < EXACT


def test_one_slice_is_off(small, sample, expected, summaries):
    assert torch.equal(sample(sliced(small, slices=1)), expected)
    assert "slicing: off (as set)" in summaries()[-1]


@pytest.mark.parametrize("scope", SCOPES)
def test_half_precision_is_exact(tiny, make_small_svd, conditioning, scope):
    options = {"steps": STEPS, "conditioning": conditioning}
    half = make_small_svd(dtype=torch.bfloat16)
    expected = tiny.sample(half, **options)
    assert torch.equal(tiny.sample(sliced(half, scope), **options), expected)


# --- it does slice ------------------------------------------------------------------------------


def _rows_seen(model, module_path: str, run) -> list[int]:
    """Return the rows of each call of a module during ``run``."""
    rows = []
    module = model.model.diffusion_model.get_submodule(module_path)
    handle = module.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    try:
        run()
    finally:
        handle.remove()
    return rows


@pytest.mark.parametrize(
    ("scope", "path", "rows"),
    [
        # 2 conds x 3 frames; 2 conds x 11 x 13 pixels; a feed-forward takes tokens
        ("blocks", "middle_block.1.transformer_blocks.0.attn1", [1, 2, 1, 2]),
        ("blocks", "middle_block.1.time_stack.0.attn1", [71, 72, 71, 72]),
        ("feed_forward", "middle_block.1.transformer_blocks.0.attn1", [6]),
        ("feed_forward", "middle_block.1.time_stack.0.ff.net", [214, 215, 214, 215]),
        ("everything", "middle_block.0.in_layers", [6]),  # watched, so it is left alone
    ],
)
def test_rows_of_each_slice(small, sample, scope, path, rows):
    seen = _rows_seen(small, path, lambda: sample(sliced(small, scope), steps=1))
    assert seen == rows


def test_residual_block_joins_its_input_slice_by_slice(small, sample, expected, difference):
    # In the stock host the last residual block gets 64 channels of all 6 frames at once.
    block = small.model.diffusion_model.output_blocks[-1][0]
    assert type(block) is VideoResBlock and block.channels == 64
    shapes, convolution = [], block.in_layers[2]
    # A class of its own, since a forward or a hook on the module would be taken for a watcher's.
    original = type(convolution)
    convolution.__class__ = type("Watched", (original,), {"forward": _recorder(shapes, original)})
    try:
        output = sample(sliced(small), steps=1)
    finally:
        convolution.__class__ = original
    assert shapes == [(1, 64, 11, 13), (2, 64, 11, 13), (1, 64, 11, 13), (2, 64, 11, 13)]
    assert difference(output, sample(small, steps=1)) < EXACT


def _recorder(shapes, original):
    def forward(self, x, *args, **kwargs):
        shapes.append(tuple(x.shape))
        return original.forward(self, x, *args, **kwargs)

    return forward


# --- nothing stays ------------------------------------------------------------------------------


def test_model_without_the_node_is_bit_equal_after_it(small, sample, expected):
    clone = sliced(small)
    sample(clone)
    assert _replaced_forwards(small) == []
    assert "memory_required" not in vars(small.model) and "memory_required" not in vars(small)
    assert torch.equal(sample(small), expected)
    assert small.object_patches == {} and clone.object_patches == {}


def test_last_node_wins_when_two_follow_each_other(small, sample, summaries):
    sample(sliced(sliced(small, "everything", 8), "blocks", 2))
    assert "slicing: blocks in 2 slices (as set)" in summaries()[-1]


# --- beside VCUT's other nodes --------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("temporal", ["cached", "remove"])
def test_both_nodes_in_any_order_are_exact(
    small, sample, with_vcut, difference, summaries, scope, temporal
):
    reference = sample(with_vcut(small, 2, 2, temporal=temporal))
    for model in (
        sliced(with_vcut(small, 2, 2, temporal=temporal), scope),
        with_vcut(sliced(small, scope), 2, 2, temporal=temporal),
    ):
        assert difference(sample(model), reference) < EXACT
        assert "3 of 4 UNet evaluations" in summaries()[-1]
        assert f"slicing: {scope} in 4 slices" in summaries()[-1]
        assert "another pack" not in summaries()[-1]


def test_pruned_model_is_exact(tiny, make_small_svd, sample, expected, difference):
    pruned = prune_model(make_small_svd(dtype=torch.float64), CrossAttentionConfig())
    assert difference(sample(sliced(pruned)), expected) < EXACT


def test_cond_and_uncond_one_by_one_are_exact(
    small, sample, with_vcut, expected, difference, monkeypatch
):
    monkeypatch.setattr(MemoryEstimate, "__call__", lambda *args, **kwargs: 1e30)
    assert difference(sample(sliced(with_vcut(small))), expected) < EXACT


# --- beside others --------------------------------------------------------------------------------


PATCHES = {
    "attn1_patch": lambda seen: lambda n, context, value, options: (
        seen.append(n.shape[0]), (1.1 * n, context, value))[1],
    "attn2_patch": lambda seen: lambda n, context, value, options: (
        seen.append(n.shape[0]), (n, context, 0.5 * value))[1],
    "attn1_output_patch": lambda seen: lambda n, options: (seen.append(n.shape[0]), 1.1 * n)[1],
    "attn2_output_patch": lambda seen: lambda n, options: (seen.append(n.shape[0]), 1.1 * n)[1],
    "middle_patch": lambda seen: lambda x, options: (seen.append(x.shape[0]), 1.1 * x)[1],
    "input_block_patch": lambda seen: lambda h, options: (seen.append(h.shape[0]), 1.1 * h)[1],
    "output_block_patch": lambda seen: lambda h, skip, options: (
        seen.append((*h.shape, *skip.shape)), (h, 0.9 * skip))[1],
}  # fmt: skip


@pytest.mark.parametrize("kind", PATCHES)
def test_patches_of_other_packs_get_what_they_got(
    small, sample, expected, difference, summaries, kind
):
    seen = []
    patched = small.clone()
    patched.set_model_patch(PATCHES[kind](seen), kind)
    reference = sample(patched)
    assert difference(reference, expected) > 1e-4
    without, seen[:] = list(seen), []
    assert difference(sample(sliced(patched)), reference) < EXACT
    assert seen == without
    is_inside = kind not in ("input_block_patch", "output_block_patch")
    steps_aside = "block not sliced: another pack patches it" in summaries()[-1]
    assert steps_aside == is_inside


@pytest.mark.parametrize("is_vcut", [False, True])
def test_replacement_of_one_block_leaves_the_others_sliced(
    small, sample, difference, summaries, with_vcut, is_vcut
):
    seen = []

    def replace(q, k, v, options):
        seen.append(q.shape[0])
        return 0.5 * v.expand(q.shape)

    patched = small.clone()
    patched.set_model_attn2_replace(replace, "middle", 0)
    reference = sample(patched)
    without, seen[:] = list(seen), []
    model = with_vcut(patched) if is_vcut else patched
    assert difference(sample(sliced(model)), reference) < EXACT
    assert seen == without
    # The spatial and the temporal block of one place, in each of two steps.
    assert "block not sliced: another pack patches it (4 calls)" in summaries()[-1]


def test_layer_that_a_slice_calls_is_counted_once(small, sample, with_vcut, summaries, tiny):
    # Two start pictures are two tokens: each cross-attention is computed, slice by slice.
    options = {"conditioning": tiny.conditioning(frames=FRAMES, pictures=2)}
    for model in (with_vcut(small), sliced(with_vcut(small))):
        sample(model, **options)
    reason = r"cross-attention computed in full: several image tokens \(\d+ calls\)"
    whole, in_slices = (re.findall(reason, line) for line in summaries()[-2:])
    assert whole and in_slices == whole


def test_no_concat_is_deferred_past_a_patch_that_is_offered_it_first(small, sample, difference):
    # Newer hosts offer a residual block's input to it; this one's other layers' alone.
    seen = []

    def handler(layer, x, *_arguments):
        seen.append(x.shape[1])
        return 1.1 * layer(x)

    patched = small.clone()
    patched.set_model_patch((torch.nn.Conv2d, handler), "forward_timestep_embed_patch")
    reference = sample(patched)
    deferred, defer = [], DeferredConcat.defer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeferredConcat, "defer", lambda *a: (deferred.append(a), defer(*a))[1])
        assert difference(sample(sliced(patched)), reference) < EXACT
        assert not deferred
        sample(sliced(small))
        assert deferred
    assert seen


def test_forward_of_another_pack_is_left_alone(small, sample, difference):
    block = small.get_model_object("diffusion_model.middle_block.1.transformer_blocks.0")
    seen = []

    def forward(x, context=None, transformer_options={}):
        seen.append(x.shape[0])
        return 1.1 * type(block).forward(block, x, context, transformer_options)

    patched = small.clone()
    patched.add_object_patch("diffusion_model.middle_block.1.transformer_blocks.0.forward", forward)
    reference = sample(patched)
    without, seen[:] = list(seen), []
    assert difference(sample(sliced(patched)), reference) < EXACT
    assert seen == without == [2 * FRAMES] * STEPS


def test_hook_on_a_residual_block_sees_its_whole_input(small, sample, expected, difference):
    path = "output_blocks.1.0"
    rows = _rows_seen(small, path, lambda: sample(sliced(small), steps=1))
    assert rows == [2 * FRAMES]


def test_hook_on_a_cross_attention_of_ours_sees_whole_batches(
    small, sample, with_vcut, expected, difference
):
    model = sliced(with_vcut(small))
    path = "diffusion_model.middle_block.1.transformer_blocks.0.attn2"
    rows = []
    handle = model.get_model_object(path).register_forward_pre_hook(
        lambda _module, inputs: rows.append(len(inputs[0]))
    )
    output = sample(model)
    handle.remove()
    assert rows == [2 * FRAMES] * STEPS
    assert difference(output, expected) < EXACT


def test_skips_stay_with_the_host_when_another_pack_walks_through_the_blocks(
    small, sample, expected, difference, monkeypatch
):
    original, channels = openaimodel.forward_timestep_embed, []

    def walk(layers, x, *args, **kwargs):
        channels.append(x.shape[1])
        return original(layers, x, *args, **kwargs)

    monkeypatch.setattr(openaimodel, "forward_timestep_embed", walk)
    assert difference(sample(sliced(small)), expected) < EXACT
    # Two ways in, the middle, two ways out with a skip joined to each.
    assert channels == [8, 32, 32, 64, 64] * STEPS


def test_lora_on_sliced_layers_is_exact(small, sample, difference):
    generator = torch.Generator().manual_seed(3)
    patched = small.clone()
    keys = [
        key
        for key, weight in small.model.state_dict().items()
        if key.startswith("diffusion_model.") and key.endswith("weight") and "time" in key
    ]
    patches = {}
    for key in keys:  # group norms and convolutions of the residual blocks among them
        shape = small.get_model_object(key).shape
        patches[key] = ("diff", (0.05 * torch.randn(shape, generator=generator),))
    assert len(patched.add_patches(patches)) == len(keys)
    reference = sample(patched)
    assert difference(sample(sliced(patched)), reference) < EXACT
    after = sliced(small)
    after.add_patches(patches)
    assert difference(sample(after), reference) < EXACT


def test_weights_that_are_fetched_when_used_give_the_same(
    small, sample, expected, difference, monkeypatch
):
    management.unload_all_models()
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
    free = 2 * management.minimum_inference_memory()

    def get_free_memory(_device=None, torch_free_too=False):
        return (free, free) if torch_free_too else free

    monkeypatch.setattr(management, "get_free_memory", get_free_memory)
    output = sample(sliced(small))
    assert small.model.model_lowvram
    management.unload_all_models()
    assert difference(output, expected) < EXACT


def test_context_windows_are_exact(tiny, biased, with_windows, difference):
    options = {"steps": 3, "conditioning": tiny.conditioning(frames=4)}
    reference = tiny.sample(with_windows(biased), **options)
    assert difference(tiny.sample(with_windows(sliced(biased)), **options), reference) < 1e-5


def test_compiled_model_is_exact_and_leaves_the_compiled_code_free_of_slices(
    tiny, make_small_svd, difference
):
    plain = make_small_svd(
        dtype=torch.float64, transformer_depth=[0], transformer_depth_output=[0, 0]
    )
    options = {"steps": STEPS, "conditioning": tiny.conditioning(frames=2)}
    reference = tiny.sample(plain, **options)
    torch._dynamo.reset()
    compiled = plain.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model"])
    for _ in range(2):
        assert difference(tiny.sample(sliced(compiled), **options), reference) < EXACT
        assert difference(tiny.sample(compiled, **options), reference) < EXACT
    torch._dynamo.reset()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slices", "scope"), [(65, "blocks"), (-1, "blocks"), (4, "all")])
def test_wrong_inputs_are_one_sentence(small, slices, scope):
    with pytest.raises(ValueError, match="VCUT Feature Slicer: expected .* Change it in the node"):
        FeatureSlicer.execute(small, slices, scope)


def test_settings_hang_on_the_clone_alone(small):
    clone = with_technique(small, SlicingConfig(4, "everything"))
    assert clone.model_options["transformer_options"]["vcut"].configs["slicing"].slices == 4
    assert "vcut" not in small.model_options["transformer_options"]
