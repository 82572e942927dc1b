"""The prior's attention: many queries for each token, one key and value, logits that are cosines.

Shapes: B samples, N tokens, Q queries (tokens from some place on), H heads, K keys (a null key and those of the N
tokens), W numbers of a head, D numbers of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.mappers.network.positions import Rotary

SCALE = 16.0  # of the cosines (dalle2-pytorch 1.15.6, ``Attention``: cosine_sim_scale)
KERNEL_MULTIPLE = 8  # of the head width, without which PyTorch's fused attention refuses half precision


class Attention(nn.Module):
    """Cosine-similarity attention with one key/value head, a learned null key and value, and norms on both ends.

    Multi-query: Shazeer 2019 ("Fast transformer decoding"); the block as in dalle2-pytorch 1.15.6, ``Attention``,
    which looks both ways here.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in = nn.LayerNorm(width, bias=False)
        self.to_queries = nn.Linear(width, heads * head_width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * head_width, bias=False)
        self.null_key_value = nn.Parameter(torch.randn(2, head_width))
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.norm_out = nn.LayerNorm(width, bias=False)

    def forward(self, x_BND: Tensor, bias_HNK: Tensor, rotary: Rotary, first: int = 0) -> Tensor:
        """(B, N - first, D) of the tokens from ``first`` on, which look at all tokens. The residual is not added."""
        normed_BND = self.norm_in(x_BND)
        queries_BHQW = self.to_queries(normed_BND[:, first:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BNW, value_BNW = self.to_key_value(normed_BND).chunk(2, dim=-1)
        null_key, null_value = self.null_key_value
        key_BKW = prepend(null_key, rotary(key_BNW))
        value_BKW = prepend(null_value, value_BNW)
        out_BHQW = attend(rotary(queries_BHQW, first), key_BKW, value_BKW, bias_HNK[:, first:])
        return self.norm_out(self.to_out(out_BHQW.transpose(1, 2).flatten(2)))


def prepend(null_W: Tensor, x_BNW: Tensor) -> Tensor:
    """(B, N + 1, W): the null vector before the tokens' own, in their precision."""
    return torch.cat([null_W.to(x_BNW.dtype).expand(len(x_BNW), 1, -1), x_BNW], dim=1)


def attend(queries_BHQW: Tensor, key_BKW: Tensor, value_BKW: Tensor, bias_HQK: Tensor) -> Tensor:
    """(B, H, Q, W) values weighted by softmax(16 cos(query, key) + bias), in the precision of the values.

    The heads share keys and values, so their queries are those of a single head, one after the other: nothing is
    copied for each head. Heads are filled with zeros, which change no product, up to a width that fused kernels take.
    """
    dtype, spare = value_BKW.dtype, -value_BKW.shape[-1] % KERNEL_MULTIPLE
    queries, keys = unit(queries_BHQW).to(dtype).flatten(1, 2), unit(key_BKW).to(dtype)
    queries, keys, values = (functional.pad(x, (0, spare))[:, None] for x in (queries, keys, value_BKW))
    bias = bias_HQK.to(dtype).flatten(0, 1)[None, None]
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=SCALE)
    return out[:, 0, :, : value_BKW.shape[-1]].unflatten(1, queries_BHQW.shape[1:3])


def unit(x: Tensor) -> Tensor:
    """Vectors along the last axis at length 1, float32 or wider: sums of squares in half precision are too coarse."""
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
