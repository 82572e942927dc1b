"""The network of the diffusion prior: a transformer over condition, time and noisy target.

Shapes: B samples, T tokens, N = 2 T + 1 tokens of a sequence, H heads, K = N + 1 keys, D numbers of a token.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.config import NetworkConfig
from nd.mappers.network.attention import Attention
from nd.mappers.network.positions import RelativeBias, Rotary, TimeEmbedding


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
        """(B, T, D) estimate of the clean target; ``time_B`` int64 timesteps."""
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
        self.attention = Attention(width, config.prior_heads, config.prior_head_width)
        self.feed_forward = FeedForward(width, config.prior_growth)

    def forward(self, x_BND: Tensor, bias_HNK: Tensor, rotary: Rotary, first: int = 0) -> Tensor:
        """(B, N - first, D), the tokens from ``first`` on."""
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
        """(B, N, D); the residual is not added."""
        value, gate = self.widen(self.norm(x_BND)).chunk(2, dim=-1)
        return self.narrow(value * functional.silu(gate))


class StableNorm(nn.LayerNorm):
    """LayerNorm of what was divided by its largest number, so that squares stay in range.

    As published (dalle2-pytorch 1.15.6, ``LayerNorm`` with ``stable``): the largest, not the largest in size, and no
    gradient through it.
    """

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        largest = x_BND.amax(dim=-1, keepdim=True).detach()
        return super().forward(x_BND / torch.where(largest == 0, 1, largest))
