"""The head of a part that is tokens.

Shapes: B samples, H hidden, T tokens, D numbers of a token.
"""

from __future__ import annotations

from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.mappers.network.draws import Draws
from nd.mappers.network.head import Head, HeadOutput
from nd.mappers.network.parts import Part
from nd.mappers.network.prior import DiffusionPrior


class TokenHead(Head):
    """One linear layer to all tokens; beside it a contrastive head, and a prior that others train and sample.

    As published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, BrainNetwork: backbone_linear and clip_proj).
    """

    def __init__(self, config: NetworkConfig, part: Part) -> None:
        super().__init__()
        n_tokens, width = part.shape
        self.shape = part.shape
        self.tokens = nn.Linear(config.hidden, part.size)
        self.projector = projector(width) if config.projector else None
        self.prior = DiffusionPrior(config, n_tokens, width, part.name) if config.prior else None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """``predicted`` (B, T, D), and ``projected`` (B, T, D) where there is a contrastive head."""
        tokens_BTD = self.tokens(hidden_BH).unflatten(1, self.shape)
        return HeadOutput(tokens_BTD, self.projector(tokens_BTD) if self.projector is not None else None)


def projector(width: int) -> nn.Sequential:
    """Three times LayerNorm, GELU, Linear on each token by itself."""
    layers = [layer for _ in range(3) for layer in (nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))]
    return nn.Sequential(*layers)
