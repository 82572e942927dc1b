"""What tells the prior's tokens apart by place: rotation of queries and keys, a bias of the logits, and time.

Shapes: B samples, H heads, N tokens of a sequence, K keys (a null key and those of the N tokens), W numbers of a head,
D numbers of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOWEST = 10000  # ratio of the wavelengths of sines and rotations (Vaswani et al. 2017, section 3.5)
ROTATED = 32  # numbers of a head that are rotated at most (dalle2-pytorch 1.15.6, ``CausalTransformer``)
N_BUCKETS, FARTHEST = 32, 128  # of the relative bias (T5: Raffel et al. 2020, section 2.1)


class Rotary(nn.Module):
    """Turns pairs of numbers of a query or key by angles that grow with its place (Su et al. 2021, equation 34)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, n_tokens: int, head_width: int) -> None:
        """n_tokens: N; of ``head_width`` numbers at most the first 32 are turned, an even number."""
        super().__init__()
        self.n_turned = min(ROTATED, head_width) // 2 * 2
        speeds = SLOWEST ** -(torch.arange(0, self.n_turned, 2, dtype=torch.float64) / max(self.n_turned, 1))
        angles = torch.arange(n_tokens, dtype=torch.float64)[:, None] * speeds
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x_NW: Tensor, first: int = 0) -> Tensor:
        """(..., N - first, W) of the tokens from ``first`` on, float32 or wider."""
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
        """(H, N, K)."""
        return self.table(self.buckets).permute(2, 0, 1)


def bucket_of(distance: Tensor) -> Tensor:
    """Bucket from 0 to 31 of int64 distances of at least 0: their own up to 15, then logarithmic up to 128."""
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
        """(B, D) of (B,) timesteps."""
        return self.layers(sines(time_B, self.width).to(next(self.parameters()).dtype))


def sines(time_B: Tensor, width: int) -> Tensor:
    """(B, D) float32: sines, then cosines of timesteps at D / 2 geometric frequencies; an odd D leaves out the last."""
    half = (width + 1) // 2
    ranks = torch.arange(half, dtype=torch.float32, device=time_B.device) / max(half - 1, 1)
    angles = time_B[:, None].float() * torch.exp(-math.log(SLOWEST) * ranks)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))
