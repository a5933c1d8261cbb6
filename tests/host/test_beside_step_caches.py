"""EasyCache and LazyCache, which skip whole evaluations, on either side of the nodes.

With a threshold of 0 they skip nothing; with one of 3 all that they may.
"""

import re

import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from private_comfyui.install import comfyui_version, current_host

CACHES = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}
runs_on_svd = pytest.mark.skipif(
    comfyui_version(current_host().comfyui) <= (0, 3, 64), reason="fails on SVD by itself here"
)
pytestmark = pytest.mark.parametrize(
    "name", [pytest.param("EasyCache", marks=runs_on_svd), "LazyCache"]
)


def _put(name, model, threshold, start=0.0, end=1.0):
    return CACHES[name].execute(model, threshold, start, end, False).result[0]


@pytest.fixture(scope="module")
def options(tiny):
    return {"steps": 6, "conditioning": tiny.conditioning(frames=2)}


@pytest.fixture
def counted(tiny):
    """Return a function: what ComfyUI asks of the UNet itself, below every wrapper of a pack."""
    rows = []
    layer = tiny.model.model.diffusion_model.time_embed
    handle = layer.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    yield lambda: sum(rows) // 2  # of two frames each
    handle.remove()


def _said(line):
    return int(re.search(r"VCUT: (\d+) of", line)[1])


@pytest.mark.parametrize("is_before", [True, False])
def test_nothing_changes_when_it_skips_nothing(
    tiny, biased, with_vcut, difference, sample_cut_reference, options, name, is_before
):
    reference = tiny.sample(biased, **options)
    cut = sample_cut_reference(biased, last_guided_step=3, **options)
    for cut_step, expected in ((7, reference), (4, cut)):
        if is_before:
            model = with_vcut(_put(name, biased, 0.0), cut_step, 6)
        else:
            model = _put(name, with_vcut(biased, cut_step, 6), 0.0)
        assert difference(tiny.sample(model, **options), expected) < 1e-5, cut_step


@pytest.mark.parametrize("is_before", [True, False])
def test_it_skips_as_without_vcut_when_never_cut(
    tiny, biased, with_vcut, difference, options, counted, summaries, name, is_before
):
    reference = tiny.sample(_put(name, biased, 3.0), **options)
    evaluations = counted()
    assert 0 < evaluations < 12
    put, vcut = (lambda model: _put(name, model, 3.0)), (lambda model: with_vcut(model, 7, 6))
    model = vcut(put(biased)) if is_before else put(vcut(biased))
    assert difference(tiny.sample(model, **options), reference) < 1e-5
    assert counted() == 2 * evaluations
    assert _said(summaries()[0]) == evaluations


# Begins before the cut, at it, and after it: step 4 of 6 starts at 0.53 of the run.
@pytest.mark.parametrize("start", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("after_cut", ["average", "positive"])
def test_run_is_finite_and_counted_when_it_skips_around_the_cut(
    tiny, biased, with_vcut, difference, options, counted, summaries, name, start, after_cut
):
    for is_before in (True, False):
        put, vcut = (
            (lambda model: _put(name, model, 3.0, start)),
            (lambda model: with_vcut(model, 4, 6, after_cut)),
        )
        before = counted()
        model = vcut(put(biased)) if is_before else put(vcut(biased))
        output = tiny.sample(model, **options)
        assert output.isfinite().all()
        assert _said(summaries()[-1]) == counted() - before
        assert counted() - before <= 9  # 2 x 3 + 3
        assert "replaced by another pack" not in summaries()[-1]
    assert torch.equal(output, tiny.sample(model, **options))


def test_skipping_after_the_cut_is_that_of_the_guider_that_cuts_itself(
    tiny, biased, with_vcut, difference, sample_cut_reference, options, name
):
    reference = sample_cut_reference(_put(name, biased, 3.0), last_guided_step=3, **options)
    output = tiny.sample(_put(name, with_vcut(biased, 4, 6), 3.0), **options)
    assert difference(output, reference) < 1e-5
    assert difference(output, tiny.sample(with_vcut(biased, 4, 6), **options)) > 1e-4


def test_the_plain_model_is_bit_equal_afterwards(tiny, biased, with_vcut, options, name):
    plain, cached = tiny.sample(biased, **options), tiny.sample(_put(name, biased, 3.0), **options)
    tiny.sample(_put(name, with_vcut(biased, 4, 6), 3.0), **options)
    assert torch.equal(tiny.sample(biased, **options), plain)
    assert torch.equal(tiny.sample(_put(name, biased, 3.0), **options), cached)
