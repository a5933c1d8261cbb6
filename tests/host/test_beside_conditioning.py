"""Conditioning of every kind that a graph can hand to the sampler.

Each case is compared with the graph without VCUT, uncut and cut, and its evaluations are counted.
"""

import re

import comfy.controlnet
import comfy.hooks
import pytest
import torch

import nodes


@pytest.fixture(scope="module")
def a(tiny):
    return tiny.conditioning(frames=2)


@pytest.fixture(scope="module")
def b(tiny):
    return tiny.conditioning(seed=5, frames=2)


@pytest.fixture
def counted(tiny):
    """Return a function: evaluations since it was last asked, counted within the UNet.

    Not by a wrapper: beside another pack's wrapper VCUT keeps nothing.
    """
    rows = []
    layer = tiny.model.model.diffusion_model.time_embed
    handle = layer.register_forward_hook(lambda module, args, output: rows.append(len(output)))

    def take():
        evaluations = sum(rows) // 2  # of two frames each
        rows.clear()
        return evaluations

    yield take
    handle.remove()


@pytest.fixture
def check(tiny, biased, with_vcut, counted, summaries, difference, sample_cut_reference):
    """Return a function that compares a run of three steps, uncut and cut after step 1."""

    def compare(conditioning, is_effective_against=None):
        options = {"steps": 3, "conditioning": conditioning}
        reference = tiny.sample(biased, **options)
        total = counted()
        assert difference(tiny.sample(with_vcut(biased, 4, 3), **options), reference) < 1e-5
        assert counted() == total
        output = tiny.sample(with_vcut(biased, 2, 3), **options)
        done = counted()
        assert done < total
        said = re.search(r"(\d+) of (\d+) UNet evaluations", summaries()[1])
        assert (int(said[1]), int(said[2])) == (done, total)
        expected = sample_cut_reference(biased, last_guided_step=1, **options)
        assert difference(output, expected) < 1e-5
        if is_effective_against is not None:
            other = tiny.sample(biased, steps=3, conditioning=is_effective_against)
            assert difference(reference, other) > 1e-4
        return summaries()

    return compare


# --- several conds ----------------------------------------------------------------------------


def _combine(one, other):
    return nodes.ConditioningCombine().combine(one, other)[0]


def test_combined_conds(check, a, b):
    check((_combine(a[0], b[0]), a[1], a[2]), is_effective_against=a)


def test_combined_conds_on_both_sides(check, a, b):
    check((_combine(a[0], b[0]), _combine(a[1], b[1]), a[2]))


def test_a_negative_that_is_a_picture(check, a, b):
    check((a[0], b[0], a[2]), is_effective_against=a)


def test_a_negative_of_several_tokens(check, tiny, a):
    several = tiny.conditioning(seed=5, frames=2, pictures=3)[0]
    assert several[0][0].shape[1] == 3
    lines = check((a[0], several, a[2]), is_effective_against=a)
    # Beside three tokens the host repeats the one, so no layer is affine until the cut.
    assert "cross-attention computed in full: several image tokens (32 calls)" in lines[1]


@pytest.mark.parametrize("x", [0.0, 0.5])
def test_areas(check, a, b, x):
    (part,) = nodes.ConditioningSetAreaPercentage().append(b[0], 0.5, 1.0, x, 0.0, 0.8)
    check((_combine(a[0], part), a[1], a[2]), is_effective_against=a)


def test_areas_without_a_cond_for_the_rest(check, a, b):
    halves = [
        nodes.ConditioningSetAreaPercentage().append(cond, 1.0, 0.5, 0.0, y, 1.0)[0]
        for cond, y in ((a[0], 0.0), (b[0], 0.5))
    ]
    check((_combine(*halves), a[1], a[2]))


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_masks(check, a, b, bounds):
    mask = torch.zeros(1, 96, 96)
    mask[:, 10:90, :64] = 1
    (part,) = nodes.ConditioningSetMask().append(b[0], mask, bounds, 0.9)
    check((_combine(a[0], part), a[1], a[2]), is_effective_against=a)


def test_a_default_cond_fills_what_a_mask_leaves(check, a, b):
    mask = torch.zeros(1, 96, 96)
    mask[:, :, :48] = 1
    (part,) = nodes.ConditioningSetMask().append(b[0], mask, "default", 1.0)
    default = comfy.hooks.set_default_conds_and_combine([part], [a[0]])[0]
    check((default, a[1], a[2]), is_effective_against=a)


def _range(cond, start, end):
    return nodes.ConditioningSetTimestepRange().set_range(cond, start, end)[0]


# Three karras steps start at 0, 0.30 and 1.0 of the run: 700, 15.6 and 0.002 on a log scale.
def test_timestep_ranges_of_the_positive(check, a, b):
    both = _combine(_range(b[0], 0.0, 0.2), _range(a[0], 0.2, 1.0))
    check((both, a[1], a[2]), is_effective_against=a)


# Active in steps 1 and 2: cut at step 2, one evaluation is saved and not two.
def test_timestep_range_of_the_negative(check, a):
    check((a[0], _range(a[1], 0.0, 0.9), a[2]), is_effective_against=a)


# --- control ----------------------------------------------------------------------------------


class Control(comfy.controlnet.ControlBase):
    """What a ControlNet is to the sampler: an object that adds to the middle block's output."""

    def __init__(self):
        super().__init__()
        self.embeddings = []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.embeddings.append(cond["c_crossattn"].detach().clone())
        rows, _, height, width = x_noisy.shape
        change = torch.full((rows, 64, height // 4, width // 4), 0.5)
        return {"middle": [change], "output": []}

    def get_models(self):
        return []


@pytest.mark.parametrize("is_on_both", [True, False])
def test_control_objects(check, a, is_on_both):
    controlled = [
        [[cond[0][0], {**cond[0][1], "control": Control(), "control_apply_to_uncond": False}]]
        for cond in a[:2]
    ]
    negative = controlled[1] if is_on_both else a[1]
    check((controlled[0], negative, a[2]), is_effective_against=a)


# --- hooks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_hooks(tiny):
    """Return a function: LoRA on to_v and to_out of every attn2, by a schedule if asked."""

    def make(seed=7, is_scheduled=False):
        generator = torch.Generator().manual_seed(seed)
        lora = {}
        for path in tiny.cross_attention_paths("spatial", "temporal"):
            for part in ("to_v", "to_out.0"):
                rows, columns = tiny.model.get_model_object(f"{path}.{part}").weight.shape
                lora[f"{path}.{part}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
                down = torch.randn(2, columns, generator=generator) / columns**0.5
                lora[f"{path}.{part}.lora_down.weight"] = down
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        if is_scheduled:
            keyframes = comfy.hooks.HookKeyframeGroup()
            for strength, start in ((1.0, 0.0), (0.1, 0.2), (2.0, 0.9)):
                keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
            hooks.set_keyframes_on_hooks(keyframes)
        return hooks

    return make


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_lora_hook_on_the_positive(check, a, make_hooks, is_scheduled):
    hooked = comfy.hooks.set_hooks_for_conditioning(a[0], make_hooks(is_scheduled=is_scheduled))
    check((hooked, a[1], a[2]), is_effective_against=a)


def test_lora_hook_on_both_sides(check, a, make_hooks):
    hooks = make_hooks(is_scheduled=True)
    hooked = [comfy.hooks.set_hooks_for_conditioning(cond, hooks) for cond in a[:2]]
    check((*hooked, a[2]), is_effective_against=a)


def test_two_lora_hooks_on_two_conds(check, a, b, make_hooks):
    one = comfy.hooks.set_hooks_for_conditioning(a[0], make_hooks(7))
    other = comfy.hooks.set_hooks_for_conditioning(b[0], make_hooks(8, is_scheduled=True))
    check((_combine(one, other), a[1], a[2]), is_effective_against=a)


def test_run_without_hooks_is_bit_equal_after_one_with(tiny, biased, with_vcut, a, make_hooks):
    model = with_vcut(biased, 3, 3)
    expected = tiny.sample(model, steps=3, conditioning=a)
    hooked = comfy.hooks.set_hooks_for_conditioning(a[0], make_hooks(is_scheduled=True))
    tiny.sample(model, steps=3, conditioning=(hooked, a[1], a[2]))
    assert torch.equal(tiny.sample(model, steps=3, conditioning=a), expected)


# --- context windows --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "fuse_method"), [("standard_static", "pyramid"), ("looped_uniform", "relative")]
)
def test_context_windows_over_frames(
    tiny, biased, with_vcut, with_windows, difference, sample_cut_reference, schedule, fuse_method
):
    # Stock ComfyUI 0.3.75 compares the schedule (steps + 1 sigmas) with the sigma of each frame,
    # so windows over frames run on SVD when frames == steps + 1 and fail otherwise.
    conditioning = tiny.conditioning(frames=4)
    options = {"steps": 3, "conditioning": conditioning}

    def windowed(model):
        return with_windows(model, context_schedule=schedule, fuse_method=fuse_method)

    reference = tiny.sample(windowed(biased), **options)
    assert difference(reference, tiny.sample(biased, **options)) > 1e-4
    expected = sample_cut_reference(windowed(biased), last_guided_step=1, **options)
    for is_before in (True, False):
        uncut = with_vcut(windowed(biased)) if is_before else windowed(with_vcut(biased))
        assert difference(tiny.sample(uncut, **options), reference) < 1e-5
        cut = with_vcut(windowed(biased), 2, 3) if is_before else windowed(with_vcut(biased, 2, 3))
        assert difference(tiny.sample(cut, **options), expected) < 1e-5


def test_windows_of_the_host_s_default_fail_without_vcut_as_with_it(
    tiny, nodes, with_vcut, with_windows
):
    # Once this no longer holds, README's limit and the way around it in with_windows can go.
    if "causal_window_fix" not in nodes.inputs_of("ContextWindowsManual"):
        pytest.skip("this host has no causal_window_fix")
    windowed = with_windows(tiny.model, causal_window_fix=True)
    options = {"steps": 3, "conditioning": tiny.conditioning(frames=4)}
    for model, cfg in ((windowed, 1.0), (with_vcut(windowed, 2, 3), 2.5)):
        with pytest.raises(RuntimeError, match="axis of length 3 in chunks of 2"):
            tiny.sample(model, cfg=cfg, **options)
