"""What every mapper offers, and what it is given to learn from: targets by blocks of columns, images by fold.

Shapes: N images, V voxels, P numbers of a flattened target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import MapperConfig
from nd.data.scaling import Scaler

BLOCK_NUMBERS = 1 << 24  # numbers of one block: 64 MiB in float32
ALIGNED = 16  # rows of 64 bytes or a multiple: matrix products took a third longer with 599 columns than with 600


class Columns(Protocol):
    """Targets read by image and by columns, so that no mapper needs all of them in memory."""

    @property
    def size(self) -> int:
        """P, numbers of the flattened target."""

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """Return columns `start` to `stop` of images, (n, stop - start) float32, rows in the order of `ids` (n,)."""


@dataclass(frozen=True)
class Group:
    """Columns `start` to `stop` of a target that share their settings, e.g. one layer of g."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class FoldData:
    """One fold's training and validation images. Nothing of a test image can be reached from it.

    Attributes:
        train_voxels, val_voxels: (N, V) float32 responses as measured, one row per image, or one per trial with the
            trials of an image together.
        train_ids, val_ids: (N,) image ids of these rows.
        targets: reader that refuses every other image.
        groups: cover all columns of the target, in order.
        train_order, val_order: (N,) numbers that rise as the rows' trials were measured; None: as the rows stand.
        unlabelled_ids: (M,) further images whose targets may be read, without responses; none unless a mapper asks.
    """

    train_voxels: NDArray[np.float32]
    val_voxels: NDArray[np.float32]
    train_ids: NDArray[np.int32]
    val_ids: NDArray[np.int32]
    targets: Columns
    groups: tuple[Group, ...]
    train_order: NDArray[Any] | None = None
    val_order: NDArray[Any] | None = None
    unlabelled_ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


class Mapper:
    """Voxels to one target. Fitted by `fit`, or restored by its class from `state` and `details`."""

    name: str

    def __init__(self, config: MapperConfig, device: torch.device | None = None) -> None:
        """Make an unfitted mapper.

        Args:
            config: the mapper group.
            device: where it is fitted, by default the CPU; a trained network predicts there, too.
        """
        self.config, self.device = config, device or torch.device("cpu")
        self._arrays: dict[str, NDArray[Any]] = {}
        self._details: dict[str, Any] = {}
        self._kept: NDArray[np.bool_] | None = None

    @classmethod
    def restore(cls, config: MapperConfig, state: Mapping[str, NDArray[Any]], details: dict[str, Any]) -> Self:
        """Return a fitted mapper from what `state` and `details` gave."""
        mapper = cls(config)
        mapper._arrays, mapper._details = dict(state), details
        mapper._kept = np.asarray(state["kept"]).astype(bool) if "kept" in state else None
        return mapper

    def fit(self, data: FoldData, scratch: Path | None = None) -> None:
        """Learn from one fold.

        Args:
            data: training and validation images with their targets.
            scratch: folder for arrays too large for memory, kept until they are saved; by default all stays in memory.
        """
        raise NotImplementedError

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return predicted targets (N, P) float32.

        Args:
            voxels_NV: (N, V) float32 responses as measured, not scaled.
            image_ids: (N,) of the images, for mappers that draw random numbers; they are a function of the image.
        """
        raise NotImplementedError

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what `predict` needs, and what is known of each column; arrays may be memory maps."""
        return self._arrays

    def details(self) -> dict[str, Any]:
        """Return what was chosen and how well validation images are predicted, as plain JSON values.

        `scores` holds the mean correlation over target dimensions, two-way identification of the validation images
        among their predictions, top-1 retrieval among them in both directions, and the unexplained share of the
        variance.
        """
        return self._details

    @property
    def scaler(self) -> Scaler:
        """How `predict` scales voxels, by statistics of the images fitted on."""
        return Scaler(mean=np.asarray(self._arrays["voxel_mean"]), scale=np.asarray(self._arrays["voxel_scale"]))

    @property
    def voxel_spread(self) -> NDArray[np.float32]:
        """Standard deviation (V,) of every voxel's responses over the images fitted on, in measured units."""
        return self.scaler.scale

    def centre(self) -> NDArray[np.float32]:
        """Return the mean (P,) of the training targets, which a linear mapper predicts of mean voxels."""
        return self.predict(self.scaler.mean[None])[0]

    @property
    def kept(self) -> NDArray[np.bool_] | None:
        """Columns (P,) that are predicted, where `keep` left some out, which are predicted as 0; None: all of them."""
        return self._kept


def blocks(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield slices that cover `start` to `stop` in order, each `step` long but for the last.

    >>> list(blocks(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def column_blocks(start: int, stop: int, n_rows: int) -> Iterator[slice]:
    """Yield columns `start` to `stop` in blocks of at most `BLOCK_NUMBERS` numbers, of columns with `n_rows` each."""
    return blocks(start, stop, columns_at_once(n_rows))


def columns_at_once(n_rows: int) -> int:
    """Return how many columns of `n_rows` numbers make a block: at least one, a multiple of `ALIGNED` if it can be."""
    columns = max(1, BLOCK_NUMBERS // max(1, n_rows))
    return columns - columns % ALIGNED if columns > ALIGNED else columns
