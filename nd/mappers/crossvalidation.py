"""Errors and predictions of held-out images under every penalty, streamed over the columns of a target.

Images are held out once (the validation images) or fold by fold. Voxels are scaled, and weighted, by each trial's own
fitted images. Errors of a group of columns need no predictions where inner products of its targets are cheaper.

variant=released without an intercept has the folds of himalaya 0.4 (RidgeCV with its defaults, after scikit-learn's
StandardScaler): consecutive stretches of the trials as measured, so that repeats of an image stand on both sides;
voxels scaled once, by all of them; nothing centred within a fold, so that the targets' mean, which voxels of mean 0
over all folds can follow within one, has a say in the choice; and every fold's mean squared error counts alike.

Every penalty has its own product: predictions under one are not combined from those under others. 1 / (s + alpha), as a
function of the squared singular value s, is smooth, so that this could be done to single precision (1e-7) where
penalties lie far outside the svd (20 over 19 decades, 10 to 1e20: 9 would do) or close together (10 a decade: half
would do). Of the default 10 all are needed, for simulated voxels whose s spans 3 decades and for a power law of 5.

Shapes: N images of all trials, n held-out images (of one trial, or of all one after another), V voxels, K columns of a
block, A penalties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import MapperConfig
from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.arrays import Scratch
from nd.mappers.base import Columns, FoldData, Group, column_blocks, columns_at_once
from nd.mappers.ridge_solver import Gram, HatMatrix, hat_matrix
from nd.mappers.statistics import voxel_scaler
from nd.mappers.validation import ValidationScores


@dataclass(frozen=True)
class Images:
    """Some images: ids (N,), responses as measured (N, V) float32, and when (N,); None: in the order of the rows."""

    ids: NDArray[np.int32]
    voxels: NDArray[np.float32]
    order: NDArray[Any] | None = None

    def at(self, rows: NDArray[np.intp]) -> Images:
        """Return those at some places."""
        return Images(self.ids[rows], self.voxels[rows])

    def first(self, n_images: int) -> Images:
        """Return the first of them, in the same memory."""
        return Images(self.ids[:n_images], self.voxels[:n_images])


@dataclass(frozen=True)
class Trial:
    """A fit on some images, and what it predicts others from.

    Attributes:
        fitted, held: int64 places, among the images of all trials, of those fitted on and of those held out.
        hat: of these.
        weight: of its squared errors among those of all trials.
    """

    fitted: Tensor
    held: Tensor
    hat: HatMatrix
    weight: float = 1.0


@dataclass(frozen=True)
class Held:
    """What is held out of one block of columns: predictions (A, n, K), truths (n, K) and the weight of each trial."""

    predictions: list[Tensor]
    truths: list[Tensor]
    weights: list[float]

    def squared_error(self) -> Tensor:
        """Return squared errors summed over images, (A, K) float64."""
        each = zip(self.predictions, self.truths, self.weights, strict=True)
        return torch.stack([_squared_error(p, t) * weight for p, t, weight in each]).sum(0)

    def add_to(self, scores: ValidationScores, best_K: Tensor | None = None) -> None:
        """Count the predictions in `scores`: under all penalties, or under the one at place `best_K` (K,) int64."""
        found = self.predictions
        if best_K is not None:
            found = [one.gather(0, best_K.expand(1, *one.shape[1:])) for one in found]
        scores.add(torch.cat(found, dim=1), torch.cat(self.truths), [len(true_nK) for true_nK in self.truths])


class CrossValidation:
    """Trials on some images of a target, read block by block.

    Truths and predictions are relative to what is predicted without voxels: with an intercept the mean of the trial's
    fitted images, without one 0.
    """

    def __init__(
        self,
        targets: Columns,
        ids: NDArray[np.int32],
        trials: list[Trial],
        intercept: bool,
        device: torch.device,
        centred: bool = True,
    ) -> None:
        """Read the columns of `targets` for the images `ids` (N,) of all trials, whose places the trials hold.

        centred: fit the targets less their mean over a trial's images, which without an intercept makes no difference
            where the voxels have mean 0 over them.
        """
        self.targets, self.ids, self.trials, self.intercept, self.device = targets, ids, trials, intercept, device
        self.centred = centred

    @property
    def n_penalties(self) -> int:
        """A."""
        return len(self.trials[0].hat.left)

    def blocks(self, group: Group, at: int | None = None) -> Iterator[Held]:
        """Yield what is held out of a group's columns, under all penalties or the one at place `at`."""
        trials = self.trials if at is None else [replace(t, hat=t.hat.at(at)) for t in self.trials]
        n_kept = sum(trial.hat.left[..., 0].numel() + len(trial.fitted) for trial in trials)
        for block_NK in self._read(group):
            for part_NK in block_NK.split(columns_at_once(n_kept), dim=1):
                yield self._held(trials, part_NK)

    def squared_error(self, group: Group) -> Tensor:
        """Return the squared error (A,) float64 of every penalty, summed over held-out images and a group's columns."""
        if self.by_products(group):
            return self._error_by_products(group)
        return torch.stack([held.squared_error().sum(1) for held in self.blocks(group)]).sum(0)

    def by_products(self, group: Group) -> bool:
        """Return whether inner products of a group's targets give its errors in fewer multiplications than predictions.

        A float64 product counts twice; of the inner products one triangle is multiplied out.
        """
        n_columns = group.stop - group.start
        predicting = n_columns * sum(trial.hat.work_per_column() for trial in self.trials)
        multiplying = n_columns * len(self.ids) ** 2 + 2 * sum(t.hat.work_by_products() for t in self.trials)
        return multiplying < predicting

    # ---- predictions -----------------------------------------------------------------------------------------------

    def _read(self, group: Group) -> Iterator[Tensor]:
        """Targets (N, K) float32 of a group's columns."""
        for columns in column_blocks(group.start, group.stop, len(self.ids)):
            targets_NK = self.targets.columns(self.ids, columns.start, columns.stop)
            yield torch.from_numpy(np.ascontiguousarray(targets_NK)).to(self.device)

    def _held(self, trials: list[Trial], targets_NK: Tensor) -> Held:
        predictions, truths = [], []
        for trial in trials:
            centred_NK, true_nK = targets_NK[trial.fitted], targets_NK[trial.held]
            mean_K = centred_NK.mean(0)
            if self.centred:
                centred_NK -= mean_K
            if self.intercept:
                true_nK -= mean_K
            predictions.append(trial.hat.predict(centred_NK))
            truths.append(true_nK)
        return Held(predictions, truths, [trial.weight for trial in trials])

    # ---- inner products --------------------------------------------------------------------------------------------

    def _error_by_products(self, group: Group) -> Tensor:
        products_NN = self._products(group)
        return torch.stack([trial.weight * self._error_of(trial, products_NN) for trial in self.trials]).sum(0)

    def _products(self, group: Group) -> Tensor:
        """Inner products (N, N) float64 of the images' targets over a group's columns.

        Columns are summed less their mean, and that is put back: it may be far larger than their spread.
        """
        products = Gram(len(self.ids), self.device)
        with_mean_N = torch.zeros(len(self.ids), dtype=torch.float64, device=self.device)
        mean_square = torch.zeros((), dtype=torch.float64, device=self.device)
        for block_NK in self._read(group):
            mean_K = block_NK.mean(0)
            block_NK -= mean_K
            products.add(block_NK)
            with_mean_N += (block_NK @ mean_K).double()
            mean_square += mean_K.double().square().sum()
        total_NN = products.total()
        if not self.intercept:
            total_NN += with_mean_N[:, None] + with_mean_N + mean_square
        return total_NN

    def _error_of(self, trial: Trial, products_NN: Tensor) -> Tensor:
        """Squared error (A,) of a trial; its fitted images' mean is taken off as `_held` does."""
        fitted_NN = products_NN[trial.fitted[:, None], trial.fitted]
        cross_nN = products_NN[trial.held[:, None], trial.fitted]
        held = products_NN.diagonal()[trial.held].sum()
        if not self.centred:
            return trial.hat.squared_error(fitted_NN, cross_nN, held)
        mean_N, mean_n = fitted_NN.mean(0), cross_nN.mean(1)
        if self.intercept:  # truths less the mean y of the fitted targets: (t - y)'(t - y) and (t - y)'(Y - y)
            held = held - 2 * mean_n.sum() + len(trial.held) * mean_N.mean()
            cross_nN = cross_nN - mean_N
            mean_n = cross_nN.mean(1)
        cross_nN = cross_nN - mean_n[:, None]
        fitted_NN = fitted_NN - mean_N - mean_N[:, None] + mean_N.mean()
        return trial.hat.squared_error(fitted_NN, cross_nN, held)


def _squared_error(predicted_AnK: Tensor, true_nK: Tensor) -> Tensor:
    """Summed over images, (A, K) float64.

    On a CPU one penalty at a time: its differences are still in the cache when they are squared and when they are
    summed. A GPU, which each call would keep waiting, does all at once.
    """
    at_once = 1 if predicted_AnK.device.type == "cpu" else len(predicted_AnK)
    sums = [(part - true_nK).square_().sum(1) for part in predicted_AnK.split(at_once)]
    return torch.cat(sums).double()


def cross_validation(
    config: MapperConfig, data: FoldData, images: Images, device: torch.device, room: Scratch
) -> CrossValidation:
    """Return one trial on the validation images, or one for each of `config.folds` folds of all images.

    Args:
        config: the mapper group.
        data: the fold, where targets are read.
        images: those to be fitted on; without folds, the training images and then the validation images.
        device: where the matrix products run.
        room: for arrays too large for memory.

    Raises:
        UserError: there are fewer images than folds.
    """
    released = bool(config.folds) and config.variant == "released" and not config.intercept
    if config.folds:
        cut = _stretches if released else _folds
        places = cut(config.folds, images)
    else:
        places = [(np.arange(len(data.train_ids)), np.arange(len(data.train_ids), len(images.ids)))]
    whole = voxel_scaler(data, images.voxels, images.ids, config) if released else None
    trials = [_trial(config, data, images, place, device, room, whole) for place in places]
    if released:
        trials = [replace(one, weight=len(images.ids) / (len(trials) * len(one.held))) for one in trials]
    return CrossValidation(data.targets, images.ids, trials, config.intercept, device, centred=not released)


Places = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def _folds(n_folds: int, images: Images) -> Places:
    """Places of the rows fitted on and held out: every n_folds-th image by id, whatever the order of the rows."""
    found, rank_N = np.unique(images.ids, return_inverse=True)
    _check_folds(n_folds, len(found), "images")
    return _apart(rank_N % n_folds, n_folds)


def _stretches(n_folds: int, images: Images) -> Places:
    """The same of consecutive stretches of the rows as measured, the first ones longer by one where need be."""
    n_rows = len(images.ids)
    _check_folds(n_folds, n_rows, "trials")
    rank_N = np.arange(n_rows) if images.order is None else np.argsort(np.argsort(images.order, kind="stable"))
    ends = np.cumsum([n_rows // n_folds + (k < n_rows % n_folds) for k in range(n_folds)])
    return _apart(np.searchsorted(ends, rank_N, side="right"), n_folds)


def _apart(fold_N: NDArray[np.intp], n_folds: int) -> Places:
    return [(np.flatnonzero(fold_N != k), np.flatnonzero(fold_N == k)) for k in range(n_folds)]


def _check_folds(n_folds: int, n: int, what: str) -> None:
    if n_folds > n:
        raise UserError(f"mapper.folds={n_folds} folds cannot be cut from {n} {what}; use fewer.")


def _trial(
    config: MapperConfig,
    data: FoldData,
    images: Images,
    places: tuple[NDArray[np.intp], NDArray[np.intp]],
    device: torch.device,
    room: Scratch,
    whole: Scaler | None,
) -> Trial:
    """A fit on the images at the first places, for those at the second; whole: scales voxels in the fitted's place."""
    fitted, held = (images.at(rows) for rows in places)  # copies, scaled in place
    scaler = whole or voxel_scaler(data, fitted.voxels, fitted.ids, config)
    scaled_NV, held_nV = (
        torch.from_numpy(scaler.transform(part.voxels, out=part.voxels)).to(device) for part in (fitted, held)
    )
    made = hat_matrix(scaled_NV, held_nV, sorted(config.alphas), room)
    fitted_at, held_at = (torch.from_numpy(rows).to(device) for rows in places)
    return Trial(fitted_at, held_at, made)
