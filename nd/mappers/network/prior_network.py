"""The network of the diffusion prior: a transformer over condition, time and noisy target.

Shapes: B samples, T tokens, N = 2 T + 1 tokens of a sequence, Q queries (tokens from some place on), H heads, K = N + 1
keys (a null key and those of the tokens), W numbers of a head, D numbers of a token.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.config import NetworkConfig

SCALE = 16.0  # of the cosines (dalle2-pytorch 1.15.6, ``Attention``: cosine_sim_scale)
KERNEL_MULTIPLE = 8  # of the head width, without which PyTorch's fused attention refuses half precision
SLOWEST = 10000  # ratio of the wavelengths of sines and rotations (Vaswani et al. 2017, section 3.5)
ROTATED = 32  # numbers of a head that are rotated at most (dalle2-pytorch 1.15.6, ``CausalTransformer``)
N_BUCKETS, FARTHEST = 32, 128  # of the relative bias (T5: Raffel et al. 2020, section 2.1)


class PriorNetwork(nn.Module):
    """Predicts the clean target from [condition | time | noisy target].

    The blocks of dalle2-pytorch 1.15.6 (``CausalTransformer``), arranged and run without causal mask as in
    HaoyyLi/NeuralDiffuser@9286cad:src/mindeye_models.py:229-576.

    Attributes: ``null_condition`` and ``null_target`` (T, D) stand for a whole condition or noisy target that was
    dropped.
    """

    def __init__(self, config: NetworkConfig, n_tokens: int, width: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        length, heads = 2 * n_tokens + 1, config.prior_heads
        self.null_condition = nn.Parameter(torch.randn(n_tokens, width))
        self.null_target = nn.Parameter(torch.randn(n_tokens, width))
        self.positions = nn.Parameter(torch.randn(n_tokens, width) * width**-0.5)
        self.time = TimeEmbedding(width)
        self.relative_bias = RelativeBias(length, heads)
        self.rotary = Rotary(length, config.prior_head_width)
        self.layers = nn.ModuleList(Layer(config, width) for _ in range(config.prior_depth))
        self.norm = StableNorm(width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, condition_BTD: Tensor, noisy_BTD: Tensor, time_B: Tensor) -> Tensor:
        """Return (B, T, D), an estimate of the clean target.

        Args:
            condition_BTD, noisy_BTD: (B, T, D).
            time_B: (B,) int64 timesteps.
        """
        time_B1D = self.time(time_B)[:, None].to(noisy_BTD.dtype)
        x_BND = torch.cat([condition_BTD.to(noisy_BTD.dtype), time_B1D, noisy_BTD + self.positions], dim=1)
        bias_HNK = self.relative_bias()
        for layer in cast(list[Layer], list(self.layers)[:-1]):
            x_BND = layer(x_BND, bias_HNK, self.rotary)
        # Of the last layer only the target's tokens are read.
        x_BTD = self.layers[-1](x_BND, bias_HNK, self.rotary, first=self.n_tokens + 1)
        return self.to_out(self.norm(x_BTD))


class Layer(nn.Module):
    """Attention, then feed-forward, both added to what comes in."""

    def __init__(self, config: NetworkConfig, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, config.prior_heads, config.prior_head_width, config.prior_half_eps)
        self.feed_forward = FeedForward(width, config.prior_growth)

    def forward(self, x_BND: Tensor, bias_HNK: Tensor, rotary: Rotary, first: int = 0) -> Tensor:
        """Return (B, N - first, D), the tokens from `first` on."""
        x_BQD = x_BND[:, first:] + self.attention(x_BND, bias_HNK, rotary, first)
        return x_BQD + self.feed_forward(x_BQD)


class FeedForward(nn.Module):
    """Norm, then SwiGLU (Shazeer 2020, equation 6) without biases; the gate is the second half of the first layer."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.widen = nn.Linear(width, 2 * growth * width, bias=False)
        self.narrow = nn.Linear(growth * width, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return (B, N, D); the residual is not added."""
        value, gate = self.widen(self.norm(x_BND)).chunk(2, dim=-1)
        return self.narrow(value * functional.silu(gate))


class StableNorm(nn.LayerNorm):
    """LayerNorm of what was divided by its largest number, so that squares stay in range.

    As published (dalle2-pytorch 1.15.6, ``LayerNorm`` with ``stable``): the largest, not the largest in size, and no
    gradient through it.
    """

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return (B, N, D)."""
        largest = x_BND.amax(dim=-1, keepdim=True).detach()
        return super().forward(x_BND / torch.where(largest == 0, 1, largest))


class HalfNorm(nn.LayerNorm):
    """LayerNorm with another epsilon for numbers in half precision (dalle2-pytorch 1.15.6, ``LayerNorm``: fp16_eps)."""

    def __init__(self, width: int, half_eps: float) -> None:
        """half_eps: added to the variance of float16 and bfloat16 numbers, in the place of 1e-5."""
        super().__init__(width, bias=False)
        self.half_eps = half_eps

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return (B, N, D)."""
        eps = self.half_eps if x_BND.dtype in (torch.float16, torch.bfloat16) else self.eps
        return functional.layer_norm(x_BND, self.normalized_shape, self.weight, None, eps)


class Attention(nn.Module):
    """Cosine-similarity attention with one key/value head, a learned null key and value, and norms on both ends.

    Multi-query: Shazeer 2019 ("Fast transformer decoding"); the block as in dalle2-pytorch 1.15.6, ``Attention``,
    which looks both ways here.
    """

    def __init__(self, width: int, heads: int, head_width: int, half_eps: float = 1e-5) -> None:
        """half_eps: of the last norm, whose input is in half precision where training is."""
        super().__init__()
        self.heads = heads
        self.norm_in = nn.LayerNorm(width, bias=False)
        self.to_queries = nn.Linear(width, heads * head_width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * head_width, bias=False)
        self.null_key_value = nn.Parameter(torch.randn(2, head_width))
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.norm_out = HalfNorm(width, half_eps)

    def forward(self, x_BND: Tensor, bias_HNK: Tensor, rotary: Rotary, first: int = 0) -> Tensor:
        """Return (B, N - first, D), of the tokens from `first` on, which look at all; the residual is not added.

        Args:
            x_BND: (B, N, D) tokens.
            bias_HNK: (H, N, K) of `RelativeBias`.
        """
        normed_BND = self.norm_in(x_BND)
        queries_BHQW = self.to_queries(normed_BND[:, first:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BNW, value_BNW = self.to_key_value(normed_BND).chunk(2, dim=-1)
        null_key, null_value = self.null_key_value
        key_BKW = prepend(null_key, rotary(key_BNW))
        value_BKW = prepend(null_value, value_BNW)
        out_BHQW = attend(rotary(queries_BHQW, first), key_BKW, value_BKW, bias_HNK[:, first:])
        return self.norm_out(self.to_out(out_BHQW.transpose(1, 2).flatten(2)))


def prepend(null_W: Tensor, x_BNW: Tensor) -> Tensor:
    """Return (B, N + 1, W): the null vector (W,) before the tokens' own (B, N, W), in their precision."""
    return torch.cat([null_W.to(x_BNW.dtype).expand(len(x_BNW), 1, -1), x_BNW], dim=1)


def attend(queries_BHQW: Tensor, key_BKW: Tensor, value_BKW: Tensor, bias_HQK: Tensor) -> Tensor:
    """Return (B, H, Q, W): values weighted by softmax(16 cos(query, key) + bias), in the precision of the values.

    The heads share keys and values, so their queries are those of a single head, one after the other: nothing is
    copied for each head. Heads are filled with zeros, which change no product, up to a width that fused kernels take.

    Args:
        queries_BHQW: (B, H, Q, W), of any length.
        key_BKW, value_BKW: (B, K, W), shared by the heads.
        bias_HQK: (H, Q, K) added to the logits.
    """
    dtype, spare = value_BKW.dtype, -value_BKW.shape[-1] % KERNEL_MULTIPLE
    queries, keys = unit(queries_BHQW).to(dtype).flatten(1, 2), unit(key_BKW).to(dtype)
    queries, keys, values = (functional.pad(x, (0, spare))[:, None] for x in (queries, keys, value_BKW))
    bias = bias_HQK.to(dtype).flatten(0, 1)[None, None]
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=SCALE)
    return out[:, 0, :, : value_BKW.shape[-1]].unflatten(1, queries_BHQW.shape[1:3])


def unit(x: Tensor) -> Tensor:
    """Return vectors along the last axis at length 1, float32 or wider: half precision is too coarse for squares."""
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


class Rotary(nn.Module):
    """Turns pairs of numbers of a query or key by angles that grow with its place (Su et al. 2021, equation 34)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, n_tokens: int, head_width: int) -> None:
        """Prepare `n_tokens` places; of `head_width` numbers at most the first 32 are turned, an even number."""
        super().__init__()
        self.n_turned = min(ROTATED, head_width) // 2 * 2
        speeds = SLOWEST ** -(torch.arange(0, self.n_turned, 2, dtype=torch.float64) / max(self.n_turned, 1))
        angles = torch.arange(n_tokens, dtype=torch.float64)[:, None] * speeds
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x_NW: Tensor, first: int = 0) -> Tensor:
        """Return (..., N - first, W) of the tokens from `first` on, float32 or wider."""
        cos, sin = self.cos[first:], self.sin[first:]
        even, odd = x_NW[..., 0 : self.n_turned : 2], x_NW[..., 1 : self.n_turned : 2]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
        return torch.cat([turned, x_NW[..., self.n_turned :].to(turned.dtype)], dim=-1)


class RelativeBias(nn.Module):
    """Learned (H, N, K) additions to the logits by how far a key lies before its query, in 32 buckets.

    As published (dalle2-pytorch 1.15.6, ``RelPosBias``) all keys behind the query share the first bucket, although
    attention looks both ways, and keys count from the null key: a token's own key is one place behind it.
    """

    buckets: Tensor

    def __init__(self, n_tokens: int, heads: int) -> None:
        super().__init__()
        distance = torch.arange(n_tokens)[:, None] - torch.arange(n_tokens + 1)
        self.register_buffer("buckets", bucket_of(distance.clamp(min=0)), persistent=False)
        self.table = nn.Embedding(N_BUCKETS, heads)

    def forward(self) -> Tensor:
        """Return (H, N, K)."""
        return self.table(self.buckets).permute(2, 0, 1)


def bucket_of(distance: Tensor) -> Tensor:
    """Return the buckets, 0 to 31, of int64 distances of at least 0: their own up to 15, then logarithmic up to 128.

    >>> bucket_of(torch.tensor([0, 15, 16, 128, 500])).tolist()
    [0, 15, 16, 31, 31]
    """
    exact = N_BUCKETS // 2
    share = torch.log(distance.clamp(min=1) / exact) / math.log(FARTHEST / exact)
    far = exact + (share * (N_BUCKETS - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=N_BUCKETS - 1))


class TimeEmbedding(nn.Module):
    """A timestep to a token: sines and cosines of it, and three linear layers with SiLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU(),
            nn.Linear(2 * width, width),
        )  # fmt: skip

    def forward(self, time_B: Tensor) -> Tensor:
        """Return (B, D) of timesteps (B,)."""
        return self.layers(sines(time_B, self.width).to(next(self.layers.parameters()).dtype))


def sines(time_B: Tensor, width: int) -> Tensor:
    """Return (B, D) float32: sines, then cosines of timesteps (B,) at D / 2 geometric frequencies; D = `width`.

    An odd D leaves out the last cosine.
    """
    half = (width + 1) // 2
    ranks = torch.arange(half, dtype=torch.float32, device=time_B.device) / max(half - 1, 1)
    angles = time_B[:, None].float() * torch.exp(-math.log(SLOWEST) * ranks)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))
