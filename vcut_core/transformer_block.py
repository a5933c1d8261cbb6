"""A transformer block of SVD's UNet whose cross-attention is a constant.

The operations of the block's own forward in the same order, less what only the query needs: so the
same output, bit for bit.
"""

import torch
from torch import Tensor


def forward_with_constant(
    block, x: Tensor, constant: Tensor | None, transformer_options: dict
) -> Tensor:
    """Return what ``block`` makes of x when its cross-attention gives ``constant``.

    block: norm_in and ff_in (or ff_in False), norm1, attn1, norm3, ff, is_res; norm2 and attn2 are
        not used. x: (G*R, S, C). constant: (G, 1, C), each row for R rows of x; None adds nothing.
    Not for training: it writes to its own intermediate results.
    """
    if block.ff_in:
        skip = x
        x = block.ff_in(block.norm_in(x))
        if block.is_res:
            x += skip
        del skip
    x = block.attn1(block.norm1(x), transformer_options=transformer_options) + x
    if constant is not None:
        x.unflatten(0, (constant.shape[0], -1)).add_(constant[:, None])
    output = block.ff(block.norm3(x))
    return x.add_(output) if block.is_res else output


def constant_of_rows(constant: Tensor | None, start: int, stop: int, total: int) -> Tensor | None:
    """Return ``constant`` for the rows from start to stop of ``total``, as they stand in a slice.

    constant: (G, 1, C) for G groups of total // G rows each. Returns (1, 1, C) where all rows are
    of one group, else one row each, (stop - start, 1, C).
    """
    if constant is None:
        return None
    per_group = total // constant.shape[0]
    first, last = start // per_group, (stop - 1) // per_group
    if first == last:
        return constant[first : first + 1]
    counts = [
        min(stop, (group + 1) * per_group) - max(start, group * per_group)
        for group in range(first, last + 1)
    ]
    groups = zip(constant[first : last + 1], counts, strict=True)
    return torch.cat([row.expand(count, 1, -1) for row, count in groups])
