"""The step cache's table: what each variant computes, its rivals, its report."""

import json

import pytest
import step_cache_report
import step_cache_variants
import torch
from quality_sampling import patched
from quality_tables import BY_NAME, TABLES
from rivals import with_cfg_cache, with_outermost_blocks
from rivals.cfg_cache import _frequencies
from vcut.comfy_adapter.cost_reading import build_on_meta, measure_on_meta
from work_meter import WorkMeter

STEPS = 25


@pytest.fixture(scope="module")
def conditioning(tiny):
    return tiny.conditioning(frames=2, size=64)


@pytest.fixture(scope="module")
def unit(tiny):
    """Multiply-adds of one evaluation."""
    unet = build_on_meta(tiny.model.model.model_config.unet_config)
    return measure_on_meta(unet, 64, 64, 2).macs("CL")


@pytest.fixture(scope="module")
def measured(tiny, conditioning, unit):
    """Return a function: model -> (latent, work in evaluations) of 25 steps."""

    def sample(model, **options):
        with WorkMeter(tiny.model.model.diffusion_model) as meter:
            latent = tiny.sample(model, conditioning=conditioning, **options)
        return latent, meter.macs / unit

    return sample


@pytest.fixture(scope="module")
def baseline(tiny, measured):
    return measured(tiny.model)


WORK = {
    "baseline": 50,
    "careful": 32,
    "balanced": 28,
    "fast": 24,
    "cut_17": 41,
    "cut_17_careful": 24,
    "cut_17_balanced": 21,
    "cut_17_fast": 17,
    "cfg_cache_2": 42,  # 8 of the last 16 unconds are left out
    "cfg_cache_5": 38,
}


@pytest.mark.parametrize("name", WORK)
def test_variant_computes_what_its_settings_say(tiny, nodes, measured, name):
    _, work = measured(patched(nodes, tiny.model, BY_NAME[name]))
    assert work == pytest.approx(WORK[name], abs=1e-6)


def test_outermost_blocks_cost_their_share(tiny, measured, unit):
    # 13 steps in full, 12 in part: the two outermost blocks cost more than one.
    deep, last = (measured(with_outermost_blocks(tiny.model, blocks))[1] for blocks in (2, 1))
    assert 26 < last < deep < 50


@pytest.mark.parametrize("put", [with_outermost_blocks, with_cfg_cache])
def test_rival_that_leaves_nothing_out_is_the_baseline(tiny, measured, baseline, put):
    latent, work = measured(put(tiny.model, every=1))
    assert torch.equal(latent, baseline[0]) and work == pytest.approx(50)


@pytest.mark.parametrize("put", [with_outermost_blocks, with_cfg_cache])
def test_rival_stays_near_the_baseline(tiny, measured, baseline, difference, put):
    latent, _ = measured(put(tiny.model, every=2))
    assert 1e-6 < difference(latent, baseline[0]) < 0.2


def test_low_and_high_frequencies_make_the_whole():
    difference = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    low, high = _frequencies(difference)
    assert torch.allclose(low + high, difference, atol=1e-6)
    # A constant is low alone, a chessboard high alone.
    chessboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert torch.allclose(_frequencies(torch.ones(1, 4, 8, 8))[1], torch.zeros(1), atol=1e-6)
    assert torch.allclose(_frequencies(chessboard[None, None])[0], torch.zeros(1), atol=1e-6)


def test_every_pair_and_reference_is_a_variant_and_stress_has_no_guidance():
    names = {variant.name for variant in TABLES["step_cache"].variants}
    assert {name for pair in step_cache_variants.PAIRS for name in pair} <= names
    for variant in TABLES["step_cache"].variants:
        assert variant.reference in names
        assert BY_NAME[variant.reference].test == variant.test
        assert not (variant.test == "stress" and variant.name.startswith(("cut_", "cfg_")))


def _entry(mean: float) -> dict:
    return {"mean": mean, "low": mean - 1, "high": mean + 1}


def _results() -> dict:
    def row(name, title, kind, test, distance, work):
        found = {
            "name": name, "title": title, "meaning": "", "kind": kind, "test": test,
            "reference": "baseline" if test == "ordinary" else "baseline_stress", "videos": 2,
            "work": work, "distance": _entry(distance), "worst": distance - 2,
            "largest_frame_error": 0.5,
        }  # fmt: skip
        if test == "ordinary":
            found |= {
                "truth": _entry(30.0),
                "truth_difference": _entry(0.0),
                "direction_right": 100.0,
            }
        return found

    won = {"won_by_first": 2, "won_by_second": 0, "videos": 2}
    return {
        "command": "python3 x.py",
        "date": "2026-01-01",
        "device": "a device",
        "versions": {"torch": "2"},
        "weights": {"file": "w", "sha256": "0" * 64},
        "sampling": {"frames": 2, "seeds": 1, "steps": 25, "settings": "euler"},
        "rows": [
            row("baseline", "baseline", "baseline", "ordinary", 100.0, 50.0),
            row("fast", "ours", "vcut", "ordinary", 60.0, 24.0),
            row("ays_12", "theirs", "rival", "ordinary", 55.0, 24.0),
            row("baseline_stress", "baseline", "baseline", "stress", 100.0, 25.0),
            row("fast_stress", "ours", "vcut", "stress", 45.0, 12.0),
            row("ays_12_stress", "theirs", "rival", "stress", 44.0, 12.0),
        ],
        "comparisons": [
            {"first": "fast", "second": "ays_12", **_entry(5.0), **won},
            {"first": "fast_stress", "second": "ays_12_stress", **_entry(0.5), **won},
        ],
        "two_seeds": {"ordinary": _entry(36.0), "stress": None},
        "pack_sources": {"abc": 6},
    }


def test_report_shows_distance_cost_and_rivals_from_the_json_alone():
    text = step_cache_report.markdown(json.loads(json.dumps(_results())))
    assert "| ours |  | 24.0 | 60.0 [59.0, 61.0] | 45.0 [44.0, 46.0] | 58.0 | 0.50 | 2 |" in text
    assert "| two seeds of the full run |  |  | 36.0 [35.0, 37.0] |  |  |  |  |" in text
    # The interval of the stress test has 0 in it.
    assert (
        "| ours (24.0) | theirs (24.0) | **+5.00 [+4.00, +6.00]**, 2:0 | "
        "+0.50 [-0.50, +1.50], 2:0 |"
    ) in text


def test_levels_of_a_distance():
    assert step_cache_report.levels(20 * 2.4065402) == pytest.approx(1.0, rel=1e-5)


def test_plot_is_drawn_from_the_json_alone(tmp_path):
    step_cache_report.plot(json.loads(json.dumps(_results())), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
