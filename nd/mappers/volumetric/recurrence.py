"""A linear recurrence over a sequence, solved in parallel: log2 L rounds, work that grows with L alone.

Shapes: B samples, L places of the sequence, ``...`` anything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """Return the states of ``h_t = decay_t h_(t-1) + drive_t``, ``h_(-1) = 0``, at every place t of axis 1.

    Neighbouring steps are combined, (a_2, b_2) after (a_1, b_1) being (a_2 a_1, a_2 b_1 + b_2); the sequence of pairs,
    half as long, is solved alike; the places between follow from it (Blelloch 1990, "Prefix sums and their
    applications"). Nothing is divided by a product of decays, which would underflow. The gradient is the same
    recurrence backwards, so that only ``decay`` and the states are kept for it.

    Args:
        decay, drive: (B, L, ...) of one floating-point dtype, B of any number, L at least 1.

    Returns:
        (B, L, ...) of the same dtype.

    >>> recurrence(torch.full((1, 3), 0.5), torch.tensor([[1.0, 1.0, 1.0]])).tolist()
    [[1.0, 1.5, 1.75]]
    """
    states: Tensor = _Recurrence.apply(decay, drive)
    return states


class _Recurrence(torch.autograd.Function):
    """`recurrence` with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        states = _solved(decay, drive)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        # A state acts on the loss itself and through the next one: G_t = g_t + decay_(t+1) G_(t+1).
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        whole = _solved(later.flip(1), grads[0].flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return whole * before, whole


def _solved(decay: Tensor, drive: Tensor) -> Tensor:
    n = drive.shape[1]
    if n == 1:
        return drive.clone()
    pairs, left = n // 2, (n - 1) // 2
    second_decay, second_drive = decay[:, 1::2], drive[:, 1::2]
    first_decay, first_drive = decay[:, : 2 * pairs : 2], drive[:, : 2 * pairs : 2]
    odd = _solved(second_decay * first_decay, torch.addcmul(second_drive, second_decay, first_drive))
    states = torch.empty_like(drive)
    states[:, 0], states[:, 1::2] = drive[:, 0], odd
    states[:, 2::2] = torch.addcmul(drive[:, 2::2], decay[:, 2::2], odd[:, :left])
    return states
