"""What a training needs of memory, said before it is missed."""

from __future__ import annotations

from collections.abc import Sequence

from nd.mappers.network.network import Network
from nd.schema import Config


def needs_of(network: Network, n_voxels: Sequence[int], cfg: Config) -> str:
    """The estimate as text, with the settings that lower it."""
    n_parameters = sum(weight.numel() for weight in network.parameters())
    gib = n_parameters * (16 + 4 * (cfg.training.ema > 0)) / (1 << 30)
    return f"{n_parameters / 1e6:.0f} million weights take about {gib:.1f} GiB with gradients and moments."
