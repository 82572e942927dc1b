"""The diffusion prior over tokens: from decoded tokens to the tokens of the target, by denoising.

``alpha_bar`` is the share of signal power left at a timestep, 0 the cleanest.

Shapes: B samples, T tokens, D numbers of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import unknown
from nd.mappers.network.draws import Draws
from nd.mappers.network.prior_network import PriorNetwork
from nd.mappers.training.losses import wide

# Nichol & Dhariwal 2021 ("Improved denoising diffusion probabilistic models"), section 3.2: keeps the first beta from
# vanishing, and the last from removing everything.
OFFSET = 0.008
LARGEST_BETA = 0.999
Noise = Callable[[str, Sequence[int]], Tensor]  # (name of the stream, shape of a sample) -> (B, *shape), normal


@dataclass(frozen=True)
class Step:
    """One evaluation at `time`; the next sample is ``signal * x0 + noise * predicted noise + fresh * new noise``.

    `alpha_bar` is that of `time`, by which the predicted noise follows from x0.
    """

    time: int
    alpha_bar: float
    signal: float
    noise: float
    fresh: float


def cosine_alpha_bar(n_timesteps: int) -> list[float]:
    """Return `alpha_bar` of every timestep under the cosine schedule."""
    levels = [math.cos((t / n_timesteps + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for t in range(n_timesteps + 1)]
    alpha_bar, product = [], 1.0
    for before, after in pairwise(levels):
        product *= 1 - min(1 - after / before, LARGEST_BETA)
        alpha_bar.append(product)
    return alpha_bar


def released_steps(alpha_bar: Sequence[float], n_levels: int) -> list[Step]:
    """Return the steps of DDIM with eta 1 as published, ``n_levels - 1`` of them; 94, 89, ..., 4 of 100 and 20 levels.

    Args:
        alpha_bar: of every timestep.
        n_levels: noise levels, of which evaluations lie between, 2 or more.

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
    """Return the steps of DDIM with eta 0 from the noisiest timestep to none, ``n_levels - 1`` evenly spaced.

    Song et al. 2021 ("Denoising diffusion implicit models"), equation 12 with sigma = 0.
    """
    last = len(alpha_bar) - 1
    times = [round(last - k * (last + 1) / (n_levels - 1)) for k in range(n_levels)]
    steps = []
    for time, after in pairwise(times):
        then = alpha_bar[after] if after >= 0 else 1.0
        steps.append(Step(time, alpha_bar[time], math.sqrt(then), math.sqrt(1 - then), 0.0))
    return steps


STEPS = {"released": released_steps, "ddim": ddim_steps}


class DiffusionPrior(nn.Module):
    """Predicts x0 from a noisy target, the noise level and the condition; cosine schedule."""

    alpha_bar: Tensor

    def __init__(self, config: NetworkConfig, n_tokens: int, width: int, name: str) -> None:
        """Make the prior of `n_tokens` tokens of `width` numbers; `name` is the prefix of its random streams.

        Raises:
            UserError: `config.prior_sampling` is unknown.
        """
        super().__init__()
        if config.prior_sampling not in (*STEPS, "mean"):
            raise unknown("network.prior_sampling", config.prior_sampling, (*STEPS, "mean"))
        self.config, self.name = config, name
        self.network = PriorNetwork(config, n_tokens, width)
        alpha_bar = torch.tensor(cosine_alpha_bar(config.prior_timesteps), dtype=torch.float32)
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def error(self, condition_BTD: Tensor, target_BTD: Tensor, draws: Draws) -> Tensor:
        """Return (B,) the mean squared error of the predicted target at a random noise level.

        Args:
            condition_BTD: (B, T, D) decoded tokens, of which whole samples are dropped at random.
            target_BTD: (B, T, D) standardised tokens of the target.
            draws: of the step.
        """
        time_B = draws.integers(f"{self.name}/prior time", len(self.alpha_bar))
        noise_BTD = draws.normal(f"{self.name}/prior noise", target_BTD.shape[1:])
        alpha_B11 = self.alpha_bar[time_B, None, None]
        target_BTD = wide(target_BTD)
        noisy_BTD = alpha_B11.sqrt() * target_BTD + (1 - alpha_B11).sqrt() * noise_BTD
        condition_BTD = self._dropped(condition_BTD, self.network.null_condition, draws, "condition")
        noisy_BTD = self._dropped(noisy_BTD, self.network.null_target, draws, "target")
        predicted_BTD = self.network(condition_BTD, noisy_BTD, time_B)
        return (wide(predicted_BTD) - target_BTD).square().mean(dim=(1, 2))

    def _dropped(self, x_BTD: Tensor, null_TD: Tensor, draws: Draws, what: str) -> Tensor:
        """The same with whole samples replaced by the null tokens, a share ``config.prior_drop`` of them."""
        dropped_B = draws.uniform(f"{self.name}/prior drop {what}") < self.config.prior_drop
        return torch.where(dropped_B[:, None, None], null_TD.to(x_BTD.dtype), x_BTD)

    @torch.no_grad()
    def sample(self, condition_BTD: Tensor, noise: Noise) -> Tensor:
        """Return (B, T, D) float32 target tokens, by `config.prior_sampling`.

        "released" and "ddim" visit ``config.prior_steps`` noise levels, starting from the stream "start" of ``noise``;
        the former adds noise from the streams "step 0", "step 1", ... "mean" evaluates the network once and draws
        nothing.
        """
        if self.config.prior_sampling == "mean":
            return self._mean(condition_BTD)
        steps = STEPS[self.config.prior_sampling](self.alpha_bar.tolist(), self.config.prior_steps)
        x_BTD = noise("start", condition_BTD.shape[1:])
        for k, step in enumerate(steps):
            x_BTD = self._stepped(x_BTD, condition_BTD, step)
            if step.fresh:
                x_BTD = x_BTD + step.fresh * noise(f"step {k}", condition_BTD.shape[1:])
        return x_BTD

    def _stepped(self, x_BTD: Tensor, condition_BTD: Tensor, step: Step) -> Tensor:
        """The next sample, but for its new noise."""
        x0_BTD = self._clean(x_BTD, condition_BTD, step.time)
        predicted_noise_BTD = (x_BTD - step.alpha_bar**0.5 * x0_BTD) / (1 - step.alpha_bar) ** 0.5
        return step.signal * x0_BTD + step.noise * predicted_noise_BTD

    def _mean(self, condition_BTD: Tensor) -> Tensor:
        """The clean target as the network estimates it where the whole noisy target was dropped.

        Trained on the share ``config.prior_drop`` of the samples, that estimate is the mean of the target given the
        condition, at every level; the middle one did best. Where nothing was dropped, zeros at the noisiest level stand
        for it. Squared errors relative to a known mean, on a toy problem: dropped target .29, zeros .47, noise .68,
        mean over 8 noises .35; one sample of 19 evaluations .38 (ddim), .35 (released).
        """
        levels, network = len(self.alpha_bar), self.network
        if self.config.prior_drop:
            return self._clean(network.null_target.expand(len(condition_BTD), -1, -1), condition_BTD, levels // 2)
        return self._clean(torch.zeros_like(condition_BTD), condition_BTD, levels - 1)

    def _clean(self, noisy_BTD: Tensor, condition_BTD: Tensor, time: int) -> Tensor:
        """(B, T, D) estimate of the clean target, float32 or wider."""
        time_B = torch.full((len(noisy_BTD),), time, device=noisy_BTD.device)
        return wide(self.network(condition_BTD, noisy_BTD, time_B))
