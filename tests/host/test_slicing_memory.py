"""What slices save, counted on the full-size SVD without its weights, and what the host is told."""

import functools

import comfy.model_management as management
import comfy.sampler_helpers
import pytest
import torch
from meta_unet import measure_call, meta_svd
from vcut.comfy_adapter import with_technique
from vcut.comfy_adapter.host_model import memory_for_activations
from vcut.comfy_adapter.memory_estimate import HostMemory
from vcut.vcut_core.cross_attention import CrossAttentionConfig
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.slicing_memory import SlicedMemory

GB = 1e9
FULL = [50, 4, 72, 128]  # SVD-XT at 1024x576, 25 frames, cond and uncond


@pytest.fixture(scope="module")
def full_size():
    return meta_svd()


def _sliced(model, scope, slices):
    return with_technique(model, SlicingConfig(slices, scope))


@pytest.fixture(scope="module")
def peak_in_8(full_size):
    """A function: scope -> peak at full size in 8 slices, counted once."""
    return functools.cache(lambda scope: measure_call(_sliced(full_size, scope, 8)).peak_bytes)


# --- the peak -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "slices", "limit"),
    [
        ("feed_forward", 8, 4.5 * GB),
        ("blocks", 8, 3.4 * GB),
        ("everything", 8, 2.3 * GB),
        ("everything", 24, 2.0 * GB),
    ],
)
def test_peak_stays_below_its_limit_at_full_size(full_size, scope, slices, limit):
    model = _sliced(full_size, scope, slices)
    peak = measure_call(model).peak_bytes
    assert peak < limit
    assert 1.1 * peak < model.memory_required(FULL) < 1.4 * peak


def test_unsliced_peak_is_that_of_the_temporal_feed_forward(full_size):
    # In units of 50 x 320 x 72 x 128 halves: 16 in the feed-forward, 6 activations around it, 2
    # skips and a joint of 3; the rest is the embedding for each pixel and what is small.
    memory = measure_call(full_size)
    unit = 50 * 320 * 72 * 128 * 2
    assert 27 * unit < memory.peak_bytes < 27.2 * unit
    assert memory.peak_place == "output_blocks.9.1.time_stack.0.ff.net.0"
    assert memory.at_peak[0] == (8 * unit, "output_blocks.9.1.time_stack.0.ff.net.0.proj")
    assert [size for size, _ in memory.at_peak[1:4]] == [4 * unit, 4 * unit, 3 * unit]


@pytest.mark.parametrize("scope", ["feed_forward", "blocks", "everything"])
@pytest.mark.parametrize(
    ("size", "slices"),
    [
        ({"frames": 14, "height": 320, "width": 576}, 3),
        ({"frames": 25, "height": 320, "width": 576, "conds": 1}, 8),
        ({"frames": 2, "height": 296, "width": 408}, 1),
        ({"frames": 3, "height": 1024, "width": 1024}, 16),
    ],
    ids=str,
)
def test_estimate_is_the_count_with_a_margin(full_size, scope, size, slices):
    model = _sliced(full_size, scope, slices)
    for patched in (model, with_technique(model, CrossAttentionConfig())):
        peak = measure_call(patched, **size).peak_bytes
        rows = size["frames"] * size.get("conds", 2)
        shape = [rows, 4, size["height"] // 8, size["width"] // 8]
        memory = SlicedMemory(slices, scope, HostMemory(patched), size["frames"])
        estimate = memory.required(rows, shape[2:])
        assert 1.1 * peak < estimate < 1.4 * peak


def _patch_all(model):
    model.set_model_attn1_output_patch(lambda n, options: n)


def _patch_first(model):
    model.set_model_attn1_replace(lambda q, k, v, options: torch.empty_like(q), "input", 1)


@pytest.mark.parametrize("patch", [_patch_all, _patch_first])
@pytest.mark.parametrize("scope", ["feed_forward", "blocks", "everything"])
def test_estimate_knows_blocks_that_another_pack_has_patched(full_size, peak_in_8, scope, patch):
    model = _sliced(full_size, scope, 8)
    patch(model)  # after the slicer
    peak = measure_call(model).peak_bytes
    assert 1.1 * peak < model.memory_required(FULL) < 1.4 * peak
    assert peak > peak_in_8(scope) or scope == "feed_forward"


# --- what the host is told ----------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The (required, minimum) bytes of each time that the host makes room for a run."""
    found = []
    original = comfy.sampler_helpers.estimate_memory

    def record(*args, **kwargs):
        found.append(original(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", record)
    return found


def test_host_makes_room_for_the_true_need_of_this_clone_alone(tiny, asked):
    conditioning = tiny.conditioning(frames=2)
    model = _sliced(tiny.model, "everything", 4)
    options = {"steps": 1, "conditioning": conditioning}
    tiny.sample(tiny.model, **options)
    tiny.sample(model, **options)
    tiny.sample(tiny.model, **options)
    shape = conditioning[2]["samples"].shape
    memory = SlicedMemory(4, "everything", HostMemory(model), 2)
    assert asked[1] == (memory.required(4, shape[2:]), memory.required(2, shape[2:]))
    assert asked[0] == asked[2]
    assert asked[1][0] < asked[0][0]


def test_host_plans_without_slices_where_another_gpu_has_a_copy(tiny, asked, summaries):
    options = {"steps": 1, "conditioning": tiny.conditioning(frames=2)}
    model = _sliced(tiny.model, "everything", 4)
    model.set_additional_models("multigpu", [tiny.model.clone()])
    tiny.sample(model, **options)
    tiny.sample(tiny.model, **options)
    assert asked[0] == asked[1]
    assert "not sliced on 1 other GPU" in summaries()[-1]


def test_clone_answers_for_itself_and_so_do_its_clones(tiny):
    stock = tiny.model.memory_required([4, 4, 12, 12])
    model = _sliced(tiny.model, "blocks", 4)
    assert model.clone().memory_required([4, 4, 12, 12]) == model.memory_required([4, 4, 12, 12])
    assert model.memory_required([4, 4, 12, 12]) < stock
    assert tiny.model.memory_required([4, 4, 12, 12]) == stock
    assert model.memory_required([4, 16, 2, 12, 12]) == tiny.model.memory_required(
        [4, 16, 2, 12, 12]
    )


# --- automatic ----------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch):
    """Return a function: bytes -> what the host reports as free from now on."""

    def limit(size):
        monkeypatch.setattr(
            management,
            "get_free_memory",
            lambda _device=None, torch_free_too=False: (size, size) if torch_free_too else size,
        )

    return limit


def _peak(model, scope, slices, rows=50):
    return SlicedMemory(slices, scope, HostMemory(model), 25).peak(rows, FULL[2:], slices)


@pytest.mark.parametrize("slices", [1, 2, 5, 8])
def test_automatic_takes_the_fewest_slices_that_fit(full_size, free, slices):
    # The host wants 1.5 times the estimate free, which is 1.25 times the peak.
    model = _sliced(full_size, "everything", 0)
    free(1.5 * 1.25 * _peak(model, "everything", slices) + 1)
    estimate = SlicedMemory(0, "everything", HostMemory(model), 25)
    assert estimate.choose(50, FULL[2:]) == slices


def test_automatic_takes_conds_one_by_one_when_two_never_fit(full_size, free):
    model = _sliced(full_size, "blocks", 0)
    free(1.25 * _peak(model, "blocks", 3, rows=25) + 1)
    estimate = SlicedMemory(0, "blocks", HostMemory(model), 25)
    assert estimate.choose(50, FULL[2:]) == 3
    free(1)
    assert estimate.choose(50, FULL[2:]) == 64


GPU = torch.device("cuda", 0)  # only named: nothing is put on it


@pytest.fixture
def on_gpu(full_size, tiny, monkeypatch):
    """A model and another one, of which the host believes that they are loaded on a GPU."""
    model, other = full_size.clone(), tiny.model.clone()
    model.load_device = other.load_device = GPU
    monkeypatch.setattr(model.model, "model_loaded_weight_memory", 1_000_000_000)
    monkeypatch.setattr(other.model, "model_loaded_weight_memory", 7_000_000)
    for patcher in (model, other):
        monkeypatch.setattr(patcher.model, "device", GPU)
    loaded = [management.LoadedModel(patcher) for patcher in (model, other)]
    monkeypatch.setattr(management, "current_loaded_models", loaded)
    return model, other


def test_free_for_a_run_is_what_is_left_beside_all_of_its_weights(on_gpu, free):
    model, _ = on_gpu
    free(10_000_000_000)
    reserved = management.extra_reserved_memory()
    # The host unloads the other model to make room.
    missing = model.model_size() - 1_000_000_000
    assert memory_for_activations(model) == 10_000_000_000 - missing + 7_000_000 - reserved
    free(1_000_000_000)
    assert memory_for_activations(model) == 0


def test_weights_that_the_host_pages_are_not_counted_twice(on_gpu, free, monkeypatch):
    # As newer hosts do: the first gigabyte of weights is among what may be had again at any time.
    model, other = on_gpu
    free(9_000_000_000)
    for patcher in (model, other):
        monkeypatch.setattr(patcher, "is_dynamic", lambda: True, raising=False)
        monkeypatch.setattr(
            patcher,
            "get_free_memory",
            lambda device: management.get_free_memory(device) + 1_007_000_000,
            raising=False,
        )
    expected = 9_000_000_000 + 1_007_000_000 - model.model_size()
    assert memory_for_activations(model) == expected - management.extra_reserved_memory()


def test_choice_and_expected_peak_are_in_the_line(tiny, free, summaries):
    model = _sliced(tiny.model, "everything", 0)
    options = {"steps": 1, "conditioning": tiny.conditioning(frames=2)}
    tiny.sample(model, **options)
    assert "slicing: off (automatic)" in summaries()[-1]
    estimate = SlicedMemory(0, "everything", HostMemory(model), 2)
    free(1.5 * 1.25 * estimate.peak(4, (12, 12), 3) + 1)
    tiny.sample(model, **options)
    megabytes = estimate.peak(4, (12, 12), 3) / 1e6
    assert (
        f"slicing: everything in 3 slices (automatic); {megabytes:,.0f} MB of activations expected"
        in summaries()[-1]
    )


def test_patched_blocks_count_as_whole(tiny, asked):
    model = tiny.model.clone()
    model.set_model_attn1_output_patch(lambda n, options: n)
    options = {"steps": 1, "conditioning": tiny.conditioning(frames=2)}
    tiny.sample(_sliced(model, "blocks", 4), **options)
    tiny.sample(_sliced(model, "feed_forward", 4), **options)
    tiny.sample(_sliced(tiny.model, "blocks", 4), **options)
    assert asked[0] == asked[1]
    assert asked[2][0] < asked[0][0]


def test_fp32_counts_twice_as_much(full_size):
    half = _sliced(full_size, "blocks", 8).memory_required(FULL)
    of_fp32 = _sliced(meta_svd(torch.float32), "blocks", 8)
    assert of_fp32.memory_required(FULL) == 2 * half


def test_dtype_that_a_clone_computes_in_counts_before_it_is_loaded(full_size):
    model = _sliced(full_size, "blocks", 8)
    half = model.memory_required(FULL)
    model.set_model_compute_dtype(torch.float32)  # as ModelComputeDtype does
    assert model.memory_required(FULL) == 2 * half
    assert _sliced(full_size, "blocks", 8).memory_required(FULL) == half
