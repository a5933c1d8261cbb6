"""What every technique holds to, alone and beside every other: the contract of the seam."""

import itertools

import comfy.model_patcher
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from vcut.comfy_adapter import feedback, sampling_run, with_technique
from vcut.comfy_adapter.settings import KEY
from vcut.tests.support.second_model import clone_onto_second_model
from vcut.tests.support.toy_technique import ToyConfig, ToyTechnique
from vcut.vcut_core import techniques
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig
from vcut.vcut_core.step_cache import StepCacheConfig

STEPS = 6
ON = {
    "step_cache": StepCacheConfig("fast"),
    "guidance": GuidanceConfig(4, STEPS),
    "cross_attention": CrossAttentionConfig(temporal="remove"),
    "slicing": SlicingConfig(3, "everything"),
    "toy": ToyConfig(0.5),
}
OFF = {
    "step_cache": StepCacheConfig("careful"),  # leaves none of 6 steps out
    "guidance": GuidanceConfig(STEPS + 1, STEPS),
    "cross_attention": CrossAttentionConfig("keep", "keep"),
    "slicing": SlicingConfig(1),
    "toy": ToyConfig(),
}
# What a run of 6 steps counts on the small SVD, whose UNet has four video transformers: one
# spatial and one temporal block each, the temporal with two feed-forward layers.
COUNTS = {
    "step_cache": {"num_steps": 6, "num_computed_steps": 5, "evaluations_saved": 2},
    # Steps 4 to 6 are unguided: three evaluations are left out.
    "guidance": {
        "num_steps": 6, "num_guided_steps": 3, "last_guided_step": 3, "evaluations_saved": 3,
    },
    # 4 spatial maps for cond with uncond, and 4 for cond alone; the other steps reuse them.
    "cross_attention": {"computed": 8, "reused": 16, "removed": 24},
    "slicing": {"slices": 3, "scope": "everything"},
    "toy": {"num_layers": 6 * 4 * 3},
}  # fmt: skip
KEYS = list(ON)
PAIRS = list(itertools.permutations(KEYS, 2))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Register the toy: one more entry of the tuple is all that a technique needs."""
    monkeypatch.setattr(techniques, "TECHNIQUES", (*techniques.TECHNIQUES, ToyTechnique))


@pytest.fixture
def sample(tiny):
    conditioning = tiny.conditioning(frames=4)
    return lambda model, **options: tiny.sample(
        model, **{"steps": STEPS, "conditioning": conditioning, **options}
    )


@pytest.fixture(scope="module")
def small(make_small_svd):
    return make_small_svd()


@pytest.fixture
def counted(monkeypatch):
    """The counts of the runs so far, as they are sent to the page."""
    sent = []
    monkeypatch.setattr(sampling_run, "send_run_event", lambda *event: sent.append(event))
    return sent


def _with(model, *keys, configs=ON):
    for key in keys:
        model = with_technique(model, configs[key], node_id=key)
    return model


def _traces(model) -> dict:
    """Return everything that a run could leave on a model and on what its clones share."""
    base = model.model
    return {
        "modules": {
            name: sorted(vars(module))
            for name, module in base.named_modules()
            if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        },
        "base": sorted(set(vars(base)) - {"current_weight_patches_uuid"}),
        "options": str(model.model_options),
        "object_patches": dict(model.object_patches),
        "backup": dict(model.object_patches_backup),
        "wrappers": {kind: list(keyed) for kind, keyed in model.wrappers.items() if keyed},
        "callbacks": {kind: list(keyed) for kind, keyed in model.callbacks.items() if keyed},
    }


def test_every_technique_has_its_place_in_the_contract():
    assert [kind.key for kind in techniques.TECHNIQUES] == KEYS
    for kind in techniques.TECHNIQUES:
        assert type(ON[kind.key]) is type(OFF[kind.key]) is kind.config_class


# --- switched off ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_output_is_bit_equal_to_the_host_s_when_switched_off(small, sample, key):
    expected = sample(small)
    assert torch.equal(sample(_with(small, key, configs=OFF)), expected)
    assert not torch.equal(sample(_with(small, key)), expected) or key == "slicing"


@pytest.mark.parametrize("pair", itertools.combinations(KEYS, 2), ids=" and ".join)
def test_output_is_that_of_one_when_the_other_is_switched_off(small, sample, pair):
    for key, other in (pair, pair[::-1]):
        both = _with(_with(small, key), other, configs=OFF)
        assert torch.equal(sample(both), sample(_with(small, key)))


@pytest.mark.parametrize("key", KEYS)
def test_second_node_s_settings_replace_the_first_s(small, sample, key):
    twice = with_technique(_with(small, key), OFF[key])
    assert torch.equal(sample(twice), sample(small))


# --- nothing stays --------------------------------------------------------------------------------


class Failure(Exception):
    pass


def _fail_at(call: int, error: type[BaseException]):
    calls = []

    def fail(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise error
        return executor(*args, **kwargs)

    return fail


@pytest.mark.parametrize(
    "error", [None, Failure, KeyboardInterrupt], ids=["success", "error", "interrupt"]
)
@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), tuple(KEYS)], ids=" and ".join)
def test_nothing_is_left_after_a_run(make_small_svd, sample, keys, error):
    plain = make_small_svd()
    expected = sample(plain)
    model = _with(plain, *keys)
    if error is not None:  # in the middle of the third evaluation
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", _fail_at(3, error))
    before = _traces(model), _traces(plain)
    if error is None:
        sample(model)
    else:
        with pytest.raises(error):
            sample(model)
    assert (_traces(model), _traces(plain)) == before
    assert before[1]["modules"] == {}
    assert torch.equal(sample(plain), expected)


@pytest.mark.parametrize("key", KEYS)
def test_run_after_a_failed_one_is_as_if_it_had_not_been(small, sample, key):
    model = _with(small, key)
    expected = sample(model)
    failing = model.clone()
    failing.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", _fail_at(2, Failure))
    with pytest.raises(Failure):
        sample(failing)
    assert torch.equal(sample(model), expected)


# --- beside one another ---------------------------------------------------------------------------


@pytest.mark.parametrize("pair", itertools.combinations(KEYS, 2), ids=" and ".join)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde"])
def test_order_of_the_nodes_changes_nothing(small, sample, pair, sampler):
    first, second = (_with(small, *keys) for keys in (pair, pair[::-1]))
    assert torch.equal(sample(first, sampler=sampler), sample(second, sampler=sampler))


@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), *PAIRS], ids=" and ".join)
def test_what_was_done_is_counted(small, sample, counted, keys):
    sample(_with(small, *keys))
    ((lines, log_line, counts),) = counted
    for key in keys:
        told = counts["techniques"][key]
        assert {name: told[name] for name in _counts_of(key, keys)} == _counts_of(key, keys)
        assert lines[key][-1].endswith(" s")
    assert counts["is_complete"] and counts["fallbacks"] == {}
    saved = sum(COUNTS[key].get("evaluations_saved", 0) for key in keys)
    assert counts["evaluations_saved"] == saved and counts["unet_evaluations"] == 12 - saved
    assert log_line.startswith(f"{12 - saved} of 12 UNet evaluations; ")


def _counts_of(key: str, keys: tuple) -> dict:
    counts = dict(COUNTS[key])
    if key == "cross_attention" and "guidance" not in keys:  # one embedding all along
        counts |= {"computed": 4, "reused": 20}
    if "step_cache" in keys and key == "cross_attention":  # a step less
        counts |= {"reused": counts["reused"] - 4, "removed": 20}
    if "step_cache" in keys and key == "toy":
        counts |= {"num_layers": 5 * 4 * 3}
    if key == "toy" and "slicing" in keys:  # called once a slice
        del counts["num_layers"]
    return counts


# --- a second model -------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), *PAIRS], ids=" and ".join)
def test_clone_onto_a_second_model_computes_with_its_own_weights(make_small_svd, sample, keys):
    first = _with(make_small_svd(), *keys)
    expected = sample(first)
    second = clone_onto_second_model(first)
    assert torch.equal(sample(second), expected)
    for weight in second.model.diffusion_model.parameters():
        weight.data.mul_(1.01)
    changed = comfy.model_patcher.ModelPatcher(
        second.model, second.load_device, second.offload_device
    )
    assert torch.equal(sample(second), sample(_with(changed, *keys)))
    assert not torch.equal(sample(second), expected)
    assert torch.equal(sample(first), expected)


# --- what may fail without costing the picture ----------------------------------------------------


def test_counts_that_cannot_be_sent_cost_nobody_the_picture(small, sample, monkeypatch):
    class Broken:
        instance = type("Server", (), {"client_id": None, "send_sync": lambda *_: 1 / 0})()

    model = _with(small, *KEYS)
    expected = sample(model)
    monkeypatch.setattr(feedback, "PromptServer", Broken)
    assert torch.equal(sample(model), expected)


def test_settings_are_frozen_and_the_clone_s_own(small):
    model = _with(small, *KEYS)
    settings = model.model_options["transformer_options"][KEY]
    with pytest.raises(AttributeError):
        settings.configs = {}
    assert KEY not in small.model_options.get("transformer_options", {})
    assert list(settings.configs) == KEYS


# --- what other packs may do to a run -------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_host_block_whose_cross_attention_another_pack_took_out_runs(small, sample, key):
    plain = small.clone()
    plain.add_object_patch("diffusion_model.middle_block.1.time_stack.0.attn2", None)
    expected = sample(_with(plain, key, configs=OFF))
    assert torch.equal(expected, sample(plain))
    assert sample(_with(plain, key)).isfinite().all()


def test_second_pass_through_the_sampler_in_one_run_has_the_techniques_too(small, sample, counted):
    def twice(executor, *args, **kwargs):
        executor(*args, **kwargs)
        return executor(*args, **kwargs)

    model = _with(small, *KEYS)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "test", twice)
    sample(model)
    ((_lines, _log, counts),) = counted
    assert counts["fallbacks"] == {}
    assert counts["techniques"]["toy"]["num_layers"] > 0


@pytest.mark.parametrize("error", [None, KeyboardInterrupt], ids=["success", "interrupt"])
def test_report_that_fails_hides_neither_the_result_nor_an_error(small, sample, monkeypatch, error):
    model = _with(small, *KEYS)
    expected = sample(model)
    monkeypatch.setattr(ToyTechnique, "lines", lambda self: 1 / 0)
    if error is None:
        assert torch.equal(sample(model), expected)
        return
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", _fail_at(2, error))
    with pytest.raises(error):
        sample(model)


def test_estimate_of_another_pack_is_asked_where_no_technique_has_one(small, sample, monkeypatch):
    asked = []
    own = small.model.memory_required

    def of_another_pack(*args, **kwargs):
        asked.append(args)
        return own(*args, **kwargs)

    monkeypatch.setattr(small.model, "memory_required", of_another_pack)
    model = _with(small, "slicing")
    model.set_additional_models("multigpu", [small.clone()])  # so that the slicer has none
    sample(model, steps=1)
    assert asked and small.model.memory_required is of_another_pack
