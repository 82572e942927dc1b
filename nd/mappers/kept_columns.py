"""A target of which some columns are left out, read as if it had the others alone.

Shapes: N images, P target columns, Q kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.mappers.base import Columns, Group


class KeptColumns:
    """`Columns` of the kept ones: column q is the q-th that is kept."""

    def __init__(self, targets: Columns, kept_P: NDArray[np.bool_]) -> None:
        """targets: all columns."""
        self.targets, self.places = targets, np.flatnonzero(kept_P)
        self.size = len(self.places)

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """(n, stop - start) float32, rows in the order of `ids`; the columns between kept ones are read, too."""
        places = self.places[start:stop]
        first = int(places[0])
        return self.targets.columns(ids, first, int(places[-1]) + 1)[:, places - first]


def kept_groups(groups: Sequence[Group], kept_P: NDArray[np.bool_]) -> tuple[Group, ...]:
    """The groups among the kept columns; those without any are left out."""
    before = np.concatenate([[0], np.cumsum(kept_P)])
    found = [Group(group.name, int(before[group.start]), int(before[group.stop])) for group in groups]
    return tuple(group for group in found if group.stop > group.start)


def spread_out(values_Q: NDArray[Any], kept_P: NDArray[np.bool_]) -> NDArray[Any]:
    """Values of all columns (..., P), 0 for those that are not kept, from those of the kept ones (..., Q)."""
    whole = np.zeros((*values_Q.shape[:-1], len(kept_P)), values_Q.dtype)
    whole[..., kept_P] = values_Q
    return whole
