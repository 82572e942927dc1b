"""Mixers of a sequence of tokens: selective state spaces, or a transformer.

A mixer is a number of blocks ``x + Dropout(block(norm(x)))``. The last linear layer of a block starts at zero, as in
the trunk of `two_stage`, so that at first tokens pass as they are and mix only where that lowers the loss.

Shapes: B samples, L tokens, D numbers of a token, E inner numbers, N numbers of a state, R rank of the step sizes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.mappers.network.draws import Draws, Dropout
from nd.mappers.volumetric.recurrence import recurrence

if TYPE_CHECKING:
    from nd.mappers.volumetric.components import VolumetricSettings

STEPS = (0.001, 0.1)  # smallest and largest step size at the start (Gu & Dao 2023, section 3.6)
LEAST_STEP = 1e-4


class Mixer(nn.Module):
    """Blocks over a sequence; `norms`, `blocks` and `drops` in order."""

    def __init__(self, config: VolumetricSettings, n_blocks: int, share: float, name: str) -> None:
        """Make `n_blocks` of the configured kind.

        Args:
            config: kind and sizes.
            n_blocks: 0: tokens pass as they are.
            share: dropped of what a block adds.
            name: prefix of the random streams.
        """
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(config.width, eps=1e-5) for _ in range(n_blocks))
        self.blocks = nn.ModuleList(_block(config) for _ in range(n_blocks))
        self.drops = nn.ModuleList(Dropout(share, f"{name}/block {k}") for k in range(n_blocks))

    def forward(self, tokens_BLD: Tensor, draws: Draws | None) -> Tensor:
        """Return (B, L, D)."""
        for norm, block, drop in zip(self.norms, self.blocks, self.drops, strict=True):
            tokens_BLD = tokens_BLD + drop(block(norm(tokens_BLD)), draws)
        return tokens_BLD


def _block(config: VolumetricSettings) -> nn.Module:
    if config.mixer == "transformer":
        return AttentionBlock(config.width, config.heads, config.expand)
    block = SelectiveStateSpace(config.width, config.state, config.expand)
    nn.init.zeros_(block.out_proj.weight)
    return block


class SelectiveStateSpace(nn.Module):
    """The selective state space of Gu & Dao 2023 ("Mamba", section 3.4), causal in the order of the tokens.

    With u and z linear in the tokens, u then convolved over the last 4 tokens, and step sizes d_t, B_t and C_t linear
    in u_t::

        h_t = exp(d_t A) h_(t-1) + d_t u_t B_t,    y_t = (h_t C_t + D u_t) SiLU(z_t)

    Parameters are named as in published weights, which can be loaded. Memory for the gradient is 2 L E N numbers a
    sample, and both memory and time grow with L alone.
    """

    def __init__(self, width: int, n_states: int = 16, expand: int = 2, kernel: int = 4) -> None:
        """Make one layer.

        Args:
            width: D.
            n_states: N.
            expand: E as a multiple of D.
            kernel: tokens the convolution reaches back over, the present one included.
        """
        super().__init__()
        inner, self.rank, self.n_states = expand * width, math.ceil(width / 16), n_states
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * n_states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, n_states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        low, high = (math.log(step) for step in STEPS)
        step = torch.exp(low + (high - low) * torch.rand(inner)).clamp(min=LEAST_STEP)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return (B, L, D)."""
        u_BLE, gate_BLE = self.in_proj(tokens_BLD).chunk(2, -1)
        u_BLE = functional.silu(self.conv1d(u_BLE.mT)[..., : tokens_BLD.shape[1]].mT)
        step, into_BLN, out_BLN = self.x_proj(u_BLE).split([self.rank, self.n_states, self.n_states], -1)
        step_BLE = functional.softplus(self.dt_proj(step))
        wide = torch.promote_types(step_BLE.dtype, torch.float32)  # half precision is too coarse for many products
        decay_BLEN = torch.exp(step_BLE.to(wide)[..., None] * -torch.exp(self.A_log.to(wide)))
        drive_BLEN = (step_BLE * u_BLE).to(wide)[..., None] * into_BLN.to(wide)[:, :, None]
        states_BLEN = recurrence(decay_BLEN, drive_BLEN)
        y_BLE = (states_BLEN @ out_BLN.to(wide)[..., None])[..., 0] + self.D * u_BLE
        return self.out_proj(y_BLE.to(gate_BLE.dtype) * functional.silu(gate_BLE))


class AttentionBlock(nn.Module):
    """Multi-head attention of all tokens to all, and a feed-forward layer, each added to what it is given."""

    def __init__(self, width: int, heads: int, expand: int) -> None:
        """width: D, a multiple of `heads`; expand: inner width of the feed-forward layer as a multiple of D."""
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.inner, self.outer = nn.Linear(width, expand * width), nn.Linear(expand * width, width)
        for layer in (self.to_out, self.outer):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return (B, L, D), what the block adds to the tokens that were normalised."""
        query, key, value = self.to_qkv(tokens_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHLW = functional.scaled_dot_product_attention(query, key, value)
        added_BLD = self.to_out(mixed_BHLW.transpose(1, 2).flatten(2))
        return added_BLD + self.outer(functional.gelu(self.inner(self.norm(tokens_BLD + added_BLD))))
