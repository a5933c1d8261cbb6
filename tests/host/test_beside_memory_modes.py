"""Weights that are not all where they are used: partial loads, --lowvram, --novram, evictions.

On a CPU ComfyUI turns these modes off; the fixtures turn its own code for them on again.
"""

import comfy.model_management as management
import comfy.model_patcher
import pytest
import torch
from private_comfyui.install import comfyui_version, current_host
from vcut.comfy_adapter import with_technique
from vcut.vcut_core.cross_attention import CrossAttentionConfig

VRAMState = management.VRAMState


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture(scope="module")
def sample(tiny, conditioning):
    return lambda model: tiny.sample(model, steps=3, conditioning=conditioning)


@pytest.fixture(scope="module")
def plain(biased, lora):
    clone = biased.clone()
    assert len(clone.add_patches(lora)) == 64
    return clone


@pytest.fixture(scope="module")
def vcut(plain, with_vcut):
    return with_vcut(plain, 3, 3)


@pytest.fixture(scope="module")
def expected(plain, vcut, sample, sample_cut_reference, conditioning, difference):
    """What both must give, sampled with all weights loaded."""
    reference = sample_cut_reference(plain, steps=3, last_guided_step=2, conditioning=conditioning)
    outputs = {"plain": sample(plain), "vcut": sample(vcut)}
    assert difference(outputs["vcut"], reference) < 1e-5
    return outputs


@pytest.fixture
def all_unloaded():
    management.unload_all_models()
    yield
    management.unload_all_models()


@pytest.fixture
def limit_memory(tiny, monkeypatch, all_unloaded):
    """Return a function: state, bytes -> ComfyUI sees a GPU with room for that many weights."""

    def limit(state, free_for_weights=0):
        monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
        monkeypatch.setattr(management, "vram_state", state)
        monkeypatch.setattr(management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)
        limit = management.minimum_inference_memory() + free_for_weights

        def get_free_memory(dev=None, torch_free_too=False):
            free = limit - tiny.model.loaded_size()
            return (free, free) if torch_free_too else free

        monkeypatch.setattr(management, "get_free_memory", get_free_memory)

    return limit


def _cast_on_use(model) -> list[str]:
    """Return the layers whose weights are fetched at each call."""
    named = model.model.named_modules()
    return [
        name
        for name, module in named
        if getattr(module, "prev_comfy_cast_weights", None) is not None
    ]


# --- how much is loaded -----------------------------------------------------------------------


# Of a model, hosts up to 0.3.64 load 128 MB at least: all of the tiny one.
loads_parts = pytest.mark.skipif(
    comfyui_version(current_host().comfyui) <= (0, 3, 64), reason="this host loads it whole"
)


@pytest.mark.parametrize(
    "state", [VRAMState.NO_VRAM, pytest.param(VRAMState.LOW_VRAM, marks=loads_parts)], ids=str
)
def test_results_are_those_of_a_full_load_when_no_weight_is_loaded(
    plain, vcut, sample, difference, expected, limit_memory, state
):
    limit_memory(state)
    for name, model in (("vcut", vcut), ("plain", plain), ("vcut", vcut)):
        assert difference(sample(model), expected[name]) < 1e-5, name
        names = _cast_on_use(model)
        assert sum(".attn2." in name for name in names) == 32 * 4
        assert model.model.model_lowvram


@loads_parts
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_results_are_those_of_a_full_load_when_loaded_in_part(
    plain, vcut, sample, difference, expected, limit_memory, share
):
    limit_memory(VRAMState.NORMAL_VRAM, share * plain.model_size())
    for name, model in (("plain", plain), ("vcut", vcut), ("plain", plain)):
        assert difference(sample(model), expected[name]) < 1e-5, name
        assert 0 < model.model.model_loaded_weight_memory < plain.model_size()
        assert _cast_on_use(model)


def test_results_stay_when_more_and_less_memory_is_free_between_runs(
    vcut, sample, difference, expected, all_unloaded
):
    sample(vcut)
    loaded = vcut.model.model_loaded_weight_memory
    vcut.partially_unload(vcut.offload_device, loaded // 2)
    assert vcut.model.model_lowvram
    assert difference(sample(vcut), expected["vcut"]) < 1e-5
    vcut.partially_unload(vcut.offload_device, loaded // 2)
    vcut.partially_load(vcut.load_device, loaded // 4)
    assert difference(sample(vcut), expected["vcut"]) < 1e-5


def test_vcut_is_loaded_after_plain_when_both_are_in_part(plain, sample, difference, limit_memory):
    limit_memory(VRAMState.NORMAL_VRAM, 0.5 * plain.model_size())
    reference = sample(plain)
    cached = with_technique(plain, CrossAttentionConfig())
    assert difference(sample(cached), reference) < 1e-5
    assert torch.equal(sample(plain), reference)


# --- evicted ----------------------------------------------------------------------------------


def test_results_are_bit_equal_when_the_model_was_evicted_between_runs(
    plain, vcut, sample, expected
):
    for name, model in (("vcut", vcut), ("vcut", vcut), ("plain", plain), ("vcut", vcut)):
        assert torch.equal(sample(model), expected[name])
        management.unload_all_models()
        assert type(plain.get_model_object(
            "diffusion_model.middle_block.1.time_stack.0.attn2"
        )).__name__ == "CrossAttention"  # fmt: skip


def test_clone_that_was_deleted_while_loaded_leaves_nothing(
    tiny, plain, sample, expected, with_vcut
):
    sample(with_vcut(plain, 1, 3))  # the clone is gone, its layers are still in the model
    assert torch.equal(sample(plain), expected["plain"])


@pytest.mark.parametrize("error", [MemoryError, management.OOM_EXCEPTION])
@pytest.mark.parametrize("at_weight", [1, 40])
def test_next_run_is_bit_equal_when_memory_ran_out_while_loading(
    plain, vcut, sample, expected, monkeypatch, all_unloaded, error, at_weight
):
    calls = []
    patch_weight = comfy.model_patcher.ModelPatcher.patch_weight_to_device

    def run_out(self, key, *args, **kwargs):
        calls.append(key)
        if len(calls) == at_weight:
            raise error("out of memory")
        return patch_weight(self, key, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(comfy.model_patcher.ModelPatcher, "patch_weight_to_device", run_out)
        sample(vcut)
    assert len(calls) == at_weight
    assert torch.equal(sample(plain), expected["plain"])
    assert torch.equal(sample(vcut), expected["vcut"])


def test_next_run_is_bit_equal_when_memory_ran_out_while_sampling(
    plain, vcut, sample, expected, monkeypatch
):
    layer = plain.get_model_object("diffusion_model.output_blocks.5.1.proj_out")

    def run_out(*args):
        raise management.OOM_EXCEPTION("out of memory")

    handle = layer.register_forward_pre_hook(run_out)
    with pytest.raises(management.OOM_EXCEPTION):
        sample(vcut)
    handle.remove()
    assert torch.equal(sample(vcut), expected["vcut"])
    assert torch.equal(sample(plain), expected["plain"])
