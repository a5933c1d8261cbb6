"""VCUT Guidance Scheduler on a real ComfyUI: what is evaluated, and what comes out.

Evaluations are counted by hooks on the UNet: [1, 0] is uncond and cond in one call.
"""

import re

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from vcut.comfy_adapter import with_technique
from vcut.tests.support.summaries import without_seconds
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

GUIDED, UNGUIDED = [1, 0], [0]


class CutGuider(comfy.samplers.CFGGuider):
    """Guides above a sigma, and from there on predicts with cond alone. No VCUT in it."""

    limit = 0.0

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        if timestep[0] > self.limit:
            return super().predict_noise(x, timestep, model_options, seed)
        conds = [self.conds["positive"], None]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[
            0
        ]


@pytest.fixture
def sample_cut(tiny):
    """Return a function: a run of 8 steps, steps 1-4 guided, 5-8 with cond alone."""

    def sample(model):
        guider = CutGuider(model)
        guider.limit = _sigma_of_step_5(tiny)
        positive, negative, latent = tiny.conditioning()
        guider.set_conds(positive, negative)
        return tiny.sample_with(guider, latent, steps=8, cfg=2.5)

    return sample


def _sigma_of_step_5(tiny) -> float:
    return float(tiny.sigmas(8)[4]) * (1 + 1e-6)


def _scaled(conditioning, scale):
    """Return the conditioning with the image embedding, and nothing else, scaled."""
    (embedding, options), negative, latent = conditioning[0][0], conditioning[1], conditioning[2]
    return [[embedding * scale, options]], negative, latent


# --- how many evaluations ---------------------------------------------------------------------


# 2 (c - 1) + (25 - c + 1): 18 + 16, 32 + 9, 38 + 6
@pytest.mark.parametrize(("cut_step", "evaluations"), [(10, 34), (17, 41), (20, 44)])
def test_steps_from_the_cut_on_are_unguided_when_the_run_has_25(
    tiny, traced, summaries, cut_step, evaluations
):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(cut_step, 25)))
    tiny.sample(model, steps=25)
    assert trace == [GUIDED] * (cut_step - 1) + [UNGUIDED] * (26 - cut_step)
    assert sum(map(len, trace)) == evaluations
    assert f"{evaluations} of 50 UNet evaluations" in summaries()[0]


def test_cut_moves_in_proportion_when_the_run_has_20_steps(tiny, traced, summaries):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(17, 25)))
    tiny.sample(model, steps=20)
    assert trace == [GUIDED] * 13 + [UNGUIDED] * 7  # 16 x 20 / 25 = 12.8, rounded
    assert "guided 13 of 20 steps; " in summaries()[0] and "cut at step 14 " in summaries()[0]


def test_output_is_bit_equal_when_the_cut_is_above_the_steps(tiny, unpatched, traced, summaries):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(26, 25)))
    output = tiny.sample(model, steps=25)
    assert trace == [GUIDED] * 25
    assert torch.equal(output, unpatched)
    assert "guided 25 of 25 steps; " in summaries()[0] and "no cut in this run" in summaries()[0]


@pytest.mark.parametrize("cut_step", [7, 9])
def test_guidance_begins_late_when_there_is_a_start_step(
    tiny, biased, traced, difference, sample_cut_reference, cut_step
):
    config = GuidanceConfig(cut_step, 8, "none", start_step=4)
    model, trace = traced(with_technique(biased, config))
    output = tiny.sample(model, steps=8)
    assert trace == [UNGUIDED] * 3 + [GUIDED] * (cut_step - 4) + [UNGUIDED] * (9 - cut_step)
    reference = sample_cut_reference(
        biased, steps=8, num_unguided_first=3, last_guided_step=cut_step - 1, scale=0.0
    )
    assert difference(output, reference) < 1e-5


@pytest.mark.parametrize("steps", [1, 4])
def test_no_step_is_guided_when_the_cut_is_at_1(tiny, traced, summaries, steps):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(1, 25)))
    tiny.sample(model, steps=steps)
    assert trace == [UNGUIDED] * steps
    assert f"guided 0 of {steps} steps; " in summaries()[0] and "cut at step 1 " in summaries()[0]


# Steps 1-3 of 6 are guided. heun evaluates at both ends of a step, so the second evaluation of
# step 3 has the sigma of step 4; dpm_2 and dpmpp_sde evaluate at its start and in its midst.
@pytest.mark.parametrize(
    ("sampler", "guided", "unguided"), [("heun", 5, 6), ("dpm_2", 6, 5), ("dpmpp_sde", 6, 5)]
)
def test_steps_are_counted_by_sigma_when_a_sampler_evaluates_twice_a_step(
    tiny, traced, sampler, guided, unguided
):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(4, 6)))
    tiny.sample(model, steps=6, sampler=sampler, conditioning=tiny.conditioning(frames=2))
    assert trace == [GUIDED] * guided + [UNGUIDED] * unguided


def test_conds_that_are_split_save_the_same_evaluations(tiny, traced, summaries, split_conds):
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(5, 8)))
    tiny.sample(model, steps=8)
    assert trace == [[1], [0]] * 4 + [[0]] * 4
    assert "12 of 16 UNet evaluations" in summaries()[0]


def test_only_evaluations_that_would_have_been_count_as_saved(tiny, traced, summaries):
    positive, negative, latent = tiny.conditioning()
    ends_early = [[negative[0][0], {**negative[0][1], "end_percent": 0.5}]]
    conditioning = (positive, ends_early, latent)
    unpatched, whole = traced(tiny.model)
    tiny.sample(unpatched, steps=8, conditioning=conditioning)
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(3, 8)))
    tiny.sample(model, steps=8, conditioning=conditioning)
    assert [0] in whole and GUIDED in whole  # the negative really ends within the run
    done, total = sum(map(len, trace)), sum(map(len, whole))
    assert f"{done} of {total} UNet evaluations" in summaries()[0]


# --- what comes out ---------------------------------------------------------------------------


def test_output_is_that_of_cond_alone_after_the_cut_when_positive(tiny, biased, sample_cut):
    config = GuidanceConfig(5, 8, "positive")
    output = tiny.sample(with_technique(biased, config), steps=8)
    assert torch.equal(output, sample_cut(biased))


@pytest.mark.parametrize(("after_cut", "scale"), [("positive", 1), ("average", 0.5), ("none", 0)])
def test_embedding_is_scaled_after_the_cut_and_nothing_else(tiny, biased, after_cut, scale):
    model = with_technique(biased, GuidanceConfig(1, 25, after_cut))
    conditioning = _scaled(tiny.conditioning(), scale)
    reference = tiny.sample(biased, steps=4, cfg=1.0, conditioning=conditioning)
    assert torch.equal(tiny.sample(model, steps=4), reference)


@pytest.mark.parametrize("is_cached", [False, True])
def test_every_layer_averages_its_two_outputs_after_the_cut(
    tiny, biased, sample_cut, difference, is_cached
):
    limit = _sigma_of_step_5(tiny)

    def average(layer, args, kwargs, output):
        """Equation 4: 1/2 (L(y) + L(0)), by two passes through the attention itself."""
        if kwargs["transformer_options"]["sigmas"][0] > limit:
            return output
        context = torch.zeros_like(kwargs["context"])
        return (output + layer.forward(*args, **{**kwargs, "context": context})) / 2

    with tiny.hooked(average, "spatial", "temporal"):
        reference = sample_cut(biased)
    model = with_technique(biased, GuidanceConfig(5, 8, "average"))
    if is_cached:
        model = with_technique(model, CrossAttentionConfig())
    output = tiny.sample(model, steps=8)
    assert difference(output, reference) < 1e-5
    assert difference(output, sample_cut(biased)) > 1e-4


@pytest.mark.parametrize("is_scheduled_first", [False, True])
@pytest.mark.parametrize("min_cfg", [1.0, 2.5])
def test_linear_guidance_returns_the_conditional_prediction_after_the_cut(
    tiny, biased, sample_cut, difference, min_cfg, is_scheduled_first
):
    config = GuidanceConfig(5, 8, "positive")
    if is_scheduled_first:
        (model,) = VideoLinearCFGGuidance().patch(with_technique(biased, config), min_cfg)
    else:
        (model,) = VideoLinearCFGGuidance().patch(biased, min_cfg)
        model = with_technique(model, config)
    (linear,) = VideoLinearCFGGuidance().patch(biased, min_cfg)
    # Not bit-equal: the host hands guidance functions x - cond and takes that from x again.
    assert difference(tiny.sample(model, steps=8), sample_cut(linear)) < 1e-5


def test_min_cfg_has_no_effect_when_never_guided(tiny):
    outputs = []
    for min_cfg in (1.0, 2.5):
        (linear,) = VideoLinearCFGGuidance().patch(tiny.model, min_cfg)
        model = with_technique(linear, GuidanceConfig(1, 25, "positive"))
        outputs.append(tiny.sample(model, steps=4, cfg=4.0))
    assert torch.equal(*outputs)


def test_conds_that_are_split_give_the_same_picture_when_cut(tiny, biased, difference, monkeypatch):
    model = with_technique(biased, GuidanceConfig(5, 8))
    model = with_technique(model, CrossAttentionConfig())
    batched = tiny.sample(model, steps=8)
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda *args, **kwargs: 1e30)
    assert difference(tiny.sample(model, steps=8), batched) < 1e-5


# --- with the other node, and twice -----------------------------------------------------------


def test_both_nodes_are_bit_equal_when_in_either_order(tiny, biased, summaries):
    layers, guidance = CrossAttentionConfig("remove"), GuidanceConfig(5, 8)
    one = with_technique(with_technique(biased, layers), guidance)
    other = with_technique(with_technique(biased, guidance), layers)
    assert torch.equal(tiny.sample(one, steps=8), tiny.sample(other, steps=8))
    first, second = (without_seconds(line) for line in summaries())
    assert first == second


def test_each_affine_map_is_evaluated_once_a_branch_when_cut(tiny, summaries):
    model = with_technique(tiny.model, GuidanceConfig(17, 25))
    tiny.sample(with_technique(model, CrossAttentionConfig()), steps=25)
    # 32 layers for cond and uncond together in step 1 and 32 for the averaged cond in step 17;
    # reused in the other 15 + 8 steps: 32 x 23
    assert "41 of 50 UNet evaluations;" in summaries()[0]
    assert "; cross-attention: 64 computed, 736 from cache;" in summaries()[0]


def test_each_affine_map_is_evaluated_once_a_branch_when_split_and_cut(
    tiny, summaries, split_conds
):
    model = with_technique(tiny.model, GuidanceConfig(5, 8))
    tiny.sample(with_technique(model, CrossAttentionConfig()), steps=8)
    # 32 each for uncond, cond and averaged cond; reused in 3 + 3 + 3 calls: 32 x 9
    assert "cross-attention: 96 computed, 288 from cache;" in summaries()[0]


def test_last_schedule_wins_when_applied_twice(tiny, traced):
    model = with_technique(tiny.model, GuidanceConfig(1, 4))
    model, trace = traced(with_technique(model, GuidanceConfig(4, 4)))
    tiny.sample(model, steps=4)
    assert trace == [GUIDED] * 3 + [UNGUIDED]


def test_the_model_before_the_node_stays_guided(tiny, traced):
    model, trace = traced(tiny.model)
    with_technique(model, GuidanceConfig(1, 4))
    tiny.sample(model, steps=4)
    assert trace == [GUIDED] * 4


# --- by sigma ---------------------------------------------------------------------------------


def test_cut_sigma_overrides_the_step_when_both_are_set(tiny, traced):
    sigmas = tiny.sigmas(8).tolist()
    between = (sigmas[1] + sigmas[2]) / 2  # steps 1 and 2 start above it
    model, trace = traced(with_technique(tiny.model, GuidanceConfig(7, 8, cut_sigma=between)))
    tiny.sample(model, steps=8)
    assert trace == [GUIDED] * 2 + [UNGUIDED] * 6


# A slice that ends before, at and after the cut at step 7 of 10.
@pytest.mark.parametrize("boundary", [3, 6, 8])
def test_chained_slices_equal_the_whole_run_when_they_share_its_cut_sigma(
    tiny, biased, traced, difference, summaries, boundary
):
    model, trace = traced(with_technique(biased, GuidanceConfig(7, 10)))
    whole = tiny.sample(model, steps=10)
    assert trace == [GUIDED] * 6 + [UNGUIDED] * 4
    cut_sigma = float(re.search(r"cut_sigma ([\d.e+-]+)", summaries()[0])[1])

    by_sigma = with_technique(biased, GuidanceConfig(cut_sigma=cut_sigma))
    model, slices = traced(by_sigma)
    positive, negative, latent = tiny.conditioning()
    first = tiny.sample(model, steps=10, start_step=0, last_step=boundary)
    conditioning = (positive, negative, {"samples": first})
    second = tiny.sample(
        model, steps=10, conditioning=conditioning, start_step=boundary, last_step=10,
        disable_noise=True, force_full_denoise=True,
    )  # fmt: skip
    assert slices == trace
    assert difference(second, whole) < 1e-5


# --- what is no pair passes -------------------------------------------------------------------


@pytest.fixture
def sample_three_conds(tiny):
    """Return a function: a run of 4 steps that ComfyUI's DualCFGGuider guides by three conds."""

    def sample(model):
        positive, negative, latent = tiny.conditioning()
        guider = Guider_DualCFG(model)
        guider.set_conds(positive, tiny.conditioning(seed=5)[0], negative)
        guider.set_cfg(2.5, 1.5)
        return tiny.sample_with(guider, latent, steps=4)

    return sample


def test_three_conds_pass_untouched_and_are_named(biased, traced, sample_three_conds, summaries):
    model, trace = traced(with_technique(biased, GuidanceConfig(1, 4)))
    assert torch.equal(sample_three_conds(model), sample_three_conds(biased))
    assert sum(map(len, trace)) == 12
    assert (
        "12 of 12 UNet evaluations; 0.0 s; not cut: the guider has 3 conds (4 calls)"
        in without_seconds(summaries()[0], "0.0 s")
    )


def test_three_conds_are_kept_apart_when_their_layers_are_cached(
    biased, sample_three_conds, difference
):
    model = with_technique(biased, CrossAttentionConfig())
    assert difference(sample_three_conds(model), sample_three_conds(biased)) < 1e-5


def test_one_cond_passes_untouched_and_is_named(tiny, biased, summaries):
    model = with_technique(biased, GuidanceConfig(1, 4, "none"))
    output = tiny.sample(model, steps=4, cfg=1.0)  # at cfg 1 the host leaves uncond out
    assert torch.equal(output, tiny.sample(biased, steps=4, cfg=1.0))
    assert "not cut: cfg is 1, so there is no guidance (4 calls)" in summaries()[0]


def test_summary_says_there_was_nothing_to_cut_when_no_pair_came(tiny, summaries):
    tiny.sample(with_technique(tiny.model, GuidanceConfig(1, 4)), steps=2, cfg=1.0)
    assert "not cut: cfg is 1, so there is no guidance (2 calls)" in summaries()[0]


@pytest.mark.parametrize("after_cut", ["average", "positive", "none"])
def test_cond_asked_again_past_the_cut_has_the_embedding_of_the_cut(tiny, biased, after_cut):
    # PAG and its like evaluate cond once more and use its difference to the first prediction.
    differences = []

    def ask_again(args):
        (again,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        differences.append((again - args["cond_denoised"]).abs().max().item())
        return args["denoised"]

    model = with_technique(biased, GuidanceConfig(2, 4, after_cut))
    model.set_model_sampler_post_cfg_function(ask_again)
    tiny.sample(model, steps=4)
    assert len(differences) == 4
    assert max(differences) < 1e-4
