"""Transformer blocks during a run: what is left out, who is let in, and that nothing stays."""

import contextlib
import copy

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch.utils._python_dispatch import TorchDispatchMode
from vcut.comfy_adapter import attention_calls, with_technique
from vcut.comfy_adapter.forwards import Forwards
from vcut.comfy_adapter.unet_structure import transformer_blocks
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

CACHED = CrossAttentionConfig()
REMOVED = CrossAttentionConfig(temporal="remove")
# 16 spatial blocks with three layer norms and 16 temporal ones with four; norm2 is one of them.
NORMS, NORMS_WITHOUT_NORM2 = 16 * 3 + 16 * 4, 16 * 2 + 16 * 3


class CountedNorms(TorchDispatchMode):
    """Counts the layer norms that are really computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "layer_norm" in str(function)
        return function(*args, **(kwargs or {}))


def _norms(tiny, model) -> int:
    """Return the layer norms of a run of one step, cond and uncond in one call."""
    conditioning = tiny.conditioning()  # its image encoder has norms too
    with CountedNorms() as counted:
        tiny.sample(model, steps=1, conditioning=conditioning)
    return counted.count


def _blocks(tiny) -> list:
    return [block for *_, block in transformer_blocks(tiny.model.model.diffusion_model)]


@pytest.fixture
def without_block_forward(monkeypatch):
    """Return a function that makes every block compute as the host wrote it, from then on."""
    return lambda: monkeypatch.setattr(attention_calls, "has_hooks", lambda module: True)


# --- what is left out ---------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CACHED, REMOVED], ids=["cached", "remove"])
def test_norm_of_the_query_is_not_computed_when_the_layer_is_a_constant(tiny, config):
    assert _norms(tiny, tiny.model) == NORMS
    assert _norms(tiny, with_technique(tiny.model, config)) == NORMS_WITHOUT_NORM2


def test_norm_of_kept_layers_is_computed(tiny):
    config = CrossAttentionConfig(temporal="keep")
    assert _norms(tiny, with_technique(tiny.model, config)) == NORMS - 16


@pytest.mark.parametrize("config", [CACHED, REMOVED], ids=["cached", "remove"])
@pytest.mark.parametrize("cut_step", [3, 5])
def test_output_is_bit_equal_to_that_of_the_host_s_own_blocks(
    tiny, biased, config, cut_step, without_block_forward
):
    model = with_technique(biased, config)
    model = with_technique(model, GuidanceConfig(cut_step, 4))
    ours = tiny.sample(model, steps=4)
    without_block_forward()
    assert torch.equal(ours, tiny.sample(model, steps=4))


@pytest.mark.parametrize(
    ("config", "is_short"),
    [(CACHED, True), (REMOVED, True), (CrossAttentionConfig(temporal="keep"), False)],
    ids=["cached", "remove", "keep"],
)
def test_embedding_is_not_repeated_for_every_pixel_when_no_temporal_layer_reads_it(
    tiny, config, is_short
):
    contexts = _contexts_of_temporal_blocks(tiny, with_technique(tiny.model, config))
    # 96 pixels are 12 x 12 in the latent; cond and uncond; the tiny model's embedding has 64 values
    assert contexts[0] == (2 * 12 * 12, 1, 0 if is_short else 64)


@pytest.mark.parametrize("name", ["attn2_patch", "attn1_output_patch"])
def test_embedding_is_whole_when_another_pack_may_read_it(tiny, name):
    patches = {
        "attn2_patch": lambda q, k, v, options: (q, k, v),
        "attn1_output_patch": lambda x, options: x,
    }
    model = _with_patch(with_technique(tiny.model, CACHED), name, patches[name])
    assert _contexts_of_temporal_blocks(tiny, model)[0] == (2 * 12 * 12, 1, 64)


def test_embedding_is_whole_when_another_pack_replaced_a_layer(tiny):
    model = with_technique(tiny.model, CACHED)
    path = tiny.cross_attention_paths("temporal")[0]
    layer = copy.deepcopy(tiny.model.get_model_object(path))
    layer.__class__ = type("Other", (type(layer),), {})  # another pack's, which does the same
    model.add_object_patch(path, layer)
    assert _contexts_of_temporal_blocks(tiny, model)[0] == (2 * 12 * 12, 1, 64)


def _contexts_of_temporal_blocks(tiny, model) -> list[tuple]:
    """Return the shapes of the contexts that the temporal blocks get in one step."""
    blocks = [b for _, kind, b in transformer_blocks(tiny.model.model.diffusion_model)
              if kind == "temporal"]  # fmt: skip
    shapes = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _block, _args, kwargs: shapes.append(tuple(kwargs["context"].shape)),
            with_kwargs=True,
        )
        for block in blocks
    ]
    try:
        tiny.sample(model, steps=1)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(shapes) == 16
    return shapes


# --- whom it lets in ----------------------------------------------------------------------------


def _with_patch(model, name: str, patch):
    clone = model.clone()
    clone.set_model_patch(patch, name)
    return clone


@pytest.mark.parametrize("name", ["attn1_patch", "attn2_patch", "middle_patch", "of_a_newer_host"])
def test_blocks_are_the_host_s_when_another_pack_patches_their_inside(tiny, name):
    patches = {
        "attn1_patch": lambda q, k, v, options: (q, k, v),
        "attn2_patch": lambda q, k, v, options: (q, k, v),
    }
    patch = patches.get(name, lambda x, options: x)
    model = _with_patch(with_technique(tiny.model, CACHED), name, patch)
    assert _norms(tiny, model) == NORMS


# The last is of newer hosts; this one does not call it.
@pytest.mark.parametrize("name", ["input_block_patch", "middle_block_after_patch"])
def test_blocks_skip_the_norm_when_another_pack_patches_only_between_them(tiny, name):
    model = with_technique(tiny.model, CACHED)
    model = _with_patch(model, name, lambda value, *_options: value)
    assert _norms(tiny, model) == NORMS_WITHOUT_NORM2


def test_failure_while_the_forwards_are_put_in_takes_all_of_them_out_again(tiny, monkeypatch):
    install, installed = Forwards.install, []

    def interrupted(self, module, *arguments):
        if len(installed) == 3:
            raise KeyboardInterrupt
        install(self, module, *arguments)
        installed.append(module)

    monkeypatch.setattr(Forwards, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.sample(with_technique(tiny.model, CACHED), steps=1)
    assert len(installed) == 3
    assert not [module for module in installed if "forward" in vars(module)]


def test_blocks_where_an_attention_is_replaced_are_the_host_s_and_no_others(tiny):
    model = with_technique(tiny.model, CACHED).clone()
    model.set_model_attn1_replace(lambda q, k, v, options: v, "input", 1)
    assert _norms(tiny, model) == NORMS_WITHOUT_NORM2 + 2  # the spatial and the temporal one


@pytest.mark.parametrize("name", ["attn2", "norm2"])
def test_hooked_layer_is_called_as_before(tiny, name):
    model = with_technique(tiny.model, CACHED)
    block, calls = _blocks(tiny)[0], []
    hook = getattr(block, name).register_forward_hook(lambda *_: calls.append(name))
    try:
        norms = _norms(tiny, model)
    finally:
        hook.remove()
    assert calls == [name]
    assert norms == NORMS_WITHOUT_NORM2 + 1


def test_forward_of_another_pack_stays_and_is_called(tiny):
    block, calls = _blocks(tiny)[0], []

    def forward(*args, **kwargs):
        calls.append(True)
        return type(block).forward(block, *args, **kwargs)

    block.forward = forward
    try:
        tiny.sample(with_technique(tiny.model, CACHED), steps=2)
        assert len(calls) == 2
        assert block.forward is forward
    finally:
        del block.forward


def test_blocks_are_the_host_s_when_gradients_are_wanted(tiny):
    def with_gradients(executor, *args, **kwargs):
        with torch.inference_mode(False), torch.enable_grad():
            return executor(*args, **kwargs).detach()

    model = with_technique(tiny.model, CACHED).clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "easycache", with_gradients)
    assert _norms(tiny, model) == NORMS


# --- nothing stays ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_block_keeps_a_forward_when_the_run_ends(tiny, error):
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(sum("forward" in vars(block) for block in _blocks(tiny)))
        if error:
            raise error("stop")
        return executor(*args, **kwargs)

    model = with_technique(tiny.model, CACHED)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", look)
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        tiny.sample(model, steps=2)
    assert seen[0] == 32
    assert not any("forward" in vars(block) for block in _blocks(tiny))
