"""A network that returns the layers it is asked for, flattened, instead of its last output.

B batch, C H W image, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Layers = dict[str, Tensor]


class Tapped(nn.Module):
    """Runs a network and returns the outputs of some of its modules as {name: (B, D)}."""

    def __init__(self, network: nn.Module, nodes: dict[str, str]) -> None:
        """nodes: name of the layer to the module's path inside ``network``."""
        super().__init__()
        self.network = network
        self._seen: Layers = {}
        for name, path in nodes.items():
            network.get_submodule(path).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output.flatten(1)

        return hook

    def forward(self, x_BCHW: Tensor) -> Layers:
        """(B, 3, H, W) normalised images to features by layer."""
        self.network(x_BCHW)
        seen, self._seen = self._seen, {}
        return seen


class Embedding(nn.Module):
    """Returns a network's last output as the layer ``embedding``."""

    def __init__(self, network: nn.Module, pick: Callable[[Any], Tensor] = lambda output: output) -> None:
        """pick: takes the tensor (B, D) out of what the network returns."""
        super().__init__()
        self.network, self.pick = network, pick

    def forward(self, x_BCHW: Tensor) -> Layers:
        """(B, 3, H, W) normalised images to {"embedding": (B, D)}."""
        return {"embedding": self.pick(self.network(x_BCHW)).flatten(1)}
