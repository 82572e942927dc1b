"""The diffusion prior over tokens: from decoded tokens to the tokens of the target, by denoising.

Shapes: B samples, T tokens, D numbers of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from nd.mappers.network.draws import Draws
from nd.schema import NetworkConfig

Noise = Callable[[str, Sequence[int]], Tensor]  # (name of the stream, shape of a sample) -> (B, *shape), normal


class DiffusionPrior(nn.Module):
    """Predicts x0 from a noisy target, the noise level and the condition; cosine schedule."""

    def __init__(self, config: NetworkConfig, n_tokens: int, width: int, name: str) -> None:
        """name: of the part; prefix of its random streams."""
        super().__init__()

    def error(self, condition_BTD: Tensor, target_BTD: Tensor, draws: Draws) -> Tensor:
        """(B,) mean squared error of the predicted target at a random noise level, conditions dropped at random."""
        raise NotImplementedError

    def sample(self, condition_BTD: Tensor, noise: Noise) -> Tensor:
        """(B, T, D) target tokens, by ``config.prior_sampling`` in ``config.prior_steps``."""
        raise NotImplementedError
