"""LoRA on the cross-attentions, wherever in the chain it stands, and saving while VCUT is live.

The LoRAs are state dicts in the common format, applied by the function that LoraLoader calls.
"""

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_video_model import ImageOnlyCheckpointSave
from vcut.comfy_adapter import with_technique
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

PARTS = ("to_q", "to_k", "to_v", "to_out.0")
CACHED = CrossAttentionConfig()
NEVER_CUT, CUT_AT_2 = GuidanceConfig(4, 3), GuidanceConfig(2, 3)


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture(scope="module")
def make_lora(tiny):
    """Return a function: seed, parts -> LoRA of rank 2 on every cross-attention."""

    def make(seed, *parts):
        generator = torch.Generator().manual_seed(seed)
        lora = {}
        for path in tiny.cross_attention_paths("spatial", "temporal"):
            for part in parts:
                rows, columns = tiny.model.get_model_object(f"{path}.{part}").weight.shape
                name = f"{path}.{part}"
                up = torch.randn(rows, 2, generator=generator)
                lora[f"{name}.lora_up.weight"] = up
                down = torch.randn(2, columns, generator=generator) / columns**0.5
                lora[f"{name}.lora_down.weight"] = down
        return lora

    return make


@pytest.fixture(scope="module")
def lora(make_lora):
    return make_lora(3, *PARTS)


@pytest.fixture(scope="module")
def other_lora(make_lora):
    return make_lora(4, "to_v", "to_out.0")


@pytest.fixture
def sample(tiny, conditioning):
    return lambda model, **options: tiny.sample(
        model, steps=3, conditioning=conditioning, **options
    )


def _load(model, lora, strength=1.0):
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)
    return patched


def _vcut(model, guidance=NEVER_CUT):
    return with_technique(with_technique(model, CACHED), guidance)


def test_every_key_of_a_lora_is_found_when_vcut_is_live(tiny, sample, lora):
    model = _vcut(tiny.model)
    sample(model)  # leaves VCUT's layers in the shared model
    patched = _load(model, lora)
    assert len(patched.patches) == 32 * len(PARTS)
    assert patched.patches.keys() == _load(tiny.model, lora).patches.keys()


# Each chain: what stands before VCUT, and what after.
CHAINS = {"before": ("A", ""), "after": ("", "A"), "both": ("A", "B"), "stacked": ("AB", "")}


@pytest.mark.parametrize("chain", CHAINS)
def test_lora_has_its_effect_when_never_cut(biased, sample, difference, lora, other_lora, chain):
    loras = {"A": lora, "B": other_lora}
    before, after = CHAINS[chain]
    plain, model = biased, biased
    for name in before + after:
        plain = _load(plain, loras[name])
    for name in before:
        model = _load(model, loras[name])
    model = _vcut(model)
    for name in after:
        model = _load(model, loras[name])
    reference = sample(plain)
    assert difference(sample(model), reference) < 1e-5
    assert difference(reference, sample(biased)) > 1e-3


@pytest.mark.parametrize("is_before", [True, False])
def test_lora_has_its_effect_after_the_cut(
    biased, sample, difference, sample_cut_reference, conditioning, lora, is_before
):
    reference = sample_cut_reference(
        _load(biased, lora), steps=3, last_guided_step=1, conditioning=conditioning
    )
    model = biased
    if is_before:
        model = _vcut(_load(model, lora), CUT_AT_2)
    else:
        model = _load(_vcut(model, CUT_AT_2), lora)
    assert difference(sample(model), reference) < 1e-5


@pytest.mark.parametrize("part", ["to_q", "to_k"])
def test_query_and_key_parts_cannot_change_the_picture(biased, sample, difference, make_lora, part):
    model = _vcut(_load(biased, make_lora(5, part)))
    assert torch.equal(sample(model), sample(_vcut(biased)))
    assert difference(sample(_load(biased, make_lora(5, part))), sample(biased)) < 1e-5


def test_strength_takes_effect_when_it_changes_between_runs(biased, sample, difference, lora):
    base = _vcut(biased)
    outputs = []
    for strength in (0.5, -1.0, 0.5):
        outputs.append(sample(_load(base, lora, strength)))
        assert difference(outputs[-1], sample(_load(biased, lora, strength))) < 1e-5, strength
    assert torch.equal(outputs[0], outputs[2])
    assert difference(outputs[0], outputs[1]) > 1e-3


def test_plain_vcut_and_lora_clones_stay_themselves_when_used_alternately(
    biased, sample, difference, lora
):
    models = {
        "plain": biased,
        "vcut": _vcut(biased),
        "lora": _load(biased, lora),
        "vcut and lora": _load(_vcut(biased), lora),
        "remove": with_technique(biased, CrossAttentionConfig("remove")),
    }
    first = {name: sample(model) for name, model in models.items()}
    for name in (
        "vcut", "lora", "vcut and lora", "plain", "remove", "lora", "vcut", "plain",
        "vcut and lora", "remove",
    ):  # fmt: skip
        assert torch.equal(sample(models[name]), first[name]), name
    assert difference(first["vcut"], first["plain"]) < 1e-5
    assert difference(first["vcut and lora"], first["lora"]) < 1e-5


def test_merging_nodes_take_the_same_weights_from_a_vcut_model(biased, sample, lora):
    plain = _load(biased, lora)
    expected = plain.get_key_patches("diffusion_model.")
    model = _vcut(plain)
    sample(model)
    taken = model.get_key_patches("diffusion_model.")
    assert taken.keys() == expected.keys()
    for key, (weight, *patches) in expected.items():
        assert torch.equal(taken[key][0][0], weight[0]), key
        assert len(taken[key]) == 1 + len(patches), key


# --- saving -----------------------------------------------------------------------------------


def _saved(tiny, model, folder, name) -> dict:
    node = ImageOnlyCheckpointSave()
    node.output_dir = str(folder)
    node.save(model, tiny.clip_vision, tiny.vae, name)
    (path,) = folder.glob(f"{name}*.safetensors")
    return comfy.utils.load_torch_file(str(path))


@pytest.mark.parametrize("is_lora", [False, True])
def test_checkpoint_has_every_key_and_value_when_vcut_is_live(
    tiny, biased, sample, lora, tmp_path, is_lora
):
    plain = _load(biased, lora) if is_lora else biased
    expected = _saved(tiny, plain, tmp_path, "plain")
    for config in (CACHED, CrossAttentionConfig("remove")):
        model = with_technique(plain, config)
        sample(model)
        saved = _saved(tiny, model, tmp_path, config.temporal)
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], expected[key]) for key in expected)
    attn2 = [key for key in expected if ".attn2." in key]
    assert len(attn2) == 32 * 5  # the four weights, and the bias of to_out


def test_plain_model_saves_its_own_weights_after_a_vcut_and_lora_run(tiny, sample, lora, tmp_path):
    expected = _saved(tiny, tiny.model, tmp_path, "first")
    sample(_load(_vcut(tiny.model), lora))
    saved = _saved(tiny, tiny.model, tmp_path, "second")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in expected)
