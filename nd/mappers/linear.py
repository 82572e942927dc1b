"""What the mappers that are fitted in closed form have in common: where they work, and columns that are left out.

Shapes: N images, V voxels, P target columns, Q selected ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import MapperConfig
from nd.mappers.base import Columns, FoldData, Group, Mapper


class Linear(Mapper):
    """A mapper fitted in closed form."""

    def __init__(self, config: MapperConfig, device: torch.device | None = None) -> None:
        """As of `Mapper`; only a GPU with float64, in which the equations are solved, takes the CPU's place."""
        super().__init__(config, device if device is not None and device.type == "cuda" else None)

    def keep_columns(self, kept_P: NDArray[np.bool_]) -> None:
        """Leave all columns but those of a mask (P,) out of all that follows; to be called before `fit`."""
        self._kept = np.asarray(kept_P, bool)

    def _narrowed(self, data: FoldData) -> FoldData:
        """The fold with the kept columns alone."""
        if self._kept is None:
            return data
        targets, groups = SelectedColumns(data.targets, self._kept), selected_groups(data.groups, self._kept)
        return replace(data, targets=targets, groups=groups)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device)  # maps are read only

    def _widened(self, of_columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Arrays (Q,) put at their places among all columns (P,), with the mask as `kept` uint8."""
        if self._kept is None:
            return of_columns
        spread = {name: spread_out(values, self._kept) for name, values in of_columns.items()}
        return spread | {"kept": self._kept.astype(np.uint8)}


class SelectedColumns:
    """A target read as if it had its selected columns alone: column q is the q-th of them (`Columns`)."""

    def __init__(self, targets: Columns, kept_P: NDArray[np.bool_]) -> None:
        """Read `targets`, of which the mask (P,) marks the selected columns."""
        self.targets, self.places = targets, np.flatnonzero(kept_P)
        self.size = len(self.places)

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """Return (n, stop - start) float32, rows in the order of `ids`; the columns between them are read, too."""
        places = self.places[start:stop]
        first = int(places[0])
        return self.targets.columns(ids, first, int(places[-1]) + 1)[:, places - first]


def selected_groups(groups: Sequence[Group], kept_P: NDArray[np.bool_]) -> tuple[Group, ...]:
    """Return the groups with their places among the columns of a mask (P,); groups without any are left out."""
    before = np.concatenate([[0], np.cumsum(kept_P)])
    found = [Group(group.name, int(before[group.start]), int(before[group.stop])) for group in groups]
    return tuple(group for group in found if group.stop > group.start)


def spread_out(values_Q: NDArray[Any], kept_P: NDArray[np.bool_]) -> NDArray[Any]:
    """Return values of all columns (..., P) from those of the selected ones (..., Q); 0 for the others.

    >>> spread_out(np.array([5, 7]), np.array([True, False, True]))
    array([5, 0, 7])
    """
    whole = np.zeros((*values_Q.shape[:-1], len(kept_P)), values_Q.dtype)
    whole[..., kept_P] = values_Q
    return whole
