"""What every head offers.

Shapes: B samples, H hidden, T tokens, D numbers of a token, S places of a latent map.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nd.mappers.network.draws import Draws
from nd.mappers.network.prior import DiffusionPrior


@dataclass
class HeadOutput:
    """Of one head.

    Attributes: ``predicted`` (B, *shape of the part), in the units of the standardised target; ``projected``
    (B, T, D) of the contrastive head, or for a map (B, S, D_aux) of the auxiliary one; None where there is none.
    """

    predicted: Tensor
    projected: Tensor | None = None


class Head(nn.Module):
    """The shared space to one part; ``prior`` is its diffusion prior or None."""

    prior: DiffusionPrior | None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Predict the part."""
        raise NotImplementedError
