"""The sliced layers one by one: what they take from the host goes back to it, whatever happens."""

import comfy.ops
import pytest
import torch
from vcut.comfy_adapter import layer_calls, unet_in_run, with_technique
from vcut.comfy_adapter.deferred_concat import DeferredConcat
from vcut.vcut_core.feature_slicing import SlicingConfig


def test_skip_that_another_pack_has_taken_away_stays_away():
    h = torch.zeros(2, 4, 3, 3)
    deferred = DeferredConcat()
    assert deferred.defer(h, None, {}) == (h, None)
    assert deferred.take(h)[0] is h


def test_weight_that_the_host_lends_is_copied_and_given_back(monkeypatch):
    norm = comfy.ops.manual_cast.GroupNorm(2, 4)
    for weight in norm.parameters():
        torch.nn.init.normal_(weight)
    lent, returned = [], []

    def lend(layer, x, offloadable=False):
        assert layer is norm and offloadable
        lent.extend((norm.weight.detach().to(x.dtype), norm.bias.detach().to(x.dtype)))
        return (*lent, "loan")

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    monkeypatch.setattr(
        comfy.ops, "uncast_bias_weight", lambda *given: returned.append(given), raising=False
    )
    own = layer_calls._weight_and_bias(norm, torch.zeros(1, 4, 2, 2, dtype=torch.float64))
    assert [value.dtype for value in own] == [torch.float64] * 2
    assert all(torch.equal(value, given) for value, given in zip(own, lent, strict=True))
    assert not {value.data_ptr() for value in own} & {value.data_ptr() for value in lent}
    assert len(returned) == 1 and returned[0][0] is norm and returned[0][-1] == "loan"


def _replaced_forwards(unet) -> list[str]:
    return [name for name, module in unet.named_modules() if "forward" in vars(module)]


def test_failure_while_the_layers_are_put_in_takes_all_of_them_out_again(
    make_small_svd, tiny, monkeypatch
):
    model = make_small_svd()
    unet = model.model.diffusion_model
    put_in = []
    is_as_expected = layer_calls.has_expected_layout

    def fail_once_some_are_in(block):
        put_in[:] = _replaced_forwards(unet)
        if put_in:
            raise KeyboardInterrupt
        return is_as_expected(block)

    monkeypatch.setattr(unet_in_run, "has_expected_layout", fail_once_some_are_in)
    with pytest.raises(KeyboardInterrupt):
        tiny.sample(with_technique(model, SlicingConfig(4, "everything")), steps=1)
    assert put_in
    assert _replaced_forwards(unet) == []
