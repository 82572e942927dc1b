"""Which timesteps are sampled, how much noise belongs to each, and the step from one to the next.

``alpha_bar`` is the cumulative product of 1 - beta: the share of signal power at a timestep.
z latents, eps predicted noise, x0 predicted clean latents; all of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from nd.config.steps import share_of
from nd.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The sampled part of a DDIM schedule, noisiest step first."""

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]  # at each timestep
    alpha_bar_next: tuple[float, ...]  # at the timestep each step leads to
    start: float  # alpha_bar to which the clean latents are noised

    def __len__(self) -> int:
        return len(self.timesteps)


def build_schedule(scheduler: Any, steps: int, strength: float, *, matched_start: bool = True) -> Schedule:
    """Return the last ``int(steps * strength)`` steps of the DDIM schedule of ``steps`` steps.

    Args:
        scheduler: diffusers scheduler of the backbone, of any kind; its betas and spacing are taken over.
        steps: of the full schedule, 1 .. number of training timesteps.
        strength: in (0, 1].
        matched_start: noise is added at the first of these timesteps, the one sampling starts from. Else, as in the
            released code, at ``int(int(steps * strength) / steps * 1000)``: 740 for 50 steps and .75, while sampling
            starts at 721 (HaoyyLi/NeuralDiffuser@9286cad:scripts/recon.py:111,196).

    Raises:
        UserError: if no step is left to run, or the backbone does not predict noise.
    """
    ddim = DDIMScheduler.from_config(scheduler.config)
    if ddim.config["prediction_type"] != "epsilon":
        wrong = ddim.config["prediction_type"]
        raise UserError(
            f"the backbone predicts {wrong!r}; guided sampling is written for backbones that predict 'epsilon'."
        )
    if not 1 <= steps <= len(ddim.alphas_cumprod):
        raise UserError(f"method.steps={steps} is outside 1 .. {len(ddim.alphas_cumprod)}, the backbone's timesteps.")
    n = share_of(steps, strength)
    if not 1 <= n <= steps:
        raise UserError(
            f"method.steps={steps} and method.strength={strength} leave int(steps * strength) = {n} steps to sample; "
            f"between 1 and {steps} are needed. Raise one of them, with strength in (0, 1]."
        )
    ddim.set_timesteps(steps)
    timesteps = [int(t) for t in ddim.timesteps[-n:]]
    jump = len(ddim.alphas_cumprod) // steps
    before = [t - jump for t in timesteps]
    alpha_bar = tuple(float(ddim.alphas_cumprod[t]) for t in timesteps)
    after = tuple(float(ddim.alphas_cumprod[t] if t >= 0 else ddim.final_alpha_cumprod) for t in before)
    noised_to = timesteps[0] if matched_start else int(n / steps * len(ddim.alphas_cumprod))
    start = float(ddim.alphas_cumprod[min(noised_to, len(ddim.alphas_cumprod) - 1)])
    return Schedule(tuple(timesteps), alpha_bar, after, start)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Return clean latents noised to the level ``alpha_bar``."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


def predict_x0(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """Return the clean latents that ``z`` and its predicted noise imply."""
    return (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def ddim_step(z: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """Return the latents one deterministic DDIM step further (Song et al. 2021, equation 12 with sigma = 0)."""
    return alpha_bar_next**0.5 * predict_x0(z, eps, alpha_bar) + (1 - alpha_bar_next) ** 0.5 * eps
