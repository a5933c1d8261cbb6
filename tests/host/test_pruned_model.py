"""The model that VCUT Load SVD Checkpoint returns: what is gone, and that nothing else changes."""

import copy
import gc
import weakref

import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_video_model import ImageOnlyCheckpointSave
from safetensors.torch import save_file
from tiny_svd.loader import load_tiny_svd
from vcut.comfy_adapter import (
    load_pruned,
    prune_model,
    with_technique,
)
from vcut.comfy_adapter.pruned_layers import prune
from vcut.nodes.load_svd_checkpoint import LoadSVDCheckpoint
from vcut.nodes.patch_svd_model import PatchSVDModel
from vcut.tests.support.cross_attentions import find_cross_attentions
from vcut.vcut_core.cross_attention import CrossAttentionConfig

MODES = ("cached", "remove")
STEPS = 3


def _pruned(temporal: str):
    """Return a tiny model of its own, pruned as the loader prunes a full-size one."""
    return prune_model(load_tiny_svd()[0], CrossAttentionConfig(temporal=temporal))


def _lora(model, rank: int = 2) -> dict[str, torch.Tensor]:
    """Return a LoRA file's tensors for all four weights of every cross-attention of ``model``."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for path, _kind in find_cross_attentions(model.model.diffusion_model):
        layer = model.get_model_object(path)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            rows, columns = layer.get_submodule(name).weight.shape
            key = f"{path}.{name}"
            lora[f"{key}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) / 8
            lora[f"{key}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) / 8
    return lora


@pytest.mark.parametrize(
    ("temporal", "parameters"), [("cached", 1_474_233_322), ("remove", 1_449_050_922)]
)
def test_full_size_unet_keeps_only_the_weights_that_count(full_size, temporal, parameters):
    unet = full_size.model.diffusion_model
    prune(unet, temporal)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


@pytest.mark.parametrize("temporal", MODES)
def test_host_plans_with_the_smaller_model(temporal):
    model, _, _ = load_tiny_svd()
    before, bytes_before = model.model_size(), _parameter_bytes(model)
    pruned = prune_model(model, CrossAttentionConfig(temporal=temporal))
    assert before - pruned.model_size() == bytes_before - _parameter_bytes(pruned) > 0
    assert pruned.clone().model_size() == pruned.model_size()


def _parameter_bytes(model) -> int:
    return sum(p.nbytes for p in model.model.diffusion_model.parameters())


def test_pruned_weights_are_freed():
    model, _, _ = load_tiny_svd()
    path, _kind = find_cross_attentions(model.model.diffusion_model)[0]
    layer = model.get_model_object(path)
    gone = [weakref.ref(weight) for weight in (layer.to_q.weight, layer.to_k.weight)]
    del layer
    prune_model(model, CrossAttentionConfig())
    gc.collect()
    assert [weight() for weight in gone] == [None, None]


def test_layers_go_with_the_model_without_waiting_for_the_garbage_collector():
    pruned = _pruned("cached")
    path, _kind = find_cross_attentions(pruned.model.diffusion_model)[0]
    layer = weakref.ref(pruned.get_model_object(path))
    gc.collect()
    gc.disable()
    try:
        del pruned
        assert layer() is None
    finally:
        gc.enable()


def test_copied_model_is_pruned_and_computes_with_its_own_weights(tiny, difference):
    pruned = _pruned("cached")
    expected = tiny.sample(pruned, steps=STEPS)
    clone = pruned.clone()
    config = pruned.model.model_config  # shared: newer hosts' answers any name, __setstate__ too
    clone.model = copy.deepcopy(pruned.model, {id(config): config})
    clone.object_patches_backup = {}
    for weight in pruned.model.diffusion_model.parameters():
        weight.data.zero_()  # the copy must not look
    assert difference(tiny.sample(clone, steps=STEPS), expected) < 1e-5


@pytest.mark.parametrize("temporal", MODES)
def test_clone_onto_another_model_is_pruned_too(tiny, temporal, difference):
    pruned = _pruned(temporal)
    expected = tiny.sample(pruned, steps=STEPS)
    clone = pruned.clone()
    clone.model = load_tiny_svd()[0].model  # a whole model, as newer hosts clone for several GPUs
    clone.object_patches_backup = {}
    for callback in pruned.get_all_callbacks(CallbacksMP.ON_CLONE):
        callback(pruned, clone)
    assert clone.model_size() == pruned.model_size()
    assert type(clone) is type(pruned)
    assert difference(tiny.sample(clone, steps=STEPS), expected) < 1e-5


@pytest.mark.parametrize("temporal", MODES)
def test_result_equals_the_stock_loader_with_the_patch_node(tiny, temporal, difference):
    config = CrossAttentionConfig(temporal=temporal)
    expected = tiny.sample(with_technique(tiny.model, config), steps=STEPS)
    assert difference(tiny.sample(_pruned(temporal), steps=STEPS), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temporal", MODES)
def test_result_equals_the_patch_node_when_weights_are_stored_in(
    tiny, make_small_svd, temporal, dtype, difference
):
    def model():
        return make_small_svd(dtype=dtype, manual_cast=torch.float32)

    config = CrossAttentionConfig(temporal=temporal)
    options = {"steps": STEPS, "conditioning": tiny.conditioning(frames=2)}
    expected = tiny.sample(with_technique(model(), config), **options)
    pruned = prune_model(model(), config)
    assert pruned.model_size() < model().model_size()
    assert difference(tiny.sample(pruned, **options), expected) < 1e-5


@pytest.mark.parametrize("temporal", MODES)
def test_lora_has_the_effect_that_it_has_on_the_whole_model(tiny, temporal, caplog, difference):
    lora = _lora(tiny.model)
    config = CrossAttentionConfig(temporal=temporal)
    whole, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0.0)
    expected = tiny.sample(with_technique(whole, config), steps=STEPS)
    caplog.clear()
    caplog.set_level("INFO")
    pruned, _ = comfy.sd.load_lora_for_models(_pruned(temporal), None, lora, 1.0, 0.0)
    # cached: to_q and to_k of 32 layers. remove: those and to_v, to_out of 16.
    dropped = {"cached": 64, "remove": 96}[temporal]
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "weight patches left out" in line] == [
        f"VCUT: {dropped} weight patches left out: they are for weights that cannot change the "
        "picture"
    ]
    assert not [line for line in lines if "not loaded" in line.lower()]
    assert difference(tiny.sample(pruned, steps=STEPS), expected) < 1e-5


def test_saving_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    save = ImageOnlyCheckpointSave()
    save.output_dir = str(tmp_path)
    with pytest.raises(RuntimeError, match="expected a whole model to save.*Image Only checkpoint"):
        save.save(_pruned("cached"), tiny.clip_vision, tiny.vae, "model")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("is_first", [True, False])
def test_merging_with_a_whole_model_works(tiny, is_first, difference):
    # The merge of a model with itself is the model: only the way there differs.
    expected = tiny.sample(steps=STEPS)
    pruned = _pruned("cached")
    pair = (pruned, tiny.model) if is_first else (tiny.model, pruned)
    (merged,) = ModelMergeSimple().merge(*pair, 0.5)
    assert difference(tiny.sample(merged, steps=STEPS), expected) < 1e-5


@pytest.mark.parametrize(
    ("loaded", "temporal", "spatial", "sentence"),
    [
        ("cached", "keep", "cached", "all its weights for temporal keep"),
        ("cached", "cached", "keep", "all its weights for spatial keep"),
        ("remove", "cached", "cached", "temporal cross-attention for temporal cached"),
    ],
)
def test_patch_node_says_what_it_cannot_restore(loaded, temporal, spatial, sentence):
    with pytest.raises(ValueError, match=f"VCUT Patch SVD Model: expected.*{sentence}"):
        PatchSVDModel.execute(_pruned(loaded), temporal, spatial)


def test_patch_node_may_remove_what_was_loaded_cached(tiny, difference):
    removed = CrossAttentionConfig(temporal="remove")
    expected = tiny.sample(with_technique(tiny.model, removed), steps=STEPS)
    model = with_technique(_pruned("cached"), removed)
    assert difference(tiny.sample(model, steps=STEPS), expected) < 1e-5


def test_several_pictures_are_refused_with_what_to_do(tiny):
    with pytest.raises(RuntimeError, match="expected 1 image embedding token, got 3"):
        tiny.sample(_pruned("cached"), steps=1, conditioning=tiny.conditioning(pictures=3))


def test_attention_patch_of_another_pack_is_refused_with_what_to_do(tiny):
    model = _pruned("cached").clone()
    model.set_model_attn2_replace(lambda q, k, v, extra: v, "input", 1)
    with pytest.raises(RuntimeError, match="expected no attention patch of another pack"):
        tiny.sample(model, steps=1)


def test_missing_checkpoint_is_one_sentence():
    with pytest.raises(
        ValueError, match="VCUT Load SVD Checkpoint: .*found no nothing.safetensors"
    ):
        LoadSVDCheckpoint.execute("nothing.safetensors", "cached")


@pytest.mark.parametrize("content", ["cut short", "other tensors", "no tensors"])
def test_file_that_is_no_svd_checkpoint_is_one_sentence(tmp_path, monkeypatch, content):
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1000)}, file)
    if content == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif content == "no tensors":
        file.write_bytes(b"not a model")
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(file))
    with pytest.raises(ValueError, match="expected an SVD checkpoint, could not read model.safe"):
        load_pruned("model.safetensors", CrossAttentionConfig())


def test_error_without_a_text_is_still_one_sentence(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError

    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: "model.safetensors")
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", fail)
    with pytest.raises(ValueError, match="could not read model.safetensors .AssertionError."):
        load_pruned("model.safetensors", CrossAttentionConfig())


def test_mode_that_needs_the_weights_is_refused_when_a_script_asks_for_it():
    with pytest.raises(ValueError, match="expected temporal to be one of cached, remove, got keep"):
        _pruned("keep")
