"""Random numbers that depend on neither processes nor order: of a training step, and of an image.

A step draws for the samples of all processes, from a generator that (seed, epoch, step, what for) choose, and each
process takes the rows of its own samples. Training on two processes, or resumed, then draws what one process would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MASK_63 = (1 << 63) - 1


def key_of(*words: int | str) -> int:
    """Return a generator's seed from numbers and names, the same on every machine.

    >>> key_of(42, "z") == key_of(42, "z"), key_of(42, "z") == key_of(43, "z")
    (True, False)
    """
    key = 0
    for word in words:
        part = crc32(word.encode()) if isinstance(word, str) else int(word)
        key = (key * 6364136223846793005 + part + 1442695040888963407) & MASK_63  # Knuth's MMIX constants
    return key


class Draws:
    """Draws for the own rows of a step; every ``name`` is a stream of its own."""

    def __init__(self, seed: int, epoch: int, step: int, rows: Tensor, n_rows: int) -> None:
        """Draw for the step `step` of an epoch.

        Args:
            rows: (B,) int64 places of this process's samples among the `n_rows` of all, on the device to draw on.
            n_rows: samples of the step over all processes.
        """
        self.words, self.rows, self.n_rows = (seed, epoch, step), rows, n_rows

    @classmethod
    def alone(cls, n_rows: int, seed: int = 0, device: torch.device | str = "cpu") -> Draws:
        """Return the draws of one process that has all rows."""
        return cls(seed, 0, 0, torch.arange(n_rows, device=device), n_rows)

    def part(self, rows: slice) -> Draws:
        """Return the draws for some of the own rows, those that all of them would get there."""
        seed, epoch, step = self.words
        return Draws(seed, epoch, step, self.rows[rows], self.n_rows)

    def generator(self, name: str) -> torch.Generator:
        """Return the generator of one stream, at its beginning."""
        return torch.Generator(self.rows.device).manual_seed(key_of(*self.words, name))

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) float32 in [0, 1)."""
        everything = torch.rand(self.n_rows, *shape, generator=self.generator(name), device=self.rows.device)
        return everything[self.rows]

    def normal(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) float32, standard normal."""
        everything = torch.randn(self.n_rows, *shape, generator=self.generator(name), device=self.rows.device)
        return everything[self.rows]

    def integers(self, name: str, high: int) -> Tensor:
        """Return (B,) int64 from 0 to high - 1."""
        device = self.rows.device
        return torch.randint(high, (self.n_rows,), generator=self.generator(name), device=device)[self.rows]


class Dropout(nn.Module):
    """Dropout of a (B, ...) tensor by the draws of a step; does nothing without draws, as in evaluation."""

    def __init__(self, share: float, name: str) -> None:
        """Drop a `share` of the numbers, drawn from the stream `name`, which must be unique in the network."""
        super().__init__()
        self.share, self.name = share, name

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        """Return x (B, ...), dropped and rescaled where there are draws."""
        if draws is None or self.share == 0:
            return x
        kept = draws.uniform(self.name, x.shape[1:]) >= self.share
        return x * kept / (1 - self.share)


class ImageNoise:
    """Noise that the image fixes, for sampling: it depends on no batch, order or process."""

    def __init__(self, seed: int, image_ids: NDArray[Any] | Tensor, device: torch.device | str = "cpu") -> None:
        """Draw for the images `image_ids` (B,)."""
        self.seed, self.image_ids, self.device = seed, [int(i) for i in image_ids.tolist()], device

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return (B, *shape) float32, standard normal, of one stream; drawn on the CPU, the same for every device."""
        rows = [
            torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key_of(self.seed, image, name)))
            for image in self.image_ids
        ]
        return torch.stack(rows).to(self.device)

    def of(self, prefix: str) -> Callable[[str, Sequence[int]], Tensor]:
        """Return the same noise with a word before every name, so that slices have streams of their own."""
        return lambda name, shape: self(f"{prefix} {name}", shape)
