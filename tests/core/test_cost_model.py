"""Costs of a small UNet and of runs with it, against numbers worked out by hand."""

import pytest
import torch
from torch import nn
from vcut.vcut_core.cost_model import CONVENTIONS, LayerCost, UNetCost, measure
from vcut.vcut_core.cost_report import headline, report_lines, unit_for
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.guidance_cut import MAX_STEPS, GuidanceConfig
from vcut.vcut_core.run_cost import AFFINE_MAPS, CostSettings, RunCost
from vcut.vcut_core.slicing_memory import ActivationPeak
from vcut.vcut_core.step_cache import StepCacheConfig

WIDTH, TOKENS, EMBEDDING = 4, 6, 3


class Attention(nn.Module):
    def __init__(self, context_width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context_width, WIDTH, bias=False)
        self.to_v = nn.Linear(context_width, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x, context):
        self.to_k(context), self.to_v(context)
        return self.to_out(self.to_q(x))  # the product itself may be any function


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(WIDTH), Attention(EMBEDDING)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH))

    def forward(self, x, context):
        n = self.norm1(x)
        x = x + self.attn1(n, n)
        return self.ff(x + self.attn2(self.norm2(x), context))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(2, WIDTH))
        self.conv = nn.Conv2d(2, WIDTH, 3, stride=2, padding=1)
        self.proj_in = nn.Linear(WIDTH, WIDTH)
        self.transformer_blocks = nn.ModuleList([Block()])
        self.time_stack = nn.ModuleList([Block()])
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x, time, context):
        x = self.conv(x).flatten(2).transpose(1, 2) + self.time_embed(time)[:, None]
        x = self.proj_in(x)
        return self.time_stack[0](self.transformer_blocks[0](x, context), context)


def _evaluate(net):
    shapes = (1, 2, 4, 6), (1, 2), (1, 1, EMBEDDING)  # the convolution makes 2 x 3 = 6 tokens
    return net(*(torch.empty(shape, device="meta") for shape in shapes))


@pytest.fixture(scope="module")
def cost() -> UNetCost:
    with torch.device("meta"):
        net = Net()
    return measure(net, lambda: _evaluate(net))


SPATIAL, TEMPORAL = "transformer_blocks.0.attn2", "time_stack.0.attn2"
# What one evaluation multiplies and adds, two blocks each:
EXPECTED = {
    "spatial convolution": 6 * 4 * 2 * 9,
    "self-attention, linear": 2 * 4 * 6 * 4 * 4,  # q, k, v, out
    "self-attention, products": 2 * (6 * 6 * 4 + 6 * 6 * 4),
    "cross-attention, linear": 2 * (2 * 6 * 4 * 4 + 2 * 1 * 3 * 4),  # q and out; k and v
    "cross-attention, products": 2 * (6 * 1 * 4 + 6 * 1 * 4),
    "feed-forward": 2 * 2 * 6 * 4 * 8,
    "projections": 6 * 4 * 4,
    "embeddings": 2 * 4,
}
NORMS = 4 * (4 * 6 * 4)  # four LayerNorms, four operations for each of 6 x 4 elements


def test_macs_stand_under_the_component_that_makes_them(cost):
    found = {name: macs for name, macs in cost.macs_by_component("true").items() if macs}
    assert found == EXPECTED


def test_conventions_differ_by_norms_and_products(cost):
    # 432 + 768 + 576 + 432 + 96 + 768 + 96 + 8, products 576 + 96
    products = EXPECTED["self-attention, products"] + EXPECTED["cross-attention, products"]
    assert sum(EXPECTED.values()) == 3176 and products == 672 and NORMS == 384
    assert {name: cost.macs(name) for name in CONVENTIONS} == {
        "CL": 3176 - 672,
        "thop": 3176 - 672 + 384,
        "true": 3176,
    }


def test_parameters_are_those_of_the_module(cost):
    assert cost.parameters() == sum(parameter.numel() for parameter in Net().parameters())
    parts = cost.parameters_by_component()
    assert sum(parts.values()) == cost.parameters()
    # attn2: q 16, k 12, v 12, out 16 + 4; norms: 4 x (4 + 4); other: the mix factor
    assert parts["cross-attention, linear"] == 2 * 60
    assert (parts["norms"], parts["other"]) == (32, 1)


def test_cross_attentions_are_found_with_their_kind(cost):
    assert cost.cross_attentions() == {SPATIAL: "spatial", TEMPORAL: "temporal"}


@pytest.mark.parametrize("mode", ["cached", "remove"])
def test_replaced_cross_attention_takes_its_norm_with_it(cost, mode):
    # q 96, out 96, k 12, v 12; product 48; norm2 96
    replaced = {TEMPORAL: mode}
    assert cost.macs("CL") - cost.macs("CL", replaced) == 216
    assert cost.macs("true") - cost.macs("true", replaced) == 216 + 48
    assert cost.macs("thop") - cost.macs("thop", replaced) == 216 + 96


def test_parameters_needed_follow_what_is_kept_of_a_cross_attention(cost):
    # q 16, k 12, v 12, out 20, norm2 8
    whole = cost.parameters()
    assert cost.parameters_needed({}) == whole
    assert cost.parameters_needed({TEMPORAL: "remove"}) == whole - 68
    assert cost.parameters_needed({SPATIAL: "cached"}) == whole - 36
    assert cost.parameters_needed({SPATIAL: "cached"}, keep_maps=False) == whole - 68


def test_affine_map_costs_one_vector_through_to_v_and_to_out(cost):
    assert cost.affine_macs([SPATIAL]) == 3 * 4 + 4 * 4
    assert cost.affine_elements([SPATIAL, TEMPORAL]) == 2 * WIDTH


def test_layer_called_twice_counts_twice():
    net = nn.Sequential(nn.Linear(2, 3))
    cost = measure(net, lambda: [net(torch.empty(1, 2)) for _ in range(2)])
    assert cost.macs("CL") == 2 * 2 * 3


def test_no_hook_stays_when_the_evaluation_fails():
    net = Net()
    with pytest.raises(TypeError):
        measure(net, net)
    assert not any(module._forward_hooks for module in net.modules())


# --- a run ------------------------------------------------------------------------------------

MILLION = 10**6
# Of one convolution and two cross-attentions: 1000, 100 and 10 million MACs an evaluation.
LAYERS = (
    LayerCost("conv", "spatial convolution", "linear", None, 7, 1000 * MILLION, (1, 7)),
    LayerCost(
        f"{SPATIAL}.to_v", "cross-attention, linear", "linear", SPATIAL, 6, 60 * MILLION, (2, 3)
    ),
    LayerCost(
        f"{SPATIAL}.to_out.0", "cross-attention, linear", "linear", SPATIAL, 4, 40 * MILLION, (2, 2)
    ),
    LayerCost(
        f"{TEMPORAL}.to_v", "cross-attention, linear", "linear", TEMPORAL, 6, 10 * MILLION, (2, 3)
    ),
)
BOTH = {SPATIAL: "cached", TEMPORAL: "remove"}


def _run(num_steps=25, replaced=None, slicing=None, step_cache=None, **guidance) -> RunCost:
    config = GuidanceConfig(**guidance) if guidance else None
    sigmas = [float(num_steps - number) for number in range(num_steps + 1)]
    settings = CostSettings(replaced or {}, config, step_cache, slicing)
    return RunCost(UNetCost(LAYERS), settings, sigmas)


@pytest.mark.parametrize(
    ("guidance", "evaluations"),
    [
        ({}, 50),
        ({"cut_step": 17}, 41),  # 2 x 16 + 9
        ({"cut_step": 20}, 44),
        ({"cut_step": 10}, 34),
        ({"cut_step": 1}, 25),
        ({"cut_step": MAX_STEPS}, 50),
        ({"cut_sigma": 10.0}, 41),  # sigmas 25, 24, ... 10: the first 16 are not below 10
        ({"cut_step": 17, "start_step": 5}, 37),  # guided 5 to 16
        ({"cut_step": 5, "start_step": 9}, 25),
    ],
)
def test_evaluations_follow_the_plan_of_the_run(guidance, evaluations):
    assert _run(**guidance).evaluations == evaluations
    assert _run(**guidance).evaluations_without == 50


def test_cut_moves_in_proportion_when_the_run_has_other_steps():
    assert _run(20, cut_step=17, steps=25).evaluations == 20 + 13


@pytest.mark.parametrize(("cut_step", "evaluations"), [(1, 1), (2, 2)])
def test_run_of_one_step_is_guided_or_not(cut_step, evaluations):
    assert _run(1, cut_step=cut_step, steps=1).evaluations == evaluations


def test_run_costs_its_evaluations_and_the_affine_maps_once():
    run = _run(replaced=BOTH, cut_step=17)
    assert run.macs_without() == 50 * 1110 * MILLION
    # One embedding through SPATIAL's map: 2 x 3 + 2 x 2. Three of them: cond, uncond, after the cut
    assert run.macs() == 41 * 1000 * MILLION + 3 * 10
    assert run.macs_by_component()[AFFINE_MAPS] == 30
    assert run.saved_by_cut() == 9 * 1110 * MILLION
    assert run.saved_by_cut() + run.saved_by_cross_attention() == run.macs_without() - run.macs()


@pytest.mark.parametrize(
    ("guidance", "rows"), [({}, 2), ({"cut_step": 1}, 1), ({"cut_step": 9}, 3)]
)
def test_memory_holds_each_value_for_each_embedding(guidance, rows):
    assert _run(replaced=BOTH, **guidance).cache_bytes(2, latent_elements=72) == rows * 2 * 2


def test_model_without_vcut_saves_nothing():
    run = _run()
    assert run.settings.is_empty and run.macs() == run.macs_without()
    assert (run.cache_bytes(2, 72), run.saved_by_cut(), run.saved_by_cross_attention()) == (0, 0, 0)


# Of the 25 sigmas 25, 24, ... 1, balanced computes 13 or fewer: see the plan below.
STEP_CACHE = StepCacheConfig("balanced")


def test_step_cache_and_cut_save_apart():
    run = _run(replaced=BOTH, step_cache=STEP_CACHE, cut_step=17)
    is_computed = run.step_plan.is_computed
    guided, unguided = sum(is_computed[:16]), sum(is_computed[16:])
    assert is_computed[16] and 0 < guided < 16  # the first unguided step is always computed
    assert run.evaluations == 2 * guided + unguided
    assert run.evaluations_saved_by_step_cache == 2 * (25 - guided - unguided)
    assert run.evaluations_saved_by_cut == unguided
    saved = run.saved_by_step_cache() + run.saved_by_cut() + run.saved_by_cross_attention()
    assert saved == run.macs_without() - run.macs()
    assert run.saved_by_step_cache() == 2 * (25 - guided - unguided) * 1110 * MILLION
    # Two latents in fp32, and three embeddings' affine outputs in 2 bytes.
    assert run.cache_bytes(2, latent_elements=72) == 2 * 72 * 4 + 3 * 2 * 2


def test_lines_to_expect_with_a_step_cache():
    run = _run(replaced=BOTH, step_cache=STEP_CACHE, cut_step=17)
    computed = sum(run.step_plan.is_computed)
    assert run.expected_lines() == [
        f"{run.evaluations} of 50 UNet evaluations",
        f"{computed} of 25 steps computed",
        "guided 16 of 25 steps",
        f"cross-attention: 2 computed, {computed - 2} from cache, {computed} removed",
    ]


def test_lines_to_expect_count_calls_of_the_host():
    # One call a step; each map once guided and once after the cut.
    assert _run(replaced=BOTH, cut_step=17).expected_lines() == [
        "41 of 50 UNet evaluations",
        "guided 16 of 25 steps",
        "cross-attention: 2 computed, 23 from cache, 25 removed",
    ]


# --- the report -------------------------------------------------------------------------------


PEAK = ActivationPeak(8, 2_240_000_000, 8_010_000_000)


def _report(run: RunCost, beside=(), peak=None) -> list[str]:
    lines = report_lines(run, "16x16, 1 frame", 23, 12, beside, peak)
    return [line.removeprefix("- ") for line in lines]


def test_report_says_what_is_saved_and_by_what():
    lines = _report(_run(replaced=BOTH, cut_step=17))
    # 50 x 1.11 and 41 x 1 GMACs: 26.13 % less. 9 x 1.11 = 9.99; 41 x 0.11 = 4.51.
    assert "Run: 41.00 GMACs instead of 55.50 without VCUT (26.1 % less)" in lines
    assert "Saved where guidance is off: 9.99 GMACs; in cross-attention: 4.51 GMACs" in lines
    assert "Each evaluation: 1.000 GMACs instead of 1.110" in lines
    assert "UNet evaluations: 41 instead of 50" in lines
    assert "Cross-attention, spatial: 1 cached" in lines
    assert "Cross-attention, temporal: 1 removed" in lines
    assert [line for line in lines if line.startswith("The nodes should show after the run: 41 of")]
    assert "not seconds" in lines[-2]
    assert headline(_run(replaced=BOTH, cut_step=17)) == [
        "26 % less to compute",
        "41 of 50 evaluations",
    ]


def test_report_says_what_step_cache_and_cut_save_each():
    run = _run(step_cache=STEP_CACHE, cut_step=17)
    lines = _report(run)
    steps, cut = run.evaluations_saved_by_step_cache, run.evaluations_saved_by_cut
    told = f"instead of 50: the step cache saves {steps}, the cut {cut}"
    assert f"UNet evaluations: {50 - steps - cut} {told}" in lines
    gigas = f"Saved by steps left out: {steps * 1.11:.2f} GMACs; where guidance is off: "
    assert [line for line in lines if line.startswith(gigas)]
    computed = sum(run.step_plan.is_computed)
    told = f"Step cache: pace balanced, {computed} of 25 steps computed, on a karras schedule"
    assert told in lines


def test_report_of_a_step_cache_alone_is_no_empty_one():
    run = _run(step_cache=STEP_CACHE)
    assert not run.settings.is_empty
    assert f"UNet evaluations: {run.evaluations} instead of 50" in _report(run)
    assert "less to compute" in headline(run)[0]


def test_report_of_a_model_without_vcut_promises_no_line():
    lines = _report(_run())
    assert "Run: 55.50 GMACs, 0 saved: this model has no VCUT settings" in lines
    assert "Cross-attention, spatial: 1 kept" in lines and "Guidance: in every step" in lines
    assert not [line for line in lines if "instead" in line or "should say" in line]
    assert headline(_run()) == ["Nothing saved", "this model has no VCUT settings"]
    assert headline(_run(cut_step=MAX_STEPS)) == ["Nothing saved", "50 of 50 evaluations"]


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        (8, "scope everything, 8 slices;"),
        (0, "scope everything, as few slices as fit when the run starts;"),
    ],
)
def test_report_of_a_model_with_the_slicer_alone_names_it_and_claims_no_saving(slices, words):
    run = _run(slicing=SlicingConfig(slices, "everything"))
    lines = _report(run)
    assert [line for line in lines if line.startswith(f"Feature slicing: {words}")]
    assert "Run: 55.50 GMACs, 0 saved: slicing saves memory, not multiply-adds" in lines
    assert "UNet evaluations: 50" in lines and not run.settings.is_empty
    assert headline(run, PEAK) == [
        "72 % smaller activations",
        "activations 2.2 instead of 8.0 GB",
        "nothing less to compute",
    ]
    assert headline(run, ActivationPeak(1, 10**9, 10**9))[0] == "Nothing saved"
    assert not [line for line in lines if "no VCUT settings" in line]
    assert not [line for line in lines if "after the run:" in line]  # nothing of the cost to tell


def test_report_of_a_slicer_that_is_off_claims_nothing():
    run = _run(slicing=SlicingConfig(1, "everything"))
    lines = _report(run)
    assert "Feature slicing: off (slices is 1)" in lines
    assert "Run: 55.50 GMACs, 0 saved: VCUT Feature Slicer is off (slices is 1)" in lines
    assert headline(run) == ["Nothing saved", "VCUT Feature Slicer is off (slices is 1)"]


def test_report_names_the_slicer_beside_the_other_settings():
    run = _run(replaced=BOTH, cut_step=17, slicing=SlicingConfig(8, "blocks"))
    lines = _report(run)
    assert [line for line in lines if line.startswith("Feature slicing: scope blocks, 8 slices;")]
    assert "Run: 41.00 GMACs instead of 55.50 without VCUT (26.1 % less)" in lines
    assert [line for line in lines if line.startswith("The nodes should show after the run: 41 of")]
    expected = [*headline(_run(replaced=BOTH, cut_step=17)), "activations 2.2 instead of 8.0 GB"]
    assert headline(run, PEAK) == expected


def test_report_has_the_activations_where_they_are_sliced():
    run = _run(slicing=SlicingConfig(8, "blocks"))
    assert "Activations: 2.2 instead of 8.0 GB, in 8 slices" in _report(run, peak=PEAK)
    small = ActivationPeak(1, 3_140_000, 3_140_000)
    assert "Activations: 3.1 instead of 3.1 MB, in 1 slice" in _report(run, peak=small)


def test_report_claims_no_line_beside_other_nodes():
    lines = _report(_run(cut_step=17), ["wrapper easycache"])
    assert "Not counted, put on this model by other nodes: wrapper easycache." in lines
    assert not [line for line in lines if "should say" in line]


def test_report_names_the_schedule_that_cut_sigma_was_read_on():
    lines = _report(_run(cut_sigma=9.5))
    assert (
        "Guidance: guided 16 of 25 steps, cut at step 17 (cut_sigma 9.001), on a karras schedule"
        in (lines)
    )
    assert "cut_sigma 9.5 ends it elsewhere on another schedule" in lines


def test_unit_suits_the_size():
    assert [unit_for(macs)[1] for macs in (2e12, 1e12, 9e11, 5e6, 3)] == [
        "TMACs", "TMACs", "GMACs", "MMACs", "MMACs",
    ]  # fmt: skip
