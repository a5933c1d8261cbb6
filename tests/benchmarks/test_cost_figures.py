"""The cost model on SVD's real UNet at full size: every known figure, and torch's own count."""

import cost_tables
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch.utils.flop_counter import FlopCounterMode
from vcut.comfy_adapter.cost_reading import build_on_meta, measure_on_meta
from vcut.vcut_core.guidance_cut import GuidanceConfig
from vcut.vcut_core.run_cost import CostSettings, RunCost

SVD, SVD_XT = 14, 25  # frames


@pytest.fixture(scope="module")
def costs(make_full_size):
    """Frames -> the cost of one evaluation of the full-size UNet at 576x1024."""
    unet = build_on_meta(make_full_size().model.model_config.unet_config)
    return {frames: measure_on_meta(unet, 1024, 576, frames) for frames in (SVD, SVD_XT)}


def _variant(cost, name: str) -> dict[str, str]:
    kinds = cost.cross_attentions()
    temporal = {path: "remove" for path, kind in kinds.items() if kind == "temporal"}
    both = {path: "cached" for path in kinds} | temporal
    return {"baseline": {}, "TCA removed": temporal, "TCA and SCA": both}[name]


@pytest.mark.parametrize(
    ("variant", "keep_maps", "parameters"),
    [
        ("baseline", True, 1_524_623_082),
        ("TCA removed", True, 1_474_245_802),
        ("TCA and SCA", True, 1_449_050_922),
        ("TCA and SCA", False, 1_423_868_522),
    ],
)
def test_parameters_of_svd_are_exact(costs, variant, keep_maps, parameters):
    for cost in costs.values():  # the architecture does not depend on the frames
        assert cost.parameters_needed(_variant(cost, variant), keep_maps) == parameters


@pytest.mark.parametrize(
    ("frames", "variant", "expected"),
    [
        (SVD, "baseline", ("36.0969", "36.1172", "44.8020")),
        (SVD, "TCA removed", ("35.1845", "35.2019", "43.8881")),
        (SVD, "TCA and SCA", ("34.3778", "34.3924", "43.0800")),
        (SVD_XT, "baseline", ("64.3751", "64.4114", "79.9485")),
        (SVD_XT, "TCA removed", ("62.8294", "62.8606", "78.4002")),
        (SVD_XT, "TCA and SCA", ("61.3890", "61.4150", "76.9572")),
    ],
)
def test_macs_of_a_guided_step_are_those_known(costs, frames, variant, expected):
    cost = costs[frames]
    replaced = _variant(cost, variant)
    macs = [2 * cost.macs(convention, replaced) / 1e12 for convention in ("CL", "thop", "true")]
    assert tuple(f"{value:.4f}" for value in macs) == expected


@pytest.mark.parametrize(
    ("frames", "variant", "printed"),
    [(SVD, "baseline", 36.11), (SVD_XT, "baseline", 64.41), (SVD_XT, "TCA removed", 62.86)],
)
def test_paper_is_reproduced_to_002_percent(costs, frames, variant, printed):
    thop = 2 * costs[frames].macs("thop", _variant(costs[frames], variant)) / 1e12
    assert round(100 * abs(thop / printed - 1), 2) <= 0.02


@pytest.mark.parametrize(
    ("frames", "cut_step", "variant", "expected", "printed"),
    [
        (SVD, None, "baseline", "902.9", 903),
        (SVD, 17, "TCA removed", "721.6", 719),
        (SVD, 17, "TCA and SCA", "705.0", None),
        (SVD, 20, "TCA removed", "774.4", 772),
        (SVD, 20, "TCA and SCA", "756.6", None),
        (SVD_XT, None, "baseline", "1610.3", 1610),
        (SVD_XT, 17, "TCA removed", "1288.6", 1288),
        (SVD_XT, 17, "TCA and SCA", "1259.0", None),
        (SVD_XT, 20, "TCA removed", "1382.9", 1382),
        (SVD_XT, 20, "TCA and SCA", "1351.1", None),
    ],
)
def test_macs_of_a_video_are_those_known(costs, frames, cut_step, variant, expected, printed):
    guidance = GuidanceConfig(cut_step) if cut_step else None
    settings = CostSettings(_variant(costs[frames], variant), guidance)
    sigmas = [25.0 - step for step in range(26)]
    macs = RunCost(costs[frames], settings, sigmas).macs("thop") / 1e12
    assert f"{macs:.1f}" == expected
    assert printed is None or abs(macs / printed - 1) < 4e-3  # 721.6 for the paper's 719


def test_limit_of_the_speedup_is_that_known(costs, make_full_size):
    unet = build_on_meta(make_full_size().model.model_config.unet_config)
    sizes = {"large": costs[SVD_XT], "small": measure_on_meta(unet, 576, 320, SVD_XT)}
    _header, *rows = cost_tables.limit_rows(sizes)
    assert rows == [
        ("large", "1.039", "1.181", "1.267", "1.528"),
        ("small", "1.045", "1.188", "1.275", "1.537"),
        ("the cut alone", "-", "1.136", "1.220", "1.471"),
    ]


def test_tables_stand_beside_the_papers_figures(costs):
    models = {"SVD": costs[SVD], "SVD-XT": costs[SVD_XT]}
    steps = list(cost_tables.step_rows(models))
    assert steps[4] == (
        "SVD-XT", "baseline", "64.3751", "64.4114", "79.9485", "64.41", "+0.00 %",
    )  # fmt: skip
    videos = list(cost_tables.video_rows(models))
    assert videos[3] == ("SVD", "17", "721.6", "705.0", "719", "+0.37 %")
    parts = [row[1] for row in list(cost_tables.component_rows(models))[1:]]
    assert sum(int(part.replace(",", "")) for part in parts) == 1_524_623_082


def test_true_count_equals_that_of_torch(costs, make_full_size):
    # Every operation that torch dispatches, with the host's own attention function.
    unet = build_on_meta(make_full_size().model.model_config.unet_config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(
            torch.empty(SVD_XT, 8, 72, 128, device="meta"),
            torch.empty(SVD_XT, device="meta"),
            context=torch.empty(SVD_XT, 1, 1024, device="meta"),
            y=torch.empty(SVD_XT, 768, device="meta"),
            num_video_frames=SVD_XT,
            image_only_indicator=torch.empty(1, SVD_XT, device="meta"),
            transformer_options={"optimized_attention_override": _by_pytorch},
        )
    assert counter.get_total_flops() == 2 * costs[SVD_XT].macs("true")


def _by_pytorch(_function, q, k, v, heads, **_options):
    return attention_pytorch(q, k, v, heads)
