"""What hosts newer than 0.3.75 do, simulated on it: more models, more threads, more arguments."""

import copy
import threading
from types import SimpleNamespace

import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from vcut.comfy_adapter import prune_model, with_technique
from vcut.comfy_adapter.sampling_run import SamplingRun, run_facts
from vcut.comfy_adapter.settings import settings_of
from vcut.nodes.cost_report import CostReport
from vcut.tests.support.second_model import clone_onto_second_model
from vcut.tests.support.summaries import without_seconds
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

ModelPatcher = comfy.model_patcher.ModelPatcher


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture
def sample(tiny, conditioning):
    return lambda model: tiny.sample(model, steps=3, conditioning=conditioning)


# --- a clone onto another model object ----------------------------------------------------------


class EverOntoSecondModel(ModelPatcher):
    """A patcher whose every clone is one onto another model."""

    def clone(self):
        return clone_onto_second_model(self)


def _plain(patcher):
    """A clone for the same model object without anything that VCUT left, as if it were bypassed."""
    clone = ModelPatcher.clone(patcher)
    clone.object_patches, clone.wrappers, clone.callbacks = {}, {}, {}
    clone.model_options = {"transformer_options": {}}
    return clone


def _change_weights(patcher):
    """Double what every cross-attention of this model object adds, as another LoRA might."""
    for name, weight in patcher.model.diffusion_model.named_parameters():
        if ".attn2.to_v." in name or ".attn2.to_out.0." in name:
            weight.data.mul_(1.5)


def _has_own_forwards(patcher):
    return any("forward" in vars(module) for module in patcher.model.modules())


@pytest.mark.parametrize("is_live", [False, True])
def test_cached_outputs_use_the_weights_of_the_model_cloned_onto(
    make_small_svd, with_vcut, sample, difference, is_live
):
    first = with_vcut(make_small_svd())
    if is_live:
        sample(first)
    second = clone_onto_second_model(first)
    _change_weights(second)
    reference, other = sample(_plain(second)), sample(_plain(first))
    assert difference(reference, other) > 1e-3
    for model, expected in ((second, reference), (first, other), (second, reference)):
        assert difference(sample(model), expected) < 1e-5
    assert first.object_patches == second.object_patches == {}


@pytest.mark.parametrize("is_live", [False, True])
def test_second_model_is_plain_when_vcut_is_bypassed(make_small_svd, with_vcut, sample, is_live):
    first = with_vcut(make_small_svd(), temporal="remove")
    expected = sample(_plain(first))
    if is_live:
        sample(first)
    second = clone_onto_second_model(first)
    sample(second)
    assert torch.equal(sample(_plain(second)), expected)
    assert not _has_own_forwards(second)


def test_a_plain_clone_is_plain_on_the_second_model_when_copied_while_vcut_was_live(
    make_small_svd, with_vcut, sample
):
    plain = make_small_svd()
    expected = sample(plain)
    model = with_vcut(plain, temporal="remove")
    sample(model)
    second = clone_onto_second_model(plain)
    assert torch.equal(sample(second), expected)


@pytest.mark.parametrize("is_live", [False, True])
def test_a_third_model_uses_its_own_weights(make_small_svd, with_vcut, sample, difference, is_live):
    second = clone_onto_second_model(with_vcut(make_small_svd()))
    if is_live:
        sample(second)
    third = clone_onto_second_model(second.clone())
    _change_weights(third)
    assert difference(sample(third), sample(_plain(third))) < 1e-5


def test_both_nodes_work_when_every_clone_is_onto_another_model(
    make_small_svd, with_vcut, sample, difference
):
    plain = make_small_svd()
    host = EverOntoSecondModel(plain.model, plain.load_device, plain.offload_device)
    model = with_vcut(with_vcut(host, 2, 3, temporal="remove"))
    assert model.model is not plain.model
    _change_weights(plain)  # must not reach the model cloned onto
    assert difference(sample(model), sample(_plain(model))) < 1e-5
    assert difference(sample(model), sample(plain)) > 1e-3


def test_call_of_a_copy_on_another_gpu_disturbs_no_slice_and_is_counted(make_small_svd):
    first, second = make_small_svd(), make_small_svd()
    model = with_technique(first, SlicingConfig(4, "everything"))
    facts = run_facts(model, (2, 4, 12, 12), model.model_options)
    run = SamplingRun(settings_of(model.model_options), facts)
    h, skip = torch.rand(2, 4, 3, 3), torch.rand(2, 8, 3, 3)

    def on_both(_guider):
        unet = run._unet_in_run(first.model.diffusion_model)
        empty, _ = unet.deferred_concat.defer(h, skip, {})
        # The other GPU's thread calls its own model before the first has taken what was deferred.
        executor = WrapperExecutor.new_class_executor(
            lambda x, *_args, **_kwargs: x, second.model.diffusion_model, [run.diffusion_model]
        )
        x = torch.rand(2, 8, 12, 12)
        options = {"cond_or_uncond": [0], "patches": {}}
        assert executor.execute(x, torch.ones(2), transformer_options=options) is x
        assert run.counts.unet_evaluations == 1
        assert _has_own_forwards(first) and not _has_own_forwards(second)
        return unet.deferred_concat.take(empty)

    parts = run.sampler_sample(on_both, SimpleNamespace(inner_model=first.model))
    assert len(parts) == 2 and parts[0] is h and parts[1] is skip
    assert not _has_own_forwards(first)


# --- what newer hosts do on NVIDIA, out of reach here ---------------------------------------------


class LazyLinear(comfy.ops.disable_weight_init.Linear):
    """Without a weight before it is loaded."""

    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.weight = self.bias = None


def test_cost_report_needs_no_weight_of_the_host(tiny, monkeypatch):
    expected = CostReport.execute(tiny.model, 128, 128, 4, 25).result[0]
    monkeypatch.setattr(comfy.ops.disable_weight_init, "Linear", LazyLinear)
    assert CostReport.execute(tiny.model, 128, 128, 4, 25).result[0] == expected


def test_delegate_made_a_second_time_leaves_out_patches_of_pruned_weights_too(make_small_svd):
    pruned, first = (prune_model(make_small_svd(), CrossAttentionConfig()) for _ in range(2))
    # Of the class without paging, on the model that the first delegate has pruned already.
    delegate = ModelPatcher(first.model, pruned.load_device, pruned.offload_device)
    for callback in pruned.get_all_callbacks(CallbacksMP.ON_CLONE):
        callback(pruned, delegate)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
    delegate.add_patches({key: ("diff", (torch.zeros(1),))})
    assert delegate.patches == {}


# --- threads ------------------------------------------------------------------------------------


@pytest.fixture
def sample_together(tiny, conditioning, monkeypatch):
    """Return a function: models -> their latents, sampled at once in a thread each."""
    lock = threading.Lock()
    positive, negative, latent = conditioning
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    sigmas = tiny.sigmas(3)

    def load(executor, *args, **kwargs):
        with lock:  # 0.3.75 keeps its list of loaded models for one thread
            return executor(*args, **kwargs)

    def sample(models):
        barrier = threading.Barrier(len(models), timeout=60)
        outputs = [None] * len(models)

        def keep_step(executor, *args, **kwargs):
            barrier.wait()  # every evaluation of one run is next to one of the other's
            return executor(*args, **kwargs)

        def run(index):
            model = models[index].clone()
            model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "test", load)
            model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", keep_step)
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(2.5)
            sampler = comfy.samplers.sampler_object("euler")
            with torch.inference_mode():
                outputs[index] = guider.sample(noise, latent["samples"], sampler, sigmas, seed=0)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outputs

    return sample


@pytest.mark.parametrize("is_of_one_node", [False, True])
def test_two_threads_get_what_each_would_get_alone(
    make_small_svd, with_vcut, sample, sample_together, summaries, is_of_one_node
):
    first = with_vcut(make_small_svd(seed=1), 3, 3)
    if is_of_one_node:  # as a host that samples on two GPUs would
        second = clone_onto_second_model(first)
        _change_weights(second)
    else:
        second = with_vcut(make_small_svd(seed=2), 3, 3, temporal="remove")
    expected = [sample(first), sample(second)]
    for output, alone in zip(sample_together([first, second]), expected, strict=True):
        assert torch.equal(output, alone)
    alone, together = summaries()[:2], summaries()[2:]
    assert sorted(_counts(line) for line in together) == sorted(_counts(line) for line in alone)


def _counts(line):
    return without_seconds(line)


# --- arguments that do not exist yet --------------------------------------------------------------


def _pass_more(executor, *args, **kwargs):
    return executor(*args, "new", future="newer", **kwargs)


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        (WrappersMP.OUTER_SAMPLE, comfy.samplers.CFGGuider, "outer_sample"),
        (WrappersMP.CALC_COND_BATCH, comfy.samplers, "_calc_cond_batch"),
        (WrappersMP.DIFFUSION_MODEL, UNetModel, "_forward"),
    ],
    ids=["OUTER_SAMPLE", "CALC_COND_BATCH", "DIFFUSION_MODEL"],
)
def test_unknown_arguments_are_passed_on(
    make_small_svd, with_vcut, sample, difference, monkeypatch, kind, owner, name
):
    base = make_small_svd()
    expected = sample(with_vcut(base, 2, 3))
    seen = []
    original = getattr(owner, name)

    def newer(*args, future=None, **kwargs):
        seen.append((args[-1], future))
        return original(*args[:-1], **kwargs)

    monkeypatch.setattr(owner, name, newer)
    other_pack = base.clone()
    other_pack.add_wrapper_with_key(kind, "test", _pass_more)
    assert difference(sample(with_vcut(other_pack, 2, 3)), expected) < 1e-5
    assert seen and set(seen) == {("new", "newer")}


def test_counts_are_right_when_options_come_by_keyword(
    make_small_svd, with_vcut, sample, difference, summaries
):
    def by_keyword(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        kwargs |= {"context": context, "y": y, "control": control}
        return executor(x, timesteps, transformer_options=transformer_options, **kwargs)

    base = make_small_svd()
    expected = sample(with_vcut(base, 2, 3))
    other_pack = base.clone()
    other_pack.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", by_keyword)
    assert difference(sample(with_vcut(other_pack, 2, 3)), expected) < 1e-5
    for line in summaries():
        assert line.startswith("VCUT: 4 of 6 UNet evaluations; guided 1 of 3 steps")


# --- clone() that shares, clone() that copies ---------------------------------------------------


class Sharing(ModelPatcher):
    """Clones the two outer dicts of model_options only and shares what is in them."""

    def clone(self):
        options, self.model_options = self.model_options, {"transformer_options": {}}
        clone = ModelPatcher.clone(self)
        self.model_options = options
        inner = dict(options["transformer_options"])
        clone.model_options = {**options, "transformer_options": inner}
        return clone


@pytest.mark.parametrize("host", [ModelPatcher, Sharing])
def test_settings_stay_with_their_clone_when_clone(make_small_svd, sample, traced, host):
    plain = make_small_svd()
    base = host(plain.model, plain.load_device, plain.offload_device)
    first = with_technique(base, GuidanceConfig(2, 3))
    cached = with_technique(first, CrossAttentionConfig())
    second = with_technique(cached, GuidanceConfig(4, 3))
    third = first.clone()
    traces = {}
    for name, model in (("base", base), ("first", first), ("second", second), ("third", third),
                        ("cached", cached), ("again", first)):  # fmt: skip
        model, trace = traced(model)
        sample(model)
        traces[name] = sum(map(len, trace))
    # Guided throughout: 6 evaluations; from step 2 on unguided: 4
    assert traces == {
        "base": 6, "first": 4, "second": 6, "third": 4, "cached": 4, "again": 4,
    }  # fmt: skip
    assert base.model_options["transformer_options"] == {}


@pytest.mark.parametrize("host", [ModelPatcher, Sharing])
def test_runs_of_clones_leave_nothing_in_each_other_when_clone(make_small_svd, sample, host):
    plain = make_small_svd()
    base = host(plain.model, plain.load_device, plain.offload_device)
    model = with_technique(with_technique(base, GuidanceConfig(2, 3)), CrossAttentionConfig())
    options = copy.deepcopy(model.model_options)
    expected = sample(model)
    clone = model.clone()
    assert torch.equal(sample(clone), expected) and torch.equal(sample(model), expected)
    assert model.model_options == options and clone.model_options == options
