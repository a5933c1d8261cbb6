"""VCUT Patch SVD Model on a real ComfyUI: what it computes, what it counts, whom it lets through.

Reference runs use ComfyUI alone, changed by hooks of the test's own where they must differ.
"""

import node_helpers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from vcut.comfy_adapter import with_technique
from vcut.vcut_core.cross_attention import CrossAttentionConfig

SAMPLERS = (("euler", 25), ("heun", 6), ("dpmpp_2m_sde", 6), ("uni_pc", 6))  # and steps
CACHED = CrossAttentionConfig()
REMOVED = CrossAttentionConfig(temporal="remove")
KEPT = CrossAttentionConfig(temporal="keep", spatial="keep")


def _zeros(module, args, kwargs, output):
    return torch.zeros_like(output)


# --- the picture ------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
def test_cached_equals_the_unpatched_model(tiny, biased, difference, sampler, steps):
    options = {"sampler": sampler, "steps": steps, "conditioning": tiny.conditioning(frames=2)}
    unpatched = tiny.sample(biased, **options)
    cached = tiny.sample(with_technique(biased, CACHED), **options)
    assert difference(cached, unpatched) < 1e-5


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
def test_remove_equals_zeros_from_every_temporal_layer(tiny, biased, difference, sampler, steps):
    options = {"sampler": sampler, "steps": steps, "conditioning": tiny.conditioning(frames=2)}
    with tiny.hooked(_zeros, "temporal"):
        reference = tiny.sample(biased, **options)
    removed = tiny.sample(with_technique(biased, REMOVED), **options)
    assert difference(removed, reference) < 1e-5


def test_remove_changes_the_picture_when_compared_with_cached(tiny, biased, difference):
    cached = tiny.sample(with_technique(biased, CACHED), steps=4)
    removed = tiny.sample(with_technique(biased, REMOVED), steps=4)
    assert difference(removed, cached) > 1e-2


def test_output_is_bit_equal_when_both_kinds_are_kept(tiny, biased):
    kept = tiny.sample(with_technique(biased, KEPT), steps=4)
    assert torch.equal(kept, tiny.sample(biased, steps=4))


@pytest.mark.parametrize(("temporal", "spatial"), [("cached", "keep"), ("keep", "cached")])
def test_one_kind_alone_is_cached_when_the_other_is_kept(
    tiny, biased, difference, summaries, temporal, spatial
):
    config = CrossAttentionConfig(temporal, spatial)
    output = tiny.sample(with_technique(biased, config), steps=4)
    assert difference(output, tiny.sample(biased, steps=4)) < 1e-5
    # 16 layers; evaluated in step 1, reused in steps 2 to 4
    assert "cross-attention: 16 computed, 48 from cache;" in summaries()[0]


def test_last_config_wins_when_applied_twice(tiny, biased):
    first = with_technique(biased, CACHED)
    tiny.sample(first, steps=1)  # leaves the first one's layers in the shared model
    twice = tiny.sample(with_technique(first, REMOVED), steps=4)
    assert torch.equal(twice, tiny.sample(with_technique(biased, REMOVED), steps=4))


def test_nothing_is_left_when_keep_follows_remove(tiny, biased):
    first = with_technique(biased, REMOVED)
    tiny.sample(first, steps=1)
    kept = with_technique(first, KEPT)
    assert kept.object_patches == {}
    assert torch.equal(tiny.sample(kept, steps=4), tiny.sample(biased, steps=4))


# --- what is counted --------------------------------------------------------------------------


def test_each_affine_map_is_evaluated_once_when_conds_share_a_call(tiny, summaries):
    tiny.sample(with_technique(tiny.model, CACHED), steps=4)
    # 32 layers: evaluated in step 1, reused in steps 2 to 4
    assert "cross-attention: 32 computed, 96 from cache;" in summaries()[0]


def test_each_affine_map_is_evaluated_once_a_branch_when_conds_are_split(
    tiny, traced, summaries, split_conds
):
    model, trace = traced(with_technique(tiny.model, CACHED))
    tiny.sample(model, steps=4)
    assert trace == [[1], [0]] * 4  # or the test would not test a split
    # 32 layers x 2 branches in step 1, reused in steps 2 to 4
    line = summaries()[0]
    assert "8 of 8 UNet evaluations; cross-attention: 64 computed, 192 from cache;" in line


def test_conds_that_are_split_give_the_same_picture(tiny, biased, difference, split_conds):
    split = tiny.sample(with_technique(biased, CACHED), steps=4)
    assert difference(split, tiny.sample(biased, steps=4)) < 1e-5


def test_split_conds_equal_batched_ones(tiny, biased, difference, monkeypatch):
    model = with_technique(biased, CACHED)
    batched = tiny.sample(model, steps=4)
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda *args, **kwargs: 1e30)
    assert difference(tiny.sample(model, steps=4), batched) < 1e-5


def test_removed_layers_are_counted_when_the_run_ends(tiny, summaries):
    tiny.sample(with_technique(tiny.model, REMOVED), steps=4)
    # 16 spatial maps once, then 3 times reused; 16 temporal layers removed in each of 4 steps
    assert "cross-attention: 16 computed, 48 from cache, 64 removed;" in summaries()[0]


# --- embeddings of other shapes ---------------------------------------------------------------


@pytest.mark.parametrize("config", [CACHED, REMOVED])
def test_several_embedding_tokens_compute_what_the_model_would(tiny, summaries, config):
    conditioning = tiny.conditioning(pictures=3)
    assert conditioning[0][0][0].shape[1] == 3
    hooked_kinds = ("temporal",) if config is REMOVED else ()
    with tiny.hooked(_zeros, *hooked_kinds):
        reference = tiny.sample(steps=4, conditioning=conditioning)
    model = with_technique(tiny.model, config)
    output = tiny.sample(model, steps=4, conditioning=conditioning)
    assert torch.equal(output, reference)
    layers = 16 if config is REMOVED else 32
    reason = "cross-attention computed in full: several image tokens"
    assert f"{reason} ({layers * 4} calls)" in summaries()[0]


def test_each_frame_keeps_its_own_embedding_when_the_batch_has_one_for_each(
    tiny, biased, difference
):
    pictures = [tiny.conditioning(seed) for seed in range(4)]
    embeddings = torch.cat([positive[0][0] for positive, _, _ in pictures])  # (4, 1, D)
    _, negative, latent = pictures[0]
    conditioning = ([[embeddings, pictures[0][0][0][1]]], negative, latent)
    reference = tiny.sample(biased, steps=4, conditioning=conditioning)
    model = with_technique(biased, CACHED)
    assert difference(tiny.sample(model, steps=4, conditioning=conditioning), reference) < 1e-5


def test_temporal_layers_follow_their_own_embedding_when_a_cond_has_two(tiny, biased, difference):
    positive, negative, latent = tiny.conditioning()
    other = tiny.conditioning(seed=5)[0][0][0]
    both = node_helpers.conditioning_set_values(positive, {"time_conditioning": other})
    none = node_helpers.conditioning_set_values(
        negative, {"time_conditioning": torch.zeros_like(other)}
    )
    conditioning = (both, none, latent)
    reference = tiny.sample(biased, steps=4, conditioning=conditioning)
    assert difference(reference, tiny.sample(biased, steps=4)) > 1e-4
    model = with_technique(biased, CACHED)
    assert difference(tiny.sample(model, steps=4, conditioning=conditioning), reference) < 1e-5


def test_two_pictures_in_one_cond_are_kept_apart(tiny, biased, difference, summaries):
    positive, negative, latent = tiny.conditioning()
    conditioning = (positive + tiny.conditioning(seed=5)[0], negative, latent)
    reference = tiny.sample(biased, steps=4, conditioning=conditioning)
    model = with_technique(biased, CACHED)
    assert difference(tiny.sample(model, steps=4, conditioning=conditioning), reference) < 1e-5
    assert "12 of 12 UNet evaluations; cross-attention: 32 computed" in summaries()[0]


# --- other packs ------------------------------------------------------------------------------


def _recording_attn2_patch(seen):
    """An attn2_patch that halves the value, and notes what it was given."""

    def patch(n, context, value, extra_options):
        seen.append((n.shape, context.clone(), value.clone(), extra_options["block"]))
        return n, context, value * 0.5

    return patch


def test_attn2_patch_of_another_pack_gets_and_does_what_it_did(tiny, biased, difference):
    seen, seen_beside_vcut = [], []
    reference_model = biased.clone()
    reference_model.set_model_attn2_patch(_recording_attn2_patch(seen))
    model = with_technique(biased, CACHED)
    model.set_model_attn2_patch(_recording_attn2_patch(seen_beside_vcut))
    reference = tiny.sample(reference_model, steps=3)
    assert difference(tiny.sample(model, steps=3), reference) < 1e-5
    assert difference(reference, tiny.sample(biased, steps=3)) > 1e-4
    assert len(seen) == len(seen_beside_vcut) == 32 * 3
    for one, other in zip(seen, seen_beside_vcut, strict=True):
        assert one[0] == other[0] and one[3] == other[3]
        assert torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])


def test_attn2_patch_is_never_stale_when_it_changes_the_context_by_step(tiny, biased, difference):
    def patch(n, context, value, extra_options):
        sigma = extra_options["sigmas"][0]
        return n, context / (1 + sigma), None  # None: attention takes the value from the context

    reference_model = biased.clone()
    reference_model.set_model_attn2_patch(patch)
    reference = tiny.sample(reference_model, steps=3)
    model = with_technique(reference_model, CACHED)
    assert difference(tiny.sample(model, steps=3), reference) < 1e-5


def _in_place(n, extra_options):
    return n.mul_(1.5).add_(0.1)


def _out_of_place(n, extra_options):
    return n * 1.5 + 0.1


# 64 pixels and one frame: at the deepest level a cached value is as large as the activations.
@pytest.mark.parametrize(("frames", "size"), [(4, 96), (1, 64)])
@pytest.mark.parametrize("config", [CACHED, REMOVED])
def test_attn2_output_patch_of_another_pack_may_write_in_place(tiny, biased, config, frames, size):
    conditioning = tiny.conditioning(frames=frames, size=size)
    outputs = []
    for patch in (_in_place, _out_of_place):
        model = with_technique(biased, config)
        model.set_model_attn2_output_patch(patch)
        outputs.append(tiny.sample(model, steps=3, conditioning=conditioning))
    assert torch.equal(*outputs)


def test_attn2_output_patch_of_another_pack_does_what_it_did(tiny, biased, difference):
    reference_model = biased.clone()
    reference_model.set_model_attn2_output_patch(_in_place)
    reference = tiny.sample(reference_model, steps=3)
    model = with_technique(reference_model, CACHED)
    assert difference(tiny.sample(model, steps=3), reference) < 1e-5
    assert difference(reference, tiny.sample(biased, steps=3)) > 1e-4


def test_attn2_replacement_of_another_pack_bypasses_vcut_and_is_named(
    tiny, biased, difference, summaries
):
    calls = []

    def replacement(q, k, v, extra_options):
        calls.append(extra_options["block"])
        return 2 * optimized_attention(q, k, v, extra_options["n_heads"])

    reference_model = biased.clone()
    reference_model.set_model_attn2_replace(replacement, "middle", 0)
    reference = tiny.sample(reference_model, steps=4)
    assert difference(reference, tiny.sample(biased, steps=4)) > 1e-4
    model = with_technique(reference_model, CACHED)
    assert difference(tiny.sample(model, steps=4), reference) < 1e-5
    # The middle block's spatial and temporal layer share one key: 2 calls in each of 4 steps.
    assert calls == [("middle", 0)] * 16  # 8 in each of the two runs
    assert "cross-attention not cached: another pack replaces it (8 calls)" in summaries()[0]


class Doubled(torch.nn.Module):
    """Another pack's own layer in place of an attn2: twice what the original returns."""

    def __init__(self, original):
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        self._original = (original,)

    def forward(self, *args, **kwargs):
        return 2 * self._original[0](*args, **kwargs)


def test_layer_that_another_pack_put_in_place_keeps_its_effect(tiny, biased, difference):
    path = tiny.cross_attention_paths("temporal")[0]
    foreign = biased.clone()
    foreign.add_object_patch(path, Doubled(biased.get_model_object(path)))
    reference = tiny.sample(foreign, steps=3)
    assert difference(reference, tiny.sample(biased, steps=3)) > 1e-4
    model = with_technique(with_technique(foreign, CACHED), CACHED)
    assert difference(tiny.sample(model, steps=3), reference) < 1e-5


def test_layer_that_another_pack_put_in_place_returns_when_vcut_keeps(tiny, biased):
    path = tiny.cross_attention_paths("temporal")[0]
    foreign = biased.clone()
    foreign.add_object_patch(path, Doubled(biased.get_model_object(path)))
    kept = with_technique(with_technique(foreign, REMOVED), KEPT)
    assert torch.equal(tiny.sample(kept, steps=3), tiny.sample(foreign, steps=3))


# --- weights ----------------------------------------------------------------------------------


def _with_lora(model, lora):
    clone = model.clone()
    assert len(clone.add_patches(lora)) == 64
    return clone


def test_lora_is_effective_and_equal_when_before_and_after_the_node(tiny, lora, difference):
    reference = tiny.sample(_with_lora(tiny.model, lora), steps=4)
    before = tiny.sample(with_technique(_with_lora(tiny.model, lora), CACHED), steps=4)
    # VCUT's layers are in the shared model now, so this LoRA must find its keys in them.
    after = tiny.sample(_with_lora(with_technique(tiny.model, CACHED), lora), steps=4)
    assert torch.equal(before, after)
    assert difference(before, reference) < 1e-5
    assert difference(before, tiny.sample(steps=4)) > 1e-3


def test_unpatched_model_is_bit_equal_when_loras_stood_on_both_sides(tiny, lora, difference):
    unpatched = tiny.sample(steps=4)
    twice = _with_lora(_with_lora(tiny.model, lora), lora)
    reference = tiny.sample(twice, steps=4)
    below = _with_lora(tiny.model, lora)
    tiny.sample(below, steps=1)
    middle = with_technique(below, CACHED)
    tiny.sample(middle, steps=1)
    stacked = tiny.sample(_with_lora(middle, lora), steps=4)
    assert difference(stacked, reference) < 1e-5
    assert torch.equal(tiny.sample(steps=4), unpatched)


def test_weights_keep_their_names_and_number_when_vcut_is_loaded(tiny):
    tiny.sample(steps=1)
    before = {name: value.shape for name, value in tiny.model.model.state_dict().items()}
    tiny.sample(with_technique(tiny.model, REMOVED), steps=1)
    loaded = tiny.model.model
    after = {name: value.shape for name, value in loaded.state_dict().items()}
    assert after == before


def test_embedding_that_a_function_wrapper_changes_by_step_is_never_stale(tiny, biased, difference):
    def change_by_step(apply_model, args):
        scale = 1.0 if float(args["timestep"].max()) > 5 else -3.0
        c = {**args["c"], "c_crossattn": args["c"]["c_crossattn"] * scale}
        return apply_model(args["input"], args["timestep"], **c)

    model = biased.clone()
    model.set_model_unet_function_wrapper(change_by_step)
    unpatched = tiny.sample(model, steps=4)
    assert difference(unpatched, tiny.sample(biased, steps=4)) > 1e-2
    cached = tiny.sample(with_technique(model, CACHED), steps=4)
    assert difference(cached, unpatched) < 1e-5
