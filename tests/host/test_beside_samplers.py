"""Every sampler and scheduler of KSampler, the custom samplers, and every guider of ComfyUI."""

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from vcut.comfy_adapter import with_technique
from vcut.vcut_core.guidance_cut import GuidanceConfig


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture
def sigma_trace():
    """Return a function: model -> (clone, list of each evaluation's (sigma, conds, schedule))."""

    def make(model):
        trace = []

        def record(executor, *args, **kwargs):
            options = args[5]
            schedule = options["sample_sigmas"].tolist()
            trace.append((float(options["sigmas"][0]), len(options["cond_or_uncond"]), schedule))
            return executor(*args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", record)
        return clone, trace

    return make


def _assert_cut(trace, last_guided_step):
    """The rule by hand: guided above the sigma at which the first unguided step starts."""
    assert {conds for _, conds, _ in trace} == {1, 2}
    for sigma, conds, schedule in trace:
        limit = schedule[last_guided_step]
        assert conds == (2 if sigma > limit * 1.0001 else 1), (sigma, limit)


# --- every sampler, every scheduler -----------------------------------------------------------

CHOICES = [(name, "karras") for name in comfy.samplers.KSampler.SAMPLERS]
CHOICES += [("euler", name) for name in comfy.samplers.KSampler.SCHEDULERS if name != "karras"]


@pytest.fixture(scope="module")
def small(make_small_svd):
    """Less than the tiny SVD, as about a hundred choices are run with it four times each."""
    return make_small_svd()


@pytest.fixture
def assert_exact(tiny, small, difference, monkeypatch):
    """Return a function that fails unless ``output`` is ``reference`` up to rounding.

    1e-5, but for the few choices that enlarge rounding more: there, four times what stock ComfyUI
    differs from itself when it evaluates cond and uncond in one call or in two (dpm_adaptive: 2e-4,
    linear_quadratic: 2e-5).
    """

    def check(output, reference, options):
        found = difference(output, reference)
        if found < 1e-5:
            return
        batched = tiny.sample(small, steps=3, **options)
        with monkeypatch.context() as patch:
            patch.setattr(small.model, "memory_required", lambda *args, **kwargs: 1e30)
            split = tiny.sample(small, steps=3, **options)
        assert found < 4 * difference(split, batched)

    return check


@pytest.mark.parametrize(("sampler", "scheduler"), CHOICES)
def test_never_cut_vcut_changes_nothing_with(
    tiny, small, with_vcut, assert_exact, conditioning, sampler, scheduler
):
    options = {"sampler": sampler, "scheduler": scheduler, "conditioning": conditioning}
    reference = tiny.sample(small, steps=3, **options)
    assert reference.isfinite().all()
    output = tiny.sample(with_vcut(small, 4, 3), steps=3, **options)
    assert_exact(output, reference, options)


@pytest.mark.parametrize(("sampler", "scheduler"), CHOICES)
def test_guidance_ends_by_sigma_with(
    tiny, small, with_vcut, assert_exact, sample_cut_reference, sigma_trace, conditioning, sampler,
    scheduler,
):  # fmt: skip
    options = {"sampler": sampler, "scheduler": scheduler, "conditioning": conditioning}
    model, trace = sigma_trace(with_vcut(small, 2, 3))
    output = tiny.sample(model, steps=3, **options)
    # Some schedulers make another number of steps than they were asked for.
    num_steps = len(trace[0][2]) - 1
    last_guided_step = int(num_steps / 3 + 0.5)
    _assert_cut(trace, last_guided_step)
    reference = sample_cut_reference(small, steps=3, last_guided_step=last_guided_step, **options)
    assert output.isfinite().all()
    assert_exact(output, reference, options)


# --- parts of a schedule ----------------------------------------------------------------------


def test_steps_are_counted_in_the_run_when_denoise_is_below_1(
    tiny, biased, with_vcut, difference, sigma_trace, conditioning
):
    positive, negative, latent = conditioning
    start = tiny.sample(biased, steps=3, conditioning=conditioning)
    again = (positive, negative, {"samples": start})
    options = {"steps": 3, "conditioning": again, "denoise": 0.5}
    reference = tiny.sample(biased, **options)
    assert difference(tiny.sample(with_vcut(biased, 4, 3), **options), reference) < 1e-5
    model, trace = sigma_trace(with_vcut(biased, 3, 3))
    assert tiny.sample(model, **options).isfinite().all()
    assert [conds for _, conds, _ in trace] == [2, 2, 1]
    # The last three of six steps.
    assert trace[0][2] == pytest.approx(tiny.sigmas(6)[3:].tolist())


def test_leftover_noise_is_that_of_the_run_without_vcut(
    tiny, biased, with_vcut, difference, conditioning
):
    options = {"steps": 4, "conditioning": conditioning, "start_step": 0, "last_step": 2}
    reference = tiny.sample(biased, **options)
    assert difference(tiny.sample(with_vcut(biased, 5, 4), **options), reference) < 1e-5
    noisy = (*conditioning[:2], {"samples": reference})
    options = {"steps": 4, "conditioning": noisy, "start_step": 2, "last_step": 10000,
               "disable_noise": True, "force_full_denoise": True}  # fmt: skip
    reference = tiny.sample(biased, **options)
    assert difference(tiny.sample(with_vcut(biased, 5, 4), **options), reference) < 1e-5


def test_align_your_steps_is_cut_at_its_own_step(
    nodes, biased, with_vcut, difference, sigma_trace, conditioning, summaries
):
    positive, negative, latent = conditioning
    inputs = {
        "add_noise": True,
        "noise_seed": 0,
        "cfg": 2.5,
        "positive": positive,
        "negative": negative,
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": nodes.call("AlignYourStepsScheduler", model_type="SVD", steps=10)[0],
        "latent_image": latent,
    }

    def sample(model):
        return nodes.call("SamplerCustom", model=model, **inputs)[0]["samples"]

    assert difference(sample(with_vcut(biased, 11, 10)), sample(biased)) < 1e-5
    model, trace = sigma_trace(with_vcut(biased, 17, 25))
    assert sample(model).isfinite().all()
    # 16 x 10 / 25 = 6.4 guided steps; step 7 starts at 0.981
    assert [conds for _, conds, _ in trace] == [2] * 6 + [1] * 4
    assert trace[6][0] == pytest.approx(0.981)
    assert "guided 6 of 10 steps; " in summaries()[1]
    assert "cut at step 7 (cut_sigma 0.9811)" in summaries()[1]


# --- guiders ----------------------------------------------------------------------------------


def _cfg(nodes, model, a, b, negative):
    return nodes.call("CFGGuider", model=model, positive=a, negative=negative, cfg=2.5)[0]


def _basic(nodes, model, a, b, negative):
    return nodes.call("BasicGuider", model=model, conditioning=a)[0]


def _dual(nodes, model, a, b, negative, second=1.5, style="regular"):
    conds = {"cond1": a, "cond2": b, "negative": negative}
    scales = {"cfg_conds": 2.5, "cfg_cond2_negative": second, "style": style}
    return nodes.call("DualCFGGuider", model=model, **conds, **scales)[0]


def _dual_nested(*inputs):
    return _dual(*inputs, style="nested")


def _dual_of_two(*inputs):
    return _dual(*inputs, second=1.0)


def _perp_neg(nodes, model, a, b, negative):
    conds = {"positive": a, "negative": b, "empty_conditioning": negative}
    return nodes.call("PerpNegGuider", model=model, **conds, cfg=2.5, neg_scale=1.0)[0]


def _old_perp_neg(nodes, model, a, b, negative):
    patched = nodes.patch("PerpNeg", model, empty_conditioning=negative, neg_scale=1.0)
    return _cfg(nodes, patched, a, None, b)


@pytest.fixture
def sample_guided(tiny, nodes, conditioning):
    """Return a function: model, guider -> the latent of three steps by SamplerCustomAdvanced."""

    def sample(model, make_guider):
        positive, negative, latent = conditioning
        other = tiny.conditioning(seed=5, frames=2)[0]
        inputs = {
            "noise": nodes.call("RandomNoise", noise_seed=0)[0],
            "guider": make_guider(nodes, model, positive, other, negative),
            "sampler": comfy.samplers.sampler_object("euler"),
            "sigmas": tiny.sigmas(3),
            "latent_image": latent,
        }
        return nodes.call("SamplerCustomAdvanced", **inputs)[0]["samples"]

    return sample


GUIDERS = (_cfg, _basic, _dual, _dual_nested, _dual_of_two, _perp_neg, _old_perp_neg)


@pytest.mark.parametrize("make_guider", GUIDERS, ids=lambda make: make.__name__[1:])
def test_never_cut_vcut_changes_nothing_with_guider(
    biased, with_vcut, difference, sample_guided, make_guider
):
    reference = sample_guided(biased, make_guider)
    assert difference(sample_guided(with_vcut(biased, 4, 3), make_guider), reference) < 1e-5


# Three conds for DualCFG and PerpNeg; one for the basic guider; DualCFG at 1.0 leaves one out.
@pytest.mark.parametrize(
    ("make_guider", "reason"),
    [
        (_basic, "cfg is 1, so there is no guidance (3 calls)"),
        (_dual, "the guider has 3 conds (3 calls)"),
        (_dual_nested, "the guider has 3 conds (3 calls)"),
        (_dual_of_two, "the guider has 2 conds (3 calls)"),
        (_perp_neg, "the guider has 3 conds (3 calls)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_cut_steps_aside_and_says_so_with_guider(
    biased, with_vcut, difference, sample_guided, summaries, make_guider, reason
):
    output = sample_guided(with_vcut(biased, 1, 3), make_guider)
    assert difference(output, sample_guided(biased, make_guider)) < 1e-5
    assert f"not cut: {reason}" in summaries()[0]


def test_cfg_guider_is_cut_as_the_ksampler_is(tiny, biased, with_vcut, sample_guided, conditioning):
    model = with_vcut(biased, 2, 3)
    output = sample_guided(model, _cfg)
    assert torch.equal(output, tiny.sample(model, steps=3, conditioning=conditioning))


def test_old_perp_neg_node_is_cut_and_its_extra_evaluations_are_named(
    biased, sample_guided, sigma_trace, summaries
):
    model, trace = sigma_trace(with_technique(biased, GuidanceConfig(3, 3)))
    assert sample_guided(model, _old_perp_neg).isfinite().all()
    # two guided steps, one unguided, each followed by the empty cond
    assert [conds for _, conds, _ in trace] == [2, 1, 2, 1, 1, 1]
    assert "8 of 9 UNet evaluations" in summaries()[0]
    assert "not cut: another node evaluates one cond alone (3 calls)" in summaries()[0]
