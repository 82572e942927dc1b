"""The diffusion prior over tokens: from decoded tokens to the tokens of the target, by denoising.

Shapes: B samples, T tokens, D numbers of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import unknown
from nd.mappers.losses import wide
from nd.mappers.network.draws import Draws
from nd.mappers.network.noise_schedule import Step, cosine_alpha_bar, ddim_steps, released_steps
from nd.mappers.network.prior_network import PriorNetwork

Noise = Callable[[str, Sequence[int]], Tensor]  # (name of the stream, shape of a sample) -> (B, *shape), normal
STEPS = {"released": released_steps, "ddim": ddim_steps}


class DiffusionPrior(nn.Module):
    """Predicts x0 from a noisy target, the noise level and the condition; cosine schedule."""

    alpha_bar: Tensor

    def __init__(self, config: NetworkConfig, n_tokens: int, width: int, name: str) -> None:
        """name: of the part; prefix of its random streams."""
        super().__init__()
        if config.prior_sampling not in (*STEPS, "mean"):
            raise unknown("network.prior_sampling", config.prior_sampling, (*STEPS, "mean"))
        self.config, self.name = config, name
        self.network = PriorNetwork(config, n_tokens, width)
        alpha_bar = torch.tensor(cosine_alpha_bar(config.prior_timesteps), dtype=torch.float32)
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def error(self, condition_BTD: Tensor, target_BTD: Tensor, draws: Draws) -> Tensor:
        """(B,) mean squared error of the predicted target at a random noise level, conditions dropped at random."""
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
        """(B, T, D) float32 target tokens, by ``config.prior_sampling``.

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
