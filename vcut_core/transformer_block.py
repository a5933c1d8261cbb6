"""A transformer block of SVD's UNet whose cross-attention is a constant.

The operations of the block's own forward in the same order, less what only the query needs: so the
same output, bit for bit. Must not know who decides that the constant may stand in.
"""

from torch import Tensor, nn


def forward_with_constant(
    block: nn.Module, x: Tensor, constant: Tensor | None, transformer_options: dict
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
