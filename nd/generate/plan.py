"""How many samples go through the networks at once, and whether activations are kept or computed again.

Only speed and memory hang on it: images are the same up to rounding between plans, and to the last bit within one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Fewer leave a CPU's cores waiting and more its caches (the networks of Scenes are fastest, per sample, at 20 to 40),
# and a GPU is busy with as many images of 512 px. Guided samples hold more memory, so half of them go at once.
# trainer.batch_size is a multiple by default, so that no part has to be filled up.
AT_ONCE = 40


@dataclass(frozen=True)
class Plan:
    """Samples at once in each kind of work."""

    guided: int  # forward and backward through UNet, decoder and image tower
    plain: int  # the UNet without a graph
    decode: int  # the final images
    checkpoint: bool = False  # compute the activations of UNet and decoder again instead of keeping them

    @classmethod
    def for_speed(cls) -> Plan:
        """Return the plan of a machine with memory enough."""
        return cls(guided=AT_ONCE // 2, plain=AT_ONCE, decode=AT_ONCE // 2)

    def apply(self, backbone: Any) -> None:
        """Switch recomputing in UNet and VAE on or off."""
        for module in (backbone.unet, backbone.vae):
            (module.enable_gradient_checkpointing if self.checkpoint else module.disable_gradient_checkpointing)()


def in_parts(function: Callable[..., Any], at_once: int, *columns: Tensor | None) -> Any:
    """Apply a function to parts of ``at_once`` rows and join what it returns: a tensor, or a tuple of tensors.

    Every part is full, the last one by repeating its last row: libraries choose their kernels by the size of a batch,
    so equal sizes give a row the same result to the last bit, wherever it stands and whatever stands beside it. Long
    guidance can turn rounding into visible differences.
    """
    n = len(next(column for column in columns if column is not None))
    rows = torch.arange(-(-n // at_once) * at_once).clamp(max=n - 1)
    cut = [
        [None] * (len(rows) // at_once) if column is None else column[rows.to(column.device)].split(at_once)
        for column in columns
    ]
    parts = [function(*part) for part in zip(*cut, strict=True)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[:n]
    return tuple(torch.cat(column)[:n] for column in zip(*parts, strict=True))
