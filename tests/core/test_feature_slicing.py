"""Slices: their bounds, what they are put together to, and group norms over slices."""

import pytest
import torch
from torch import nn
from vcut.vcut_core.activation_memory import CallShape, LayerShape, UNetShape, peak_bytes, places
from vcut.vcut_core.feature_slicing import SlicingConfig
from vcut.vcut_core.slices import map_slices, slice_bounds, slices_of
from vcut.vcut_core.temporal_residual import (
    GroupStatistics,
    NormThenConv,
    temporal_residual_in_place,
)
from vcut.vcut_core.transformer_block import constant_of_rows

# --- bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "slices", "expected"),
    [
        (10, 1, [(0, 10)]),
        (10, 4, [(0, 2), (2, 5), (5, 7), (7, 10)]),  # 2.5 rows each, rounded down at each end
        (8, 4, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (3, 64, [(0, 1), (1, 2), (2, 3)]),  # never more slices than rows
    ],
)
def test_bounds_cover_every_row_once(length, slices, expected):
    assert list(slice_bounds(length, slices)) == expected


@pytest.mark.parametrize(
    ("relative_size", "slices"), [(1, 8), (3, 8), (0.5, 4), (0.26, 3), (0.25, 2), (0.001, 1)]
)
def test_smaller_layers_are_cut_into_fewer(relative_size, slices):
    assert slices_of(8, relative_size) == slices


@pytest.mark.parametrize("slices", [-1, 65])
def test_slices_out_of_range_are_refused(slices):
    with pytest.raises(ValueError, match=f"slices from 0 .* to 64, got {slices}"):
        SlicingConfig(slices)


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="blocks, feed_forward, everything, got all"):
        SlicingConfig(4, "all")


# --- putting together -------------------------------------------------------------------------


def test_slices_come_together_in_the_dtype_and_shape_of_the_first():
    x = torch.arange(6.0).view(3, 2)
    calls = []

    def double(start, stop):
        calls.append((start, stop))
        return (2 * x[start:stop]).to(torch.float64).unsqueeze(-1)

    output = map_slices(double, 3, 2)
    assert calls == [(0, 1), (1, 3)]
    assert output.dtype is torch.float64
    assert output.tolist() == [[[0.0], [2.0]], [[4.0], [6.0]], [[8.0], [10.0]]]


def test_one_slice_is_handed_on_as_it_is():
    x = torch.ones(4, 2)
    assert map_slices(lambda start, stop: x, 4, 1) is x


# --- the constant of a slice's rows -------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 3, [7]),  # rows 0 to 3 of 8 belong to the first cond
        (4, 8, [9]),
        (2, 6, [7, 7, 9, 9]),
        (3, 5, [7, 9]),
    ],
)
def test_each_row_of_a_slice_gets_its_own_conds_constant(start, stop, expected):
    constant = torch.tensor([7.0, 9.0]).view(2, 1, 1)
    assert constant_of_rows(constant, start, stop, total=8).flatten().tolist() == expected


# --- group norms over slices --------------------------------------------------------------------


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_statistics_of_slices_are_those_of_the_whole():
    # A mean a thousand times the deviation: sums of squares would cancel to noise.
    x = _random(2, 8, 3, 7, 5) + 1000
    statistics = GroupStatistics(groups=4)
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        statistics.add(x[:, :, :, start:stop])
    weight, bias = _random(8, seed=1), _random(8, seed=2)
    scale, shift = (value[..., None, None, None] for value in statistics.affine(weight, bias, 1e-5))
    exact = nn.functional.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    assert (x * scale + shift - exact).norm() / exact.norm() < 1e-4


class TemporalBlock(nn.Module):
    """Two norms, SiLUs and convolutions over time with an embedding between, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)) for _ in range(2))
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x, embedding):
        hidden = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(nn.functional.silu(norm(hidden)))
            if norm is self.norms[0]:
                hidden = hidden + embedding[..., None, None]
        return 0.3 * x + 0.7 * (x + hidden)

    def layers(self):
        pairs = zip(self.norms, self.convs, strict=True)
        return [NormThenConv(n.weight, n.bias, n.eps, n.num_groups, c) for n, c in pairs]


@pytest.mark.parametrize("slices", [1, 2, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_temporal_residual_block_in_slices_is_the_whole_one(slices, dtype):
    block = TemporalBlock().to(dtype)
    x = _random(2, 5, 8, 7, 3).to(dtype) + 2  # (B, T, C, H, W)
    embedding = _random(2, 8, 5, seed=3).to(dtype)
    expected = block(x.transpose(1, 2), embedding).transpose(1, 2)
    output = temporal_residual_in_place(
        x, *block.layers(), embedding, lambda a, b: 0.3 * a + 0.7 * b, slices
    )
    assert output is x
    assert (output - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_channels_last", [False, True])
@torch.no_grad()
def test_temporal_residual_block_rounds_as_the_whole_one_does(dtype, is_channels_last):
    block = TemporalBlock().to(dtype)
    layout = torch.channels_last_3d if is_channels_last else torch.contiguous_format
    x = (_random(2, 8, 5, 7, 3).to(dtype) + 2).contiguous(memory_format=layout)
    embedding = _random(2, 8, 5, seed=3).to(dtype)
    expected = block(x, embedding)
    output = temporal_residual_in_place(
        x.transpose(1, 2), *block.layers(), embedding, lambda a, b: 0.3 * a + 0.7 * b, 3
    ).transpose(1, 2)
    assert (output != expected).float().mean() < 1e-3


# --- the estimate -------------------------------------------------------------------------------

# One level: a convolution to 10 channels, a transformer, and on the way out a residual block that
# takes 20 channels in.
SMALL = UNetShape(
    inputs=((LayerShape("conv", 8, 10),),),
    middle=(LayerShape("transformer", 10, 10),),
    outputs=((LayerShape("residual", 20, 10),),),
    context_width=4,
)
CALL = CallShape(rows=6, height=2, width=3, num_frames=3, itemsize=2)
UNIT = 6 * 2 * 3 * 10 * 2  # bytes of 10 channels: 720
CONTEXT = 2 * 2 * 3 * 4 * 2  # two conds, six pixels, four numbers of two bytes


def test_unsliced_peak_is_the_temporal_feed_forward():
    # The skip (1), then two activations and 19 inside the temporal block.
    assert peak_bytes(SMALL, CALL, "blocks", 1) == (1 + 2 + 19) * UNIT + CONTEXT


def test_sliced_peak_counts_a_slice_of_the_feed_forward():
    # 2 and 4 of 6 slices: 12 pixel rows to 2 slices of 6. Skip (1), two activations, the output,
    # and half of 12 inside: x, its attention, its norm, the feed-forward's output, half of 16.
    assert peak_bytes(SMALL, CALL, "blocks", 2) == (1 + 2 + 1 + 6) * UNIT + CONTEXT


def test_residual_block_is_the_peak_when_blocks_are_sliced_finely():
    # The joint of two skips (2) while its norm and SiLU (2 + 2) are made. Twelve slices leave the
    # transformer less: 1 + 3 + 12 / 12 = 5; the blend takes 1 + 5.
    assert peak_bytes(SMALL, CALL, "blocks", 12) == max(2 + 5, 2 + 4) * UNIT


def test_place_of_a_block_that_runs_whole_counts_as_such():
    # Its attention: x and 7 beside it; the feed-forward still in 12 slices: 4 + 16 / 12.
    whole = [("middle", 0)]
    expected = (1 + 2 + 7) * UNIT + CONTEXT
    assert peak_bytes(SMALL, CALL, "blocks", 12, whole) == expected
    assert peak_bytes(SMALL, CALL, "blocks", 12, [("input", 0)]) == 7 * UNIT
    assert list(places(SMALL)) == [("input", 0), ("middle", 0), ("output", 0)]
