"""The affine map and its cache, on a layer small enough to compute by hand."""

import pytest
import torch
from torch import nn
from vcut.vcut_core.cross_attention import (
    AffineOutputCache,
    CrossAttentionConfig,
    affine_map,
    expand_rows,
    is_single_token,
    zeros,
)


class Attention(nn.Module):
    """The only fake here: multi-head attention in plain torch, with the host's child names."""

    def __init__(self, width=8, context_width=6, heads=2):
        super().__init__()
        self.heads, self.dim_head = heads, width // heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / self.dim_head**0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention()


# --- config -----------------------------------------------------------------------------------


def test_defaults_leave_the_picture_as_it_was():
    assert CrossAttentionConfig() == CrossAttentionConfig(temporal="cached", spatial="cached")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"temporal": "drop"}, "temporal to be one of cached, remove, keep, got drop"),
        ({"spatial": "remove"}, "spatial to be one of cached, keep, got remove"),
    ],
)
def test_error_lists_the_words_when_a_mode_is_unknown(mode, message):
    with pytest.raises(ValueError, match=message):
        CrossAttentionConfig(**mode)


def test_config_cannot_change_when_it_is_made():
    with pytest.raises(AttributeError):
        CrossAttentionConfig().temporal = "remove"


# --- the affine map ---------------------------------------------------------------------------


def test_affine_map_equals_attention_when_there_is_one_token(attention):
    x, context = torch.randn(3, 5, 8), torch.randn(3, 1, 6)
    affine = affine_map(attention, context)
    assert affine.shape == (3, 1, 8)
    torch.testing.assert_close(expand_rows(affine, x), attention(x, context))


def test_affine_map_differs_from_attention_when_there_are_two_tokens(attention):
    x, context = torch.randn(1, 5, 8), torch.randn(1, 2, 6)
    output = attention(x, context)
    assert not torch.allclose(affine_map(attention, context)[:, :1], output)


def test_halved_embedding_gives_the_mean_of_both_outputs(attention):
    context = torch.randn(1, 1, 6)
    whole, nothing = affine_map(attention, context), affine_map(attention, 0 * context)
    mean = (whole + nothing) / 2
    torch.testing.assert_close(affine_map(attention, context / 2), mean)
    # The bias makes L affine and not linear: half of the output would be another value.
    assert not torch.allclose(whole / 2, mean)


def test_new_weight_is_used_when_it_replaced_the_old_one(attention):
    context = torch.randn(1, 1, 6)
    before = affine_map(attention, context)
    attention.to_out[0].bias.data += 1
    torch.testing.assert_close(affine_map(attention, context), before + 1)


# --- when it applies --------------------------------------------------------------------------

ONE, TWO = torch.zeros(3, 1, 6), torch.zeros(3, 2, 6)


@pytest.mark.parametrize(
    ("context", "value", "mask", "expected"),
    [
        (ONE, None, None, True),
        (ONE, ONE, None, True),
        (TWO, None, None, False),
        (ONE, TWO, None, False),
        (TWO, ONE, None, False),
        (None, None, None, False),
        (None, ONE, None, False),
        (ONE, None, torch.ones(5, 1), False),
    ],
)
def test_affine_form_holds_only_for_one_token_without_a_mask(context, value, mask, expected):
    assert is_single_token(context, value, mask) is expected


# --- shapes -----------------------------------------------------------------------------------


def test_each_row_serves_its_own_group_when_expanded():
    value = torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]]])  # (2, 1, 2)
    output = expand_rows(value, torch.zeros(6, 3, 2))
    assert output.shape == (6, 3, 2)
    # rows 0-2 belong to the first context, 3-5 to the second
    assert output[:, :, 0].tolist() == [[1.0] * 3] * 3 + [[2.0] * 3] * 3
    assert output[:, :, 1].tolist() == [[10.0] * 3] * 3 + [[20.0] * 3] * 3


@pytest.mark.parametrize("rows", [1, 4])
def test_expanding_copies_nothing_when_rows_already_fit(rows):
    value = torch.randn(rows, 1, 2)
    output = expand_rows(value, torch.zeros(4, 3, 2))
    assert output.shape == (4, 3, 2)
    assert output.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def test_zeros_follow_the_activations_and_take_one_element():
    output = zeros(torch.ones(4, 3, 2, dtype=torch.float16))
    assert output.dtype == torch.float16
    assert output.tolist() == [[[0.0] * 2] * 3] * 4
    assert output.untyped_storage().nbytes() == 2


# --- the cache --------------------------------------------------------------------------------


def _counting(values):
    """Return (evaluate, calls): each call returns the next of ``values``."""
    calls = []

    def evaluate():
        calls.append(1)
        return torch.tensor(values[len(calls) - 1])

    return evaluate, calls


def test_value_is_evaluated_once_when_its_key_is_known():
    cache = AffineOutputCache()
    evaluate, calls = _counting([1.0, 2.0, 3.0])
    assert [float(cache.get("a", evaluate)) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert (len(calls), cache.computed, cache.reused) == (1, 1, 2)


def test_value_is_evaluated_again_when_its_key_differs():
    cache = AffineOutputCache()
    evaluate, _ = _counting([1.0, 2.0])
    assert [float(cache.get(key, evaluate)) for key in ("a", "b", "a")] == [1.0, 2.0, 1.0]
    assert (cache.computed, cache.reused) == (2, 1)


def test_nothing_is_kept_when_there_is_no_key():
    cache = AffineOutputCache()
    evaluate, _ = _counting([1.0, 2.0])
    assert [float(cache.get(None, evaluate)) for _ in range(2)] == [1.0, 2.0]
    assert (cache.computed, cache.reused, cache.nbytes()) == (2, 0, 0)


def test_nothing_is_kept_when_an_evaluation_fails():
    cache = AffineOutputCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    evaluate, _ = _counting([5.0])
    assert float(cache.get("a", evaluate)) == 5.0
    assert (cache.computed, cache.reused) == (1, 0)


def test_memory_held_is_the_sum_of_the_values():
    cache = AffineOutputCache()
    cache.get("a", lambda: torch.zeros(2, 1, 8))  # 16 x 4 bytes
    cache.get("b", lambda: torch.zeros(1, 1, 8, dtype=torch.float16))  # 8 x 2 bytes
    assert cache.nbytes() == 64 + 16


def test_two_caches_share_nothing():
    first, second = AffineOutputCache(), AffineOutputCache()
    first.get("a", lambda: torch.tensor(1.0))
    assert float(second.get("a", lambda: torch.tensor(2.0))) == 2.0
