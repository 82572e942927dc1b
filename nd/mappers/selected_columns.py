"""Selection of the target columns that a mapper predicts well enough, judged on images left out of its fits.

The training images (with `keep_on=seen` the validation images too) are cut into `keep_folds` stretches, in the order of
their rows. The mapper is fitted on all but one of them and predicts that one, in turn; each column's Pearson
correlation over the images left out is averaged over the folds, and within each group the columns at or above the
(1 - keep) quantile are kept. MindDiffuser keeps the best quarter of each layer so
(ReedOnePeck/MindDiffuser@c9773ac:Feature extractor/Structural_feature_selection.py).

Penalties are chosen within each fit as the mapper always chooses them: over folds of the images it is fitted on
(`mapper.folds`), or on the validation images. With `keep_on=train` columns are never judged on these, even where the
mapper is refitted on them afterwards (`mapper.refit`); its scores on them would else be those of columns picked for
scoring well on them.

Shapes: N images, V voxels, P target columns, K columns of a block.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nd.errors import UserError
from nd.mappers.base import Columns, FoldData, Group, Mapper, blocks
from nd.mappers.components import FastL2LiRSettings, LinearSettings, build_mapper

BLOCK_NUMBERS = 1 << 24  # numbers of one block of predictions: 64 MiB in single precision


def select_columns(
    config: LinearSettings, data: FoldData, device: torch.device | None = None, scratch: Path | None = None
) -> NDArray[np.bool_]:
    """Return the mask (P,) of the columns that are kept under `config.keep`.

    Correlations count with their sign: a column whose predictions run against the truth is decoded as badly as one
    whose predictions are unrelated. variant=released takes their absolute values before averaging, as published.

    Args:
        config: the mapper group, of a linear mapper.
        data: one fold; its validation images serve to choose the penalty at most.
        device: where the matrix products run, by default the CPU.
        scratch: folder for arrays of the fits; each fit leaves it empty.

    Raises:
        UserError: more folds than there are pairs of training images; a correlation takes two.
    """
    total_P, room = np.zeros(data.targets.size), scratch and scratch / "columns"
    if config.keep_on == "seen":
        voxels, ids = (data.train_voxels, data.val_voxels), (data.train_ids, data.val_ids)
        data = replace(data, train_voxels=np.concatenate(voxels), train_ids=np.concatenate(ids), train_order=None)
    for held in held_out_rows(data.train_ids, config.keep_folds):
        r_P = held_out_correlation(config, data, held, device, room)
        total_P += np.abs(r_P) if config.variant == "released" else r_P
    return best_columns(total_P / config.keep_folds, data.groups, config.keep)


def held_out_rows(ids_N: NDArray[np.int32], n_folds: int) -> list[slice]:
    """Return the rows of each fold of images, consecutive; rows of one image stand together and in one fold.

    >>> held_out_rows(np.array([4, 4, 7, 9, 9, 9, 2]), 2)
    [slice(0, 3, None), slice(3, 7, None)]
    """
    starts = np.flatnonzero(np.r_[True, ids_N[1:] != ids_N[:-1]])
    bounds = np.r_[starts, len(ids_N)]
    return [slice(int(bounds[fold.start]), int(bounds[fold.stop])) for fold in held_out_folds(len(starts), n_folds)]


def held_out_folds(n_images: int, n_folds: int) -> list[slice]:
    """Return consecutive stretches of rows that differ by one in length at most, the longer ones first.

    Raises:
        UserError: a fold would have fewer than 2 images; a correlation takes two.

    >>> held_out_folds(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    if 2 * n_folds > n_images:
        raise UserError(
            f"mapper.keep_folds={n_folds} folds of 2 or more images cannot be cut from {n_images} training images; use"
            " fewer, or set mapper.keep=1."
        )
    ends = np.cumsum([n_images // n_folds + (k < n_images % n_folds) for k in range(n_folds)])
    return [slice(int(start), int(stop)) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def held_out_correlation(
    config: LinearSettings, data: FoldData, held: slice, device: torch.device | None, scratch: Path | None
) -> NDArray[np.float64]:
    """Return the Pearson correlation (P,) of the training rows `held` with what a fit on the others predicts.

    Args: as of `select_columns`; held: rows left out.
    """
    rest = np.r_[0 : held.start, held.stop : len(data.train_ids)]
    order = None if data.train_order is None else data.train_order[rest]
    fitted = replace(data, train_voxels=data.train_voxels[rest], train_ids=data.train_ids[rest], train_order=order)
    mapper = build_mapper(_plain(config), device)
    mapper.fit(fitted, scratch)
    r_P = correlation(mapper, data.train_voxels[held], data.train_ids[held], data.targets)
    del mapper
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    return r_P


def _plain(config: LinearSettings) -> LinearSettings:
    """The same mapper for the rows it is given alone."""
    plain = replace(config, keep=1.0, refit=False)
    return replace(plain, seen_statistics="none") if isinstance(plain, FastL2LiRSettings) else plain


def correlation(
    mapper: Mapper, voxels_NV: NDArray[np.float32], ids_N: NDArray[np.int32], targets: Columns
) -> NDArray[np.float64]:
    """Return the Pearson correlation (P,) of a mapper's predictions with the truth; 0 where one is constant.

    Images are predicted in groups, whose correlations are merged, so that predictions of all never exist at once.

    Args:
        voxels_NV: (N, V) float32 responses as measured.
        ids_N: (N,) the images' ids.
        targets: where their truths are read.
    """
    moments = Moments(targets.size)
    for rows in blocks(0, len(ids_N), max(2, BLOCK_NUMBERS // targets.size)):
        predicted_NP = mapper.predict(voxels_NV[rows])
        for columns in blocks(0, targets.size, max(1, BLOCK_NUMBERS // 4 // len(predicted_NP))):
            true_NK = targets.columns(ids_N[rows], columns.start, columns.stop)
            moments.add(columns, predicted_NP[:, columns], true_NK)
        moments.n += len(predicted_NP)
    return moments.correlation()


class Moments:
    """Means and sums of squares and products of two tables of P columns, of the rows met so far, float64."""

    def __init__(self, size: int) -> None:
        self.n = 0  # rows that all columns have
        self.mean = np.zeros((2, size))
        self.squares, self.products = np.zeros((2, size)), np.zeros(size)

    def add(self, columns: slice, predicted_NK: NDArray[np.float32], true_NK: NDArray[np.float32]) -> None:
        """Merge rows of some columns (Chan, Golub & LeVeque 1983, pairwise update); counting rows is the caller's.

        Args:
            columns: which of the P they are.
            predicted_NK, true_NK: (N, K) float32.
        """
        both = np.stack([predicted_NK, true_NK]).astype(np.float64)
        mean = both.mean(1)
        both -= mean[:, None]
        shift, n_new = mean - self.mean[:, columns], both.shape[1]
        weight = self.n * n_new / (self.n + n_new)
        self.squares[:, columns] += np.square(both).sum(1) + weight * np.square(shift)
        self.products[columns] += (both[0] * both[1]).sum(0) + weight * shift[0] * shift[1]
        self.mean[:, columns] += shift * n_new / (self.n + n_new)

    def correlation(self) -> NDArray[np.float64]:
        """Return the Pearson correlation (P,), 0 where a column does not vary beyond single precision's rounding."""
        rounding = self.n * np.square(np.finfo(np.float32).eps * self.mean)
        varying_P = np.asarray((self.squares > rounding).all(0))
        norms_P = np.sqrt(self.squares.prod(0), where=varying_P, out=np.ones(varying_P.shape))
        return np.where(varying_P, self.products / norms_P, 0.0)


def best_columns(r_P: NDArray[np.float64], groups: Sequence[Group], keep: float) -> NDArray[np.bool_]:
    """Return the mask (P,) of the columns at or above the (1 - keep) quantile of their group.

    >>> best_columns(np.array([0.1, 0.5, 0.3, 0.9]), [Group("all", 0, 4)], keep=0.5)
    array([False,  True, False,  True])
    """
    kept_P = np.zeros(len(r_P), bool)
    for group in groups:
        columns = slice(group.start, group.stop)
        kept_P[columns] = r_P[columns] >= np.percentile(r_P[columns], 100 * (1 - keep))
    return kept_P
