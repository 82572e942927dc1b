"""The published trunk of tokens: an MLP mixer over a sequence of one, which makes it affine.

Shapes: B samples, H hidden, 1 the sequence.
"""

from __future__ import annotations

from torch import Tensor, nn

from nd.mappers.network.draws import Draws, Dropout


class MixerPart(nn.Module):
    """LayerNorm, Linear, GELU, Dropout, Linear over the last axis."""

    def __init__(self, width: int, share: float, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = Dropout(share, name)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        """Same shape as x."""
        return self.outer(self.drop(nn.functional.gelu(self.inner(self.norm(x))), draws))


class Mixer(nn.Module):
    """Mixer blocks wired as published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, BrainNetwork, sequence length 1).

    Over the sequence of one, LayerNorm returns its bias whatever it is given: the second part of every block is a
    constant. Its residual starts from the input and replaces what the first part made, so

        output = input + the constants of all blocks,

    the trunk is affine in the voxels, and parameters of the first parts (2 H^2 in a block) reach no output. Dropout
    adds noise to the constants that does not depend on the voxels. Decoding the mean of trials equals the mean of
    decoded trials. All of it is kept under ``network.trunk=mixer``, so that published weights mean what they meant.
    """

    def __init__(self, hidden: int, n_blocks: int, share: float, name: str) -> None:
        """share: dropped of the inner activations; ``name``: prefix of the random streams."""
        super().__init__()
        blocks = range(n_blocks)
        self.first = nn.ModuleList(MixerPart(hidden, share, f"{name}/mixer {k}/hidden") for k in blocks)
        self.second = nn.ModuleList(MixerPart(1, share, f"{name}/mixer {k}/sequence") for k in blocks)

    def forward(self, x_BH: Tensor, draws: Draws | None) -> Tensor:
        """(B, H)."""
        x_B1H = residual_B1H = x_BH.unsqueeze(1)
        residual_BH1 = x_B1H.mT
        for first, second in zip(self.first, self.second, strict=True):
            residual_B1H = first(x_B1H, draws) + residual_B1H
            residual_BH1 = second(residual_B1H.mT, draws) + residual_BH1
            x_B1H = residual_BH1.mT
        return x_B1H.squeeze(1)
