"""VCUT Step Cache on a real ComfyUI: which steps reach the model, beside whatever else is there.

Evaluations are counted by hooks on the UNet: [1, 0] is uncond and cond in one call.
"""

import comfy.controlnet
import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from vcut.comfy_adapter import prune_model, with_technique
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig
from vcut.vcut_core.predicted_path import PredictedPath
from vcut.vcut_core.step_cache import StepCacheConfig

import nodes as comfy_nodes

GUIDED, UNGUIDED = [1, 0], [0]
FAST = StepCacheConfig("fast")
BALANCED = StepCacheConfig("balanced")


@pytest.fixture(scope="module")
def small(make_small_svd):
    return make_small_svd()


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture
def run(tiny, conditioning, traced):
    """Return a function: model -> (latent, each UNet call's conds) of 25 steps."""

    def sample(model, **options):
        clone, trace = traced(model)
        options = {"steps": 25, "conditioning": conditioning, **options}
        return tiny.sample(clone, **options), trace

    return sample


def _last(summaries) -> str:
    return summaries()[-1]


# --- how many evaluations -------------------------------------------------------------------------


@pytest.mark.parametrize(("pace", "computed"), [("careful", 16), ("balanced", 14), ("fast", 12)])
def test_run_of_25_computes_what_its_pace_says(small, run, summaries, pace, computed):
    output, trace = run(with_technique(small, StepCacheConfig(pace)))
    assert trace == [GUIDED] * computed and output.isfinite().all()
    line = f"VCUT: {2 * computed} of 50 UNet evaluations; {computed} of 25 steps computed; "
    assert _last(summaries).startswith(line)
    assert f"the step cache saved {50 - 2 * computed} evaluations" in _last(summaries)


def test_two_runs_are_bit_equal_and_the_plain_model_is_as_before(small, run):
    expected, _ = run(small)
    model = with_technique(small, BALANCED)
    first, _ = run(model)
    assert torch.equal(run(model)[0], first) and not torch.equal(first, expected)
    assert torch.equal(run(small)[0], expected)


def test_schedule_without_a_step_to_spare_is_bit_equal(small, run, nodes, tiny, conditioning):
    positive, negative, latent = conditioning
    (sigmas,) = nodes.call("AlignYourStepsScheduler", model_type="SVD", steps=10)
    inputs = {"noise_seed": 0, "cfg": 2.5, "positive": positive, "negative": negative,
              "sampler": comfy.samplers.sampler_object("euler"), "sigmas": sigmas,
              "latent_image": latent}  # fmt: skip
    expected = nodes.call("SamplerCustom", model=small, **inputs)[0]["samples"]
    model = with_technique(small, StepCacheConfig("careful"))
    assert torch.equal(nodes.call("SamplerCustom", model=model, **inputs)[0]["samples"], expected)


def test_split_conds_are_counted_as_one_step(small, run, summaries, monkeypatch):
    monkeypatch.setattr(small.model, "memory_required", lambda *args, **kwargs: 1e30)
    _, trace = run(with_technique(small, BALANCED))
    assert len(trace) == 28 and "28 of 50 UNet evaluations" in _last(summaries)


def test_schedule_is_read_from_the_device_once_a_run(small, run, monkeypatch):
    lengths = []
    read = torch.Tensor.tolist

    def note(tensor):
        lengths.append(tensor.numel())
        return read(tensor)

    model = with_technique(with_technique(small, GuidanceConfig(17, 25)), BALANCED)
    monkeypatch.setattr(torch.Tensor, "tolist", note)
    run(model)
    assert lengths.count(26) == 2  # the step cache and the cut, once each


# --- beside the cut -------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["balanced", "fast"])
def test_cut_and_cache_are_bit_equal_in_either_order(small, run, summaries, pace):
    cut, cache = GuidanceConfig(17, 25), StepCacheConfig(pace)
    one, trace = run(with_technique(with_technique(small, cut), cache))
    other, _ = run(with_technique(with_technique(small, cache), cut))
    assert torch.equal(one, other)
    evaluations = {"balanced": 21, "fast": 17}[pace]
    assert sum(map(len, trace)) == evaluations
    assert trace == sorted(trace, reverse=True)  # guided first
    assert f"VCUT: {evaluations} of 50 UNet evaluations; " in _last(summaries)
    unguided = trace.count(UNGUIDED)
    saved = 50 - evaluations - unguided
    assert f"the step cache saved {saved} evaluations" in _last(summaries)
    assert f"the cut saved {unguided} evaluations" in _last(summaries)


def test_first_unguided_and_first_guided_step_are_computed(small, run):
    sigmas = []

    def note(executor, *args, **kwargs):
        sigmas.append((args[5]["sigmas"][0].item(), len(args[5]["cond_or_uncond"])))
        return executor(*args, **kwargs)

    config = GuidanceConfig(8, 25, start_step=4)  # both in steps that the cache would leave out
    model = with_technique(with_technique(small, config), BALANCED)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
    run(model)
    schedule = comfy.samplers.KSampler(small, 25, "cpu", "euler", "karras").sigmas.tolist()
    steps = [
        (min(range(25), key=lambda k: abs(schedule[k] - sigma)), conds) for sigma, conds in sigmas
    ]
    assert steps[:3] == [(0, 1), (3, 2), (7, 1)]


# --- guiders, and the pruned model ----------------------------------------------------------------


def _guider(nodes, name, model, positive, other, negative):
    if name == "CFGGuider":
        conds = {"positive": positive, "negative": negative, "cfg": 2.5}
    elif name == "BasicGuider":
        conds = {"conditioning": positive}
    elif name == "DualCFGGuider":
        conds = {"cond1": positive, "cond2": other, "negative": negative, "cfg_conds": 2.5,
                 "cfg_cond2_negative": 1.5, "style": "regular"}  # fmt: skip
    else:
        conds = {"positive": positive, "negative": other, "empty_conditioning": negative,
                 "cfg": 2.5, "neg_scale": 1.0}  # fmt: skip
    return nodes.call(name, model=model, **conds)[0]


@pytest.mark.parametrize(
    ("name", "conds"),
    [("CFGGuider", 2), ("BasicGuider", 1), ("DualCFGGuider", 3), ("PerpNegGuider", 3)],
)
def test_guiders_save_all_of_their_conds(
    small, nodes, tiny, conditioning, traced, summaries, name, conds
):
    positive, negative, latent = conditioning
    other = tiny.conditioning(seed=5, frames=2)[0]
    model, trace = traced(with_technique(small, BALANCED))
    nodes.call(
        "SamplerCustomAdvanced",
        noise=nodes.call("RandomNoise", noise_seed=0)[0],
        guider=_guider(nodes, name, model, positive, other, negative),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=tiny.sigmas(25),
        latent_image=latent,
    )
    assert sum(map(len, trace)) == 14 * conds
    assert f"{14 * conds} of {25 * conds} UNet evaluations; 14 of 25" in _last(summaries)


def test_pruned_model_leaves_out_the_same_steps(make_small_svd, run, summaries):
    layers = CrossAttentionConfig()
    pruned = prune_model(make_small_svd(), layers)
    expected, _ = run(with_technique(with_technique(make_small_svd(), layers), FAST))
    output, trace = run(with_technique(pruned, FAST))
    assert torch.equal(output, expected) and len(trace) == 12


def test_node_that_reads_the_unguided_prediction_has_all_steps(small, run, summaries):
    model = small.clone()

    def add_unguided(args):
        return args["denoised"] + 0.1 * args["uncond_denoised"]

    model.set_model_sampler_post_cfg_function(add_unguided, disable_cfg1_optimization=True)
    expected, all_calls = run(model)
    output, trace = run(with_technique(model, FAST))
    assert torch.equal(output, expected) and trace == all_calls
    assert "reads the unguided prediction (25 calls)" in _last(summaries)


# --- parts of a schedule --------------------------------------------------------------------------


def test_each_slice_of_a_chain_begins_computed(small, run, tiny, conditioning):
    model = with_technique(small, BALANCED)
    first, trace = run(model, start_step=0, last_step=4)
    assert trace == [GUIDED]
    noisy = (*conditioning[:2], {"samples": first})
    second, trace = run(model, conditioning=noisy, start_step=4, last_step=25,
                        disable_noise=True, force_full_denoise=True)  # fmt: skip
    assert 13 <= len(trace) <= 14 and second.isfinite().all()


def test_run_with_denoise_below_1_counts_its_own_steps(small, run, conditioning, summaries):
    start, _ = run(small)
    again = (*conditioning[:2], {"samples": start})
    _, trace = run(with_technique(small, BALANCED), conditioning=again, denoise=0.5)
    assert len(trace) < 25
    assert f"{len(trace)} of 25 steps computed" in _last(summaries)


def test_rising_schedule_is_computed_whole(small, nodes, tiny, conditioning, run, traced):
    positive, negative, latent = conditioning
    rising = tiny.sigmas(8).flip(0)[1:]
    model, trace = traced(with_technique(small, FAST))
    inputs = {"noise_seed": 0, "cfg": 2.5, "positive": positive, "negative": negative,
              "sampler": comfy.samplers.sampler_object("euler"), "sigmas": rising,
              "add_noise": False, "latent_image": latent}  # fmt: skip
    nodes.call("SamplerCustom", model=model, **inputs)
    assert len(trace) == 7


# --- samplers -------------------------------------------------------------------------------------

ONCE_A_STEP = [
    "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lms", "ddpm", "lcm",
    "ipndm", "deis", "uni_pc", "ddim", "er_sde",
]  # fmt: skip


@pytest.mark.parametrize("sampler", ONCE_A_STEP)
def test_samplers_of_one_evaluation_a_step(small, run, summaries, sampler):
    reference, all_calls = run(small, sampler=sampler)
    output, trace = run(with_technique(small, BALANCED), sampler=sampler)
    assert len(all_calls) - len(trace) == 11 and output.isfinite().all()
    assert f"the step cache saved {2 * 11} evaluations" in _last(summaries)
    assert not torch.equal(output, reference)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde", "dpmpp_2s_ancestral"])
def test_samplers_of_two_evaluations_a_step_have_their_midpoints_computed(
    small, run, summaries, sampler
):
    _, all_calls = run(small, sampler=sampler)
    output, trace = run(with_technique(small, BALANCED), sampler=sampler)
    assert len(all_calls) - len(trace) == 11 and output.isfinite().all()
    assert f"computed between steps ({len(all_calls) - 25} calls)" in _last(summaries)


@pytest.mark.parametrize(
    ("sampler", "is_corrected"),
    [("euler", True), ("ddim", True), ("dpmpp_2m", False), ("euler_ancestral", False)],
)
def test_gap_is_made_up_for_where_the_sampler_takes_euler_s_step(
    small, run, monkeypatch, sampler, is_corrected
):
    model = with_technique(small, FAST)
    with_correction, _ = run(model, sampler=sampler)
    monkeypatch.setattr(PredictedPath, "correct", lambda path, sigma, next_sigma, output: output)
    without, _ = run(model, sampler=sampler)
    assert torch.equal(with_correction, without) is not is_corrected


def test_euler_that_leaves_the_schedule_with_noise_of_its_own_has_all_steps(
    small, run, monkeypatch, summaries
):
    sampler = comfy.samplers.ksampler("euler", {"s_churn": 1.0})
    monkeypatch.setattr(comfy.samplers, "sampler_object", lambda name: sampler)
    _, trace = run(with_technique(small, FAST))
    assert len(trace) == 25
    assert "computed between steps (25 calls)" in _last(summaries)


def test_correction_brings_the_run_nearer_to_the_whole_one(tiny, difference, monkeypatch):
    # Without picture and guidance, where nothing else holds the videos together.
    positive, negative, latent = tiny.conditioning(size=64)
    options = {"cfg": 1.0, "conditioning": (negative, negative, latent)}
    whole = tiny.sample(tiny.model, **options)
    model = with_technique(tiny.model, FAST)
    corrected = difference(tiny.sample(model, **options), whole)
    monkeypatch.setattr(PredictedPath, "correct", lambda path, sigma, next_sigma, output: output)
    assert corrected < 0.7 * difference(tiny.sample(model, **options), whole)


@pytest.mark.parametrize("sampler", [s for s in comfy.samplers.KSampler.SAMPLERS if "cfg_pp" in s])
def test_samplers_that_read_the_unguided_prediction_have_all_steps(small, run, summaries, sampler):
    reference, all_calls = run(small, sampler=sampler, steps=12)
    output, trace = run(with_technique(small, FAST), sampler=sampler, steps=12)
    assert torch.equal(output, reference) and trace == all_calls
    assert "the sampler or a node reads the unguided prediction" in _last(summaries)


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_gives_a_picture_and_true_counts(small, run, summaries, sampler):
    _, all_calls = run(small, sampler=sampler, steps=8)
    output, trace = run(with_technique(small, FAST), sampler=sampler, steps=8)
    assert output.isfinite().all() and len(trace) <= len(all_calls)
    done, total = 2 * len(trace), 2 * len(all_calls)
    if sampler not in ("dpm_adaptive",):  # takes steps by what it is given
        assert f"VCUT: {done} of {total} UNet evaluations" in _last(summaries)


# --- conds whose active set changes ---------------------------------------------------------------


def _range(cond, start, end):
    return comfy_nodes.ConditioningSetTimestepRange.set_range(None, cond, start, end)[0]


def _sigmas_of(trace_sigmas, schedule):
    return [min(range(25), key=lambda k: abs(schedule[k] - sigma)) for sigma in trace_sigmas]


@pytest.fixture
def computed_steps(small, tiny, conditioning):
    """Return a function: (positive, negative) -> the steps of 25 that are computed, balanced."""
    schedule = comfy.samplers.KSampler(small, 25, "cpu", "euler", "karras").sigmas.tolist()

    def sample(positive, negative):
        sigmas = []

        def note(executor, *args, **kwargs):
            sigmas.append(args[5]["sigmas"][0].item())
            return executor(*args, **kwargs)

        model = with_technique(small, BALANCED)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
        conds = (positive, negative, conditioning[2])
        assert tiny.sample(model, steps=25, conditioning=conds).isfinite().all()
        return sorted(set(_sigmas_of(sigmas, schedule)))

    return sample


def _first_below(small, percent) -> int:
    limit = small.get_model_object("model_sampling").percent_to_sigma(percent)
    schedule = comfy.samplers.KSampler(small, 25, "cpu", "euler", "karras").sigmas.tolist()
    return next(step for step, sigma in enumerate(schedule) if sigma <= limit)


def test_step_where_a_cond_s_range_begins_or_ends_is_computed(
    small, tiny, conditioning, computed_steps
):
    plain = computed_steps(*conditioning[:2])
    border = _first_below(small, 0.06)
    assert 1 < border < 8 and border not in plain
    other = tiny.conditioning(seed=5, frames=2)[0]
    positive = _range(conditioning[0], 0.0, 1.0) + _range(other, 0.06, 1.0)
    found = computed_steps(positive, conditioning[1])
    assert border in found and border - 1 not in found


class Control(comfy.controlnet.ControlBase):
    """What a ControlNet is to the sampler; notes the sigmas at which it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.asked.append(t[0].item())
        return {"middle": [], "output": []}

    def get_models(self):
        return []


def test_step_where_a_control_s_range_begins_is_computed(small, conditioning, computed_steps):
    control = Control()
    control.timestep_percent_range = (0.06, 1.0)
    (embedding, options) = conditioning[0][0]
    positive = [[embedding, {**options, "control": control, "control_apply_to_uncond": False}]]
    found = computed_steps(positive, conditioning[1])
    border = _first_below(small, 0.06)
    assert border in found and border - 1 not in found
    assert len(control.asked) == len(found)  # and it never sees a step that is left out


def test_conds_with_keyframes_of_hooks_have_all_steps(small, conditioning, computed_steps):
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.WeightHook(strength_model=1.0))
    hooks.hooks[0].weights = {}
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(1.0, 0.0))
    keyframes.add(comfy.hooks.HookKeyframe(0.5, 0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    positive = comfy.hooks.set_hooks_for_conditioning(conditioning[0], hooks)
    assert computed_steps(positive, conditioning[1]) == list(range(25))


# --- other packs ----------------------------------------------------------------------------------


def test_no_step_that_is_left_out_reaches_another_pack(small, run):
    seen = dict.fromkeys(
        (
            WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL,
            WrappersMP.DIFFUSION_MODEL,
        ), 0,
    )  # fmt: skip
    model = small.clone()

    def counter(kind):
        def count(executor, *args, **kwargs):
            seen[kind] += 1
            return executor(*args, **kwargs)

        return count

    for kind in seen:
        model.add_wrapper_with_key(kind, "test", counter(kind))
    asked = []

    def unet_function(apply_model, args):
        asked.append(args["timestep"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(unet_function)
    _, trace = run(with_technique(model, BALANCED))
    assert set(seen.values()) == {14} and len(trace) == len(asked) == 14


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode], ids=["easycache", "lazycache"])
@pytest.mark.parametrize("is_first", [True, False])
def test_steps_aside_for_another_step_cache_and_says_so(
    small, run, summaries, node, is_first, request
):
    def other(model):
        return node.execute(model, 0.2, 0.15, 0.95, False)[0]

    reference, all_calls = run(other(small))
    model = other(with_technique(small, FAST)) if is_first else with_technique(other(small), FAST)
    output, trace = run(model)
    assert torch.equal(output, reference) and trace == all_calls
    name = request.node.callspec.id.split("-")[-1]
    assert f"off: {name} is on this model too" in _last(summaries)


def test_windows_of_a_longer_video(small, run, tiny, with_windows):
    # Stock ComfyUI 0.3.75 runs windows over frames on SVD when frames == steps + 1 only.
    options = {"steps": 12, "conditioning": tiny.conditioning(frames=13)}

    def windowed(model):
        return with_windows(model, context_length=5)

    output, trace = run(with_technique(windowed(small), FAST), **options)
    _, all_calls = run(windowed(small), **options)
    assert output.shape[0] == 13 and output.isfinite().all()
    assert len(trace) * 12 == len(all_calls) * 9  # all windows of a step, or none


def test_masked_latent_keeps_what_the_mask_keeps(small, run, conditioning):
    samples = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 1, 96, 96)
    mask[:, :, :, 48:] = 1
    masked = (*conditioning[:2], {"samples": samples, "noise_mask": mask})
    output, trace = run(with_technique(small, BALANCED), conditioning=masked)
    assert len(trace) == 14
    assert torch.allclose(output[..., :6], samples[..., :6], atol=1e-5)
