"""A clean clone while another clone's object patches, of another pack, are still on the model.

ComfyUI takes them off when it loads the next clone, so nodes run while they are there.
"""

import pytest
import torch
from vcut.comfy_adapter import prune_model
from vcut.nodes.cost_report import CostReport
from vcut.nodes.feature_slicer import FeatureSlicer
from vcut.nodes.guidance_scheduler import GuidanceScheduler
from vcut.nodes.patch_svd_model import PatchSVDModel
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SCOPES

SHAPE = [8, 4, 12, 12]
TRANSFORMER = "diffusion_model.input_blocks.1.1"
BLOCK = f"{TRANSFORMER}.time_stack.0"


class Foreign(torch.nn.Module):
    """Another pack's layer, which has nothing of the layer that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Linear(3, 5)  # parameters that are not the model's

    def forward(self, x, *_args, **_kwargs):
        return x


class ForeignBlock(torch.nn.Module):
    """Another pack's transformer block without an attn2, which reads the context all the same."""

    def forward(self, x, context=None, **_kwargs):
        return x + context.mean(dim=(1, 2), keepdim=True)


class ForeignUNet(torch.nn.Module):
    """Another pack's wrapper of the whole UNet; its dtype is read by the host."""

    def __init__(self, unet) -> None:
        super().__init__()
        self.unet, self.dtype = unet, unet.dtype

    def forward(self, *args, **kwargs):
        return self.unet(*args, **kwargs)


def _object_patches(model, kind: str) -> dict:
    if kind == "UNet":
        return {"diffusion_model": ForeignUNet(model.model.diffusion_model)}
    if kind == "attn2":
        names = [name for name, _ in model.model.named_modules() if name.endswith(".attn2")]
        return {name: Foreign() for name in names}
    place = {
        "transformer block": BLOCK,
        "transformer": TRANSFORMER,
        "residual block": "diffusion_model.input_blocks.1.0",
        "convolution": "diffusion_model.input_blocks.0.0",
    }[kind]
    if kind == "convolution":
        return {place: torch.nn.Sequential(model.get_model_object(place))}
    return {place: Foreign()}


KINDS = ["attn2", "transformer block", "transformer", "residual block", "convolution", "UNet"]


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=4)


@pytest.fixture
def leave_on(tiny, conditioning):
    """Return a function: run a clone that has another pack's object patches of a kind."""

    def run(model, kind: str) -> None:
        other = model.clone()
        for path, layer in _object_patches(model, kind).items():
            other.add_object_patch(path, layer)
        tiny.sample(other, steps=1, conditioning=conditioning)
        assert any(isinstance(m, (Foreign, ForeignUNet)) for m in model.model.modules()) or (
            kind == "convolution"
        )
        assert model.object_patches_backup

    return run


@pytest.fixture(scope="module")
def pristine(make_small_svd):
    """A model of the same weights that no other pack has touched."""
    return make_small_svd()


def _with_every_node(model, scope: str):
    (model,) = PatchSVDModel.execute(model, "remove", "cached").result
    (model,) = GuidanceScheduler.execute(model, 2, 3, "average", 0.0).result
    (model,) = FeatureSlicer.execute(model, 2, scope).result
    return model


def _report(model) -> str:
    return CostReport.execute(model, 64, 64, 4, 25).result[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_does_the_same_to_a_clean_clone(
    make_small_svd, pristine, leave_on, tiny, conditioning, kind
):
    model = make_small_svd()
    leave_on(model, kind)
    clean = model.clone()
    assert _report(clean) == _report(pristine)
    for scope in SCOPES:
        leave_on(model, kind)
        ours, expected = _with_every_node(clean, scope), _with_every_node(pristine, scope)
        assert list(ours.object_patches) == list(expected.object_patches)
        assert ours.memory_required(SHAPE) == expected.memory_required(SHAPE)
        assert _report(ours) == _report(expected)
        options = {"steps": 3, "conditioning": conditioning}
        assert torch.equal(tiny.sample(ours, **options), tiny.sample(expected, **options))
    (second,) = PatchSVDModel.execute(ours, "keep", "keep").result  # the first node's layers go
    assert not second.object_patches


@pytest.mark.parametrize("kind", ["attn2", "transformer block"])
def test_layers_of_a_pruned_model_are_found(make_small_svd, leave_on, kind):
    model = prune_model(make_small_svd(), CrossAttentionConfig())
    expected = _report(model)
    leave_on(model, kind)
    assert _report(model) == expected
    with pytest.raises(ValueError, match="expected a model with all its weights"):
        PatchSVDModel.execute(model, "keep", "cached")


def test_block_of_another_pack_without_cross_attention_stays(
    make_small_svd, tiny, conditioning, difference
):
    model = make_small_svd().clone()
    model.add_object_patch(BLOCK, ForeignBlock())
    expected = tiny.sample(model, steps=2, conditioning=conditioning)
    (model,) = PatchSVDModel.execute(model, "cached", "cached").result
    assert "1 cross-attentions of another pack" in _report(model)
    assert f"{BLOCK}.attn2" not in model.object_patches
    output = tiny.sample(model, steps=2, conditioning=conditioning)
    assert difference(output, expected) < 1e-4
