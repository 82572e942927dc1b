"""What is made of the shared space for one part of a target.

Shapes: B samples, H hidden, T tokens, D numbers of a token, C H' W' a latent map.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nd.mappers.network.draws import Draws
from nd.mappers.network.parts import Part
from nd.schema import NetworkConfig


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

    prior: nn.Module | None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Predict the part."""
        raise NotImplementedError


def build_head(config: NetworkConfig, part: Part, variant: str = "nd") -> Head:
    """The head of a part: of tokens or of a latent map."""
    raise NotImplementedError
