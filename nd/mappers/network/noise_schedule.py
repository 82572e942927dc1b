"""How much noise belongs to each timestep of the prior, and the steps by which it is sampled.

``alpha_bar`` is the share of signal power left at a timestep, 0 the cleanest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

# Nichol & Dhariwal 2021 ("Improved denoising diffusion probabilistic models"), section 3.2: keeps the first beta from
# vanishing, and the last from removing everything.
OFFSET = 0.008
LARGEST_BETA = 0.999


@dataclass(frozen=True)
class Step:
    """One evaluation at ``time``; the next sample is ``signal * x0 + noise * predicted noise + fresh * new noise``.

    ``alpha_bar`` is that of ``time``, by which the predicted noise follows from x0.
    """

    time: int
    alpha_bar: float
    signal: float
    noise: float
    fresh: float


def cosine_alpha_bar(n_timesteps: int) -> list[float]:
    """``alpha_bar`` of every timestep under the cosine schedule."""
    levels = [math.cos((t / n_timesteps + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for t in range(n_timesteps + 1)]
    alpha_bar, product = [], 1.0
    for before, after in pairwise(levels):
        product *= 1 - min(1 - after / before, LARGEST_BETA)
        alpha_bar.append(product)
    return alpha_bar


def released_steps(alpha_bar: Sequence[float], n_levels: int) -> list[Step]:
    """DDIM with eta 1 as published, ``n_levels - 1`` evaluations; of 100 timesteps and 20 levels at 94, 89, ..., 4.

    Two quirks: sampling starts from pure noise below the noisiest timestep, and the levels stepped between are those
    of the timesteps before (``time - 1``) while the predicted noise is that of ``time``
    (dalle2-pytorch 1.15.6, ``DiffusionPrior.p_sample_loop_ddim``).
    """
    n = len(alpha_bar)
    # int() of float32 numbers, as published: on the other side of a whole number lies another timestep.
    spaced = torch.linspace(-1, n, n_levels + 1, dtype=torch.float32, device="cpu")[:-1]
    times = [int(time) for time in spaced.tolist()][::-1]
    before = [1.0, *alpha_bar[:-1]]
    steps = []
    for time, after in pairwise(times):
        now, then = before[time], before[after] if after >= 0 else 1.0
        fresh = math.sqrt((1 - now / then) * (1 - then) / (1 - now)) if after > 0 else 0.0
        noise = math.sqrt(max(1 - then - fresh**2, 0.0))
        steps.append(Step(time, alpha_bar[time], math.sqrt(then), noise, fresh))
    return steps


def ddim_steps(alpha_bar: Sequence[float], n_levels: int) -> list[Step]:
    """DDIM with eta 0 from the noisiest timestep to none, ``n_levels - 1`` evaluations evenly spaced.

    Song et al. 2021 ("Denoising diffusion implicit models"), equation 12 with sigma = 0.
    """
    last = len(alpha_bar) - 1
    times = [round(last - k * (last + 1) / (n_levels - 1)) for k in range(n_levels)]
    steps = []
    for time, after in pairwise(times):
        then = alpha_bar[after] if after >= 0 else 1.0
        steps.append(Step(time, alpha_bar[time], math.sqrt(then), math.sqrt(1 - then), 0.0))
    return steps
