"""Noise that the image fixes, for sampling: never dependent on batches, order or processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.mappers.network.draws import key_of


class ImageNoise:
    """Normal numbers (B, *shape) float32 for some images; every name is a stream of its own."""

    def __init__(self, seed: int, image_ids: NDArray[Any] | Tensor, device: torch.device | str = "cpu") -> None:
        """image_ids: (B,)."""
        self.seed, self.image_ids, self.device = seed, [int(i) for i in image_ids.tolist()], device

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """Drawn on the CPU, so that every device samples from the same noise."""
        rows = [
            torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key_of(self.seed, image, name)))
            for image in self.image_ids
        ]
        return torch.stack(rows).to(self.device)

    def of(self, prefix: str) -> Callable[[str, Sequence[int]], Tensor]:
        """The same noise with a word before every name, so that parts have streams of their own."""
        return lambda name, shape: self(f"{prefix} {name}", shape)
