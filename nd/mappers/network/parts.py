"""The parts of the targets: what one head predicts. A layer of g is a part; the other targets are one part each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nd.errors import UserError

MAPS = ("z", "z40")  # targets that are latent maps with channels first


@dataclass(frozen=True)
class Part:
    """Columns ``start`` to ``stop`` of a flattened target.

    Attributes: ``name`` is unique among all targets ("c", "g_0"); ``shape`` (T, D) of tokens, or (C, H, W) of a latent
    map.
    """

    name: str
    target: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether it is a latent map and not tokens."""
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Numbers of an image."""
        return math.prod(self.shape)


def parts_of(target: str, shape: tuple[int, ...]) -> list[Part]:
    """The parts of a target of this shape: (T, D) tokens, (D,) one token, (C, H, W) a map, or (L, T, D) layers of g.

    Raises UserError for a shape that no head predicts.
    """
    size = math.prod(shape)
    if target == "g" and len(shape) == 3:
        step = size // shape[0]
        return [Part(f"g_{k}", target, k * step, (k + 1) * step, shape[1:]) for k in range(shape[0])]
    if len(shape) == 1:
        return [Part(target, target, 0, size, (1, *shape))]
    if len(shape) == 2 or (len(shape) == 3 and target in MAPS):
        return [Part(target, target, 0, size, shape)]
    raise UserError(f"mapper=two_stage has no head for target {target!r} of shape {shape}. Use mapper=ridge for it.")
