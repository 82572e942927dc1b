"""How many samples go through the networks at once, and whether activations are kept or computed again.

Only speed and memory hang on it: pictures are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Larger batches leave the caches of a CPU: the UNet and the decoder of Scenes are fastest, per sample, at 16 to 32.
FASTEST_ON_CPU = 32


@dataclass(frozen=True)
class Plan:
    """Samples at once in each kind of work."""

    guided: int  # forward and backward through UNet, decoder and image tower
    plain: int  # the UNet without a graph
    decode: int  # the final pictures
    checkpoint: bool = False  # compute the activations of UNet and decoder again instead of keeping them

    @classmethod
    def for_speed(cls, device: torch.device, passes: int = 2) -> Plan:
        """Return the plan of a machine with memory enough; ``passes``: UNet halves that a plain step runs together."""
        at_once = FASTEST_ON_CPU if device.type == "cpu" else 1 << 20
        return cls(guided=at_once // 2, plain=max(1, at_once // passes), decode=at_once // 2)

    def apply(self, backbone: Any) -> None:
        """Switch recomputing in UNet and VAE on or off."""
        for module in (backbone.unet, backbone.vae):
            (module.enable_gradient_checkpointing if self.checkpoint else module.disable_gradient_checkpointing)()


def in_parts(function: Callable[..., Any], at_once: int, *columns: Tensor | None) -> Any:
    """Apply a function to parts of ``at_once`` rows and join what it returns: a tensor, or a tuple of tensors.

    Rows are cut into parts of nearly equal size, so that no part is much smaller than the others.
    """
    n = len(next(column for column in columns if column is not None))
    n_parts = -(-n // at_once)
    if n_parts == 1:
        return function(*columns)
    cut = [column.tensor_split(n_parts) if column is not None else [None] * n_parts for column in columns]
    parts = [function(*rows) for rows in zip(*cut, strict=True)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
