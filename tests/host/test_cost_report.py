"""VCUT Cost Report: what it reads from a model, says beside others, and leaves alone."""

import copy
import math
import sys

import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from vcut.comfy_adapter import (
    prune_model,
    read_model,
    with_technique,
)
from vcut.nodes.cost_report import CostReport
from vcut.nodes.feature_slicer import FeatureSlicer
from vcut.tests.support.cross_attentions import find_cross_attentions
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.guidance_cut import GuidanceConfig

SIZE = {"width": 64, "height": 64, "video_frames": 4}
LAYERS = 8  # cross-attentions of the small model: quicker to measure than the tiny SVD's 32


@pytest.fixture(scope="module")
def small(make_small_svd):
    return make_small_svd()


@pytest.fixture
def read():
    """Return a function: model -> what a run of 25 steps costs it at a small size."""
    return lambda model, steps=25: read_model(model, steps=steps, **SIZE)


def _modes(run) -> list[tuple[str, str]]:
    kinds = run.unet.cross_attentions()
    return sorted({(kinds[path], mode) for path, mode in run.settings.replaced.items()})


@pytest.mark.parametrize("is_patched_first", [True, False])
def test_settings_of_both_nodes_are_read_in_either_order(small, read, is_patched_first):
    config, guidance = CrossAttentionConfig("remove"), GuidanceConfig(10, 25)
    if is_patched_first:
        model = with_technique(with_technique(small, config), guidance)
    else:
        model = with_technique(with_technique(small, guidance), config)
    run = read(model).run()
    assert _modes(run) == [("spatial", "cached"), ("temporal", "remove")]
    assert len(run.settings.replaced) == LAYERS
    assert run.evaluations == 34


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        (("cached", "keep"), [("temporal", "cached")]),
        (("keep", "cached"), [("spatial", "cached")]),
        (("keep", "keep"), []),
    ],
)
def test_kept_cross_attentions_cost_what_they_cost(small, read, config, modes):
    run = read(with_technique(small, CrossAttentionConfig(*config))).run()
    assert _modes(run) == modes
    assert (run.macs() < run.macs_without()) == bool(modes)


def test_unpatched_model_saves_nothing_while_a_patched_clone_is_loaded(tiny, read, with_vcut):
    tiny.sample(with_vcut(tiny.model), steps=1)  # its layers stay on the shared model
    reading = read(tiny.model)
    assert reading.run().settings.is_empty
    assert reading.parameters == reading.unet.parameters()


def test_layer_that_another_packs_clone_displaces_still_counts(small, read):
    path, _kind = find_cross_attentions(small.model.diffusion_model)[0]
    other = small.clone()
    other.add_object_patch(path, torch.nn.Identity())
    expected = read(small)
    other.patch_model()
    try:
        assert read(small) == expected
    finally:
        other.unpatch_model()


def test_lora_changes_nothing_that_is_counted(tiny, lora, read, with_vcut):
    model = with_vcut(tiny.model)
    changed = model.clone()
    assert changed.add_patches(lora)
    assert read(changed) == read(model)


@pytest.mark.parametrize(
    ("temporal", "parameters"), [("cached", 1_474_233_322), ("remove", 1_449_050_922)]
)
def test_pruned_model_is_reported_with_what_it_holds(make_full_size, temporal, parameters):
    model = prune_model(make_full_size(), CrossAttentionConfig(temporal=temporal))
    reading = read_model(model, 1024, 576, 25, 25)
    assert reading.parameters == parameters
    # Without VCUT it would be the whole UNet.
    assert f"{reading.unet.macs('true') / 1e12:.4f}" == "39.9742"
    assert _modes(reading.run()) == [("spatial", "cached"), ("temporal", temporal)]


@pytest.mark.parametrize("base", ["SVD_img2vid", "SV3D_u", "SV3D_p"])
def test_models_of_svds_kind_are_measured_whatever_their_dtype(make_small_svd, base, read):
    config = getattr(comfy.supported_models, base)
    model = make_small_svd(config, dtype=torch.float16, manual_cast=torch.bfloat16)
    reading = read(model)
    assert reading.value_bytes == 2
    weights = model.model.diffusion_model.parameters()
    assert reading.parameters == sum(parameter.numel() for parameter in weights)


def test_weights_packed_by_quantisation_count_as_what_they_stand_for(make_small_svd, read):
    model = make_small_svd()
    expected = read(model).parameters
    layer = model.get_model_object("diffusion_model.time_embed.0")
    layer.weight = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    assert read(model).parameters == expected


def test_cut_by_sigma_is_found_on_the_karras_schedule(small, read):
    # Step 17 of 25 starts at 2.27 and step 16 at 3.0: 2.3 ends guidance between them.
    run = read(with_technique(small, GuidanceConfig(cut_sigma=2.3))).run()
    assert run.plan.last_guided_step == 16 and run.evaluations == 41


def test_slicer_is_a_setting_of_the_model(small):
    report = _report(FeatureSlicer.execute(small, 8, "everything").result[0])
    _before, _heading, settings = report.partition("Settings of this model\n")
    assert "- Feature slicing: scope everything, 8 slices;" in settings.partition("\n\n")[0]
    assert "no VCUT settings" not in report and "saves memory, not multiply-adds" in report
    assert "Feature slicing" not in _report(small)


# --- what others have put on the model --------------------------------------------------------


def _report(model, steps=25, **size) -> str:
    return CostReport.execute(model, steps=steps, **(SIZE | size)).result[0]


def test_wrapper_of_another_node_is_named_and_no_line_is_promised(small, with_vcut):
    model = EasyCacheNode.execute(with_vcut(small), 0.2, 0.15, 0.95, False).result[0]
    report = _report(model)
    assert "Not counted, put on this model by other nodes: wrapper easycache." in report
    assert "after the run:" not in report


def test_guidance_node_of_the_stock_workflow_leaves_the_promise(small, with_vcut):
    (model,) = VideoLinearCFGGuidance().patch(with_vcut(small), 1.0)
    assert _report(model) == _report(with_vcut(small))


@pytest.mark.parametrize(
    ("place", "count"),
    [(("input", 1), 2), (("middle", 0), 2), (("output", 1, 0), 2), (("input", 1, 7), 0)],
)
def test_cross_attention_that_another_node_replaces_is_not_ours(
    small, read, with_vcut, place, count
):
    model = with_vcut(small)
    model.set_model_attn2_replace(lambda q, k, v, extra: v, *place)
    reading = read(model)
    assert len(reading.settings.replaced) == LAYERS - count
    assert reading.other_patches == ("attn2",)


def test_layer_of_another_pack_is_named_and_counted_as_the_models_own(small, read):
    model = small.clone()
    path, _kind = find_cross_attentions(model.model.diffusion_model)[0]
    model.add_object_patch(path, torch.nn.Identity())
    reading = read(with_technique(model, CrossAttentionConfig()))
    assert len(reading.settings.replaced) == LAYERS - 1
    assert reading.other_patches == ("1 cross-attentions of another pack",)


# --- the node ---------------------------------------------------------------------------------


def test_model_that_is_not_svd_is_refused_in_one_sentence(tiny):
    with pytest.raises(
        ValueError, match="^VCUT Cost Report: expected a Stable Video Diffusion model, got .*"
    ):
        CostReport.execute(tiny.vae, steps=25, **SIZE)


RANGES = {
    "width": (16, 16384),
    "height": (16, 16384),
    "video_frames": (1, 4096),
    "steps": (1, 10000),
}


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("width", 15, "15"),
        ("width", -64, "-64"),
        ("width", 16385, "16385"),
        ("width", 64.5, "64.5"),
        ("width", math.nan, "nan"),
        ("height", 0, "0"),
        ("height", math.inf, "inf"),
        ("height", "64", "str"),
        ("height", None, "NoneType"),
        ("video_frames", 0, "0"),
        ("video_frames", -1, "-1"),
        ("video_frames", 4097, "4097"),
        ("video_frames", math.nan, "nan"),
        ("steps", 0, "0"),
        ("steps", -3, "-3"),
        ("steps", 10001, "10001"),
        ("steps", -math.inf, "-inf"),
    ],
)
def test_linked_number_out_of_range_is_one_sentence(small, name, value, got):
    low, high = RANGES[name]
    with pytest.raises(ValueError) as error:
        CostReport.execute(small, **{"steps": 25, **SIZE, name: value})
    assert str(error.value) == (
        f"VCUT Cost Report: expected {name} to be a whole number from {low} to {high}, got {got}. "
        f"Change {name} in the node or the value that is linked to it."
    )


def test_ranges_are_those_of_the_widgets():
    inputs = {item.id: item for item in CostReport.define_schema().inputs}
    assert {name: (inputs[name].min, inputs[name].max) for name in RANGES} == RANGES


def test_whole_number_that_is_linked_as_a_float_is_taken(small):
    size = {name: float(value) for name, value in SIZE.items()}
    assert _report(small, steps=25.0, **size) == _report(small)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1000, 568), (16, 24), (20, 31)],
)
def test_sizes_are_rounded_down_to_latents_as_the_host_does(small, width, height):
    report = _report(small, width=width, height=height)
    assert report.startswith(f"{width}x{height}, 4 frames, 25 steps")
    rounded = _report(small, width=width // 8 * 8, height=height // 8 * 8)
    assert report.splitlines()[1:] == rounded.splitlines()[1:]


@pytest.mark.parametrize("frames", [14, 50])  # 50: two videos in a batch are one to the host
def test_size_is_read_from_the_samples_where_they_are_linked(small, with_vcut, frames):
    model = with_vcut(small, 17, 25)
    samples = {"samples": torch.zeros(frames, 4, 9, 16)}
    typed = {"width": -1, "height": None, "video_frames": 0}  # they do not count
    report = _report(model, samples=samples, **typed)
    first, *rest = report.splitlines()
    assert first.startswith(f"128x72, {frames} frames (read from samples), 25 steps: ")
    assert rest == _report(model, width=128, height=72, video_frames=frames).splitlines()[1:]


def test_samples_that_are_no_frames_are_refused_in_one_sentence(small):
    samples = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    with pytest.raises(ValueError, match=r"^VCUT Cost Report: expected the frames .* in samples, "):
        _report(small, samples=samples)


def test_largest_size_takes_no_memory(make_full_size):
    # One activation would have 1.1e13 elements: to allocate it, even empty, would fail.
    report, picture = CostReport.execute(make_full_size(), 16384, 16384, 4096, 10000).result
    assert "UNet evaluations: 20000" in report and picture.shape == (1, 800, 800, 3)


def test_one_frame_and_one_step_are_a_run(small, with_vcut):
    report = _report(with_vcut(small, 1, 1), steps=1, video_frames=1)
    assert report.startswith("64x64, 1 frame, 1 step: ")
    assert "UNet evaluations: 1 instead of 2" in report


def test_report_comes_with_a_blank_picture_when_matplotlib_is_missing(small, monkeypatch):
    expected = _report(small)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report, picture = CostReport.execute(small, steps=25, **SIZE).result
    *lines, last = report.splitlines()
    assert lines == expected.splitlines()
    assert last.startswith("The picture is blank because the Python package matplotlib could not")
    assert "python -m pip install matplotlib with the Python that runs ComfyUI" in last
    assert picture.shape == (1, 800, 800, 3) and (picture == 1).all()


def test_second_report_equals_the_first(small, with_vcut):
    model = with_vcut(small, 17, 25)
    (first, picture), (second, again) = (
        CostReport.execute(model, steps=25, **SIZE).result for _ in range(2)
    )
    assert first == second and torch.equal(picture, again)


def test_picture_changes_with_the_settings(small, with_vcut):
    pictures = [
        CostReport.execute(model, steps=25, **SIZE).result[1]
        for model in (small, with_vcut(small, 10, 25))
    ]
    assert not torch.equal(*pictures)
    assert all(0 <= picture.min() and picture.max() <= 1 for picture in pictures)


def _snapshot(model) -> dict:
    """Return everything of a model that a report could have changed."""
    base = model.model
    weights = [*base.named_parameters(), *base.named_buffers()]
    return {
        "weights": [(n, id(w), w.data_ptr(), w._version, w.device, w.dtype) for n, w in weights],
        "modules": [(n, id(m), type(m), m.training, set(vars(m))) for n, m in base.named_modules()],
        "hooks": [(n, len(m._forward_hooks)) for n, m in base.named_modules()],
        "options": copy.deepcopy(model.model_options),
        "object_patches": dict(model.object_patches),
        "backup": dict(model.object_patches_backup),
        "wrappers": copy.deepcopy(model.wrappers),
        "callbacks": copy.deepcopy(model.callbacks),
        "patches": {name: len(found) for name, found in model.patches.items()},
        "config": copy.deepcopy(base.model_config.unet_config),
        "uuid": model.patches_uuid,
        "patcher": set(vars(model)),
    }


@pytest.mark.parametrize("is_loaded", [True, False])
def test_model_is_left_as_it_was(tiny, lora, with_vcut, is_loaded):
    model = with_vcut(tiny.model, 17, 25)
    model.add_patches(lora)
    tiny.sample(model if is_loaded else tiny.model, steps=1)
    before = _snapshot(model)
    _report(model)
    assert _snapshot(model) == before


def test_pruned_model_is_left_as_it_was(make_small_svd):
    model = prune_model(make_small_svd(), CrossAttentionConfig())
    before = _snapshot(model)
    _report(model)
    assert _snapshot(model) == before
