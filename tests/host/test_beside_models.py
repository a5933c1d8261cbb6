"""Models of other kinds and other number formats, and several models at once."""

import comfy.supported_models
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelComputeDtype
from comfy_extras.nodes_stable3d import SV3D_Conditioning
from vcut.comfy_adapter import with_technique
from vcut.nodes.guidance_scheduler import GuidanceScheduler
from vcut.nodes.patch_svd_model import PatchSVDModel
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

KINDS = ("SVD_img2vid", "SV3D_u", "SV3D_p")
LOW_PRECISION = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture
def orbit(tiny):
    """The conditioning of SV3D: an elevation and an azimuth for each frame."""
    picture = torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(0))
    node = SV3D_Conditioning.execute(tiny.clip_vision, picture, tiny.vae, 96, 96, 3, 10.0)
    return node.result


@pytest.fixture
def check(tiny, with_vcut, difference, sample_cut_reference):
    """Return a function that compares a run of three steps, uncut and cut after step 1."""

    def compare(model, conditioning):
        options = {"steps": 3, "conditioning": conditioning}
        reference = tiny.sample(model, **options)
        assert reference.isfinite().all() and reference.std() > 1e-3
        assert difference(tiny.sample(with_vcut(model, 4, 3), **options), reference) < 1e-5
        expected = sample_cut_reference(model, last_guided_step=1, **options)
        assert difference(tiny.sample(with_vcut(model, 2, 3), **options), expected) < 1e-5
        assert difference(expected, reference) > 1e-4
        assert torch.equal(tiny.sample(model, **options), reference)
        return reference

    return compare


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_exact_on(check, make_small_svd, orbit, kind):
    model = make_small_svd(getattr(comfy.supported_models, kind))
    assert type(model.model).__name__ == kind
    check(model, orbit)


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_take(make_small_svd, kind):
    model = make_small_svd(getattr(comfy.supported_models, kind))
    (patched,) = PatchSVDModel.execute(model, "remove", "cached").result
    (scheduled,) = GuidanceScheduler.execute(patched, 17, 25, "average", 0.0).result
    settings = scheduled.model_options["transformer_options"]["vcut"]
    assert settings.configs == {
        "cross_attention": CrossAttentionConfig("remove", "cached"),
        "guidance": GuidanceConfig(17, 25),
    }
    assert scheduled.object_patches == {} and model.model_options == {"transformer_options": {}}


# --- number formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_result_is_exact_when_weights_are_cast_to_fp32_on_use(
    check, make_small_svd, conditioning, dtype
):
    model = make_small_svd(dtype=dtype, manual_cast=torch.float32)
    attn2 = model.get_model_object("diffusion_model.middle_block.1.time_stack.0.attn2")
    assert attn2.to_v.weight.dtype == dtype and attn2.to_v.comfy_cast_weights
    check(model, conditioning)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cached_is_as_near_to_fp32_as_the_model_itself_when_computing_in(
    tiny, make_small_svd, with_vcut, difference, conditioning, dtype
):
    options = {"steps": 3, "conditioning": conditioning}
    exact = tiny.sample(make_small_svd(dtype=dtype, manual_cast=torch.float32), **options)
    native = make_small_svd(dtype=dtype)
    rounding = difference(tiny.sample(native, **options), exact)
    assert 0 < rounding < 0.1
    cached = tiny.sample(with_vcut(native, 4, 3), **options)
    assert difference(cached, exact) < 1.5 * rounding
    assert tiny.sample(with_vcut(native, 2, 3), **options).isfinite().all()


class Int8Linear(torch.nn.Linear):
    """A layer whose weight is stored in another form and made on each call, as GGUF packs do."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.scale, self.bias)


def _quantised(model):
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.scale = layer.weight.abs().amax(1, keepdim=True) / 127
            stored = (layer.weight / layer.scale).round().to(torch.int8)
            layer.weight = torch.nn.Parameter(stored, requires_grad=False)
            layer.__class__ = Int8Linear
    return model


def test_layers_that_dequantise_on_call_are_exact(
    check, make_small_svd, conditioning, tiny, difference
):
    model = _quantised(make_small_svd())
    reference = check(model, conditioning)
    assert difference(reference, tiny.sample(make_small_svd(), steps=3, conditioning=conditioning))
    for scope in ("blocks", "feed_forward", "everything"):
        sliced = with_technique(model, SlicingConfig(scope=scope, slices=3))
        output = tiny.sample(sliced, steps=3, conditioning=conditioning)
        assert difference(output, reference) < 1e-5


def test_cached_values_have_the_dtype_of_the_run_when_it_changes(
    tiny, make_small_svd, with_vcut, difference, conditioning
):
    options = {"steps": 3, "conditioning": conditioning}
    vcut = with_vcut(make_small_svd(dtype=torch.float16), 4, 3)
    first = tiny.sample(vcut, **options)
    for node_first in (True, False):
        model = make_small_svd(dtype=torch.float16)
        if node_first:
            (model,) = ModelComputeDtype().patch(model, "fp32")
            cast = with_vcut(model, 4, 3)
        else:
            (cast,) = ModelComputeDtype().patch(with_vcut(model, 4, 3), "fp32")
            (model,) = ModelComputeDtype().patch(model, "fp32")
        reference = tiny.sample(model, **options)
        assert difference(tiny.sample(cast, **options), reference) < 1e-5
    assert torch.equal(tiny.sample(vcut, **options), first)


# --- several at once --------------------------------------------------------------------------


def test_two_models_keep_their_own_values_when_used_in_turn(
    tiny, make_small_svd, with_vcut, difference, conditioning
):
    options = {"steps": 3, "conditioning": conditioning}
    models = [make_small_svd(seed=seed) for seed in (1, 2)]
    references = [tiny.sample(model, **options) for model in models]
    assert difference(*references) > 1e-2
    patched = [with_vcut(model, 4, 3) for model in models]
    for index in (0, 1, 0, 1):
        assert difference(tiny.sample(patched[index], **options), references[index]) < 1e-5


def test_a_run_is_untouched_by_another_that_begins_and_ends_within_it(
    tiny, make_small_svd, with_vcut, conditioning, summaries
):
    options = {"steps": 3, "conditioning": conditioning}
    inner = with_vcut(make_small_svd(seed=2), 3, 3)
    outer = with_vcut(make_small_svd(seed=1), 2, 3)
    expected = [tiny.sample(outer, **options), tiny.sample(inner, **options)]
    seen = []

    def sample_within(executor, *args, **kwargs):
        seen.append(tiny.sample(inner, **options))
        return executor(*args, **kwargs)

    nested = outer.clone()
    nested.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", sample_within)
    assert torch.equal(tiny.sample(nested, **options), expected[0])
    assert len(seen) == 3 and all(torch.equal(output, expected[1]) for output in seen)
    assert "4 of 6 UNet evaluations" in summaries()[-1]  # the outer one: 2 + 1 + 1


def test_two_branches_of_one_graph_keep_apart(
    tiny, biased, with_vcut, difference, sample_cut_reference, conditioning
):
    options = {"steps": 3, "conditioning": conditioning}
    plain = tiny.sample(biased, **options)
    cut = sample_cut_reference(biased, last_guided_step=1, **options)
    branches = {
        "plain": (biased, plain),
        "uncut": (with_vcut(biased, 4, 3), plain),
        "cut": (with_vcut(biased, 2, 3), cut),
    }
    for name in ("plain", "cut", "uncut", "plain", "uncut", "cut", "plain"):
        model, expected = branches[name]
        assert difference(tiny.sample(model, **options), expected) < 1e-5, name
        if name == "plain":
            assert torch.equal(tiny.sample(model, **options), plain)
