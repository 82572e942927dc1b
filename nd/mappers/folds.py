"""Fitting and using the mappers of a split, one per fold, with the test images of each fold out of reach.

Controls: targets, or voxels, change places among the images, so that there is nothing to learn or to predict from.

Shapes: N images, V voxels, P numbers of a flattened target.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Subject, images_without_voxels, mean_betas, single_betas
from nd.data.splits import Fold, Split
from nd.data.subject import single_rows
from nd.errors import UserError
from nd.mappers.arrays import scratch_folder
from nd.mappers.base import FoldData, Group, Mapper
from nd.mappers.checkpoint import Origin, check_origin, checkpoint_path, is_saved, load, read_details, save, saved_path
from nd.mappers.components import LinearSettings, build_mapper
from nd.mappers.selected_columns import select_columns
from nd.mappers.statistics import TargetStatistics, held_out_path, statistics_path
from nd.targets.components import column_groups
from nd.targets.store import TargetStore

log = logging.getLogger(__name__)

NO_IMAGES = np.empty(0, np.int32)


def origin_of(cfg: Config, subject: Subject, split: Split, fold: int, fingerprint: str) -> Origin:
    """Return what the mapper of one fold is fitted on.

    Args:
        cfg: `cfg.target.name` is its target.
        fold: its number.
        fingerprint: of the target's features.
    """
    return Origin(
        subject=subject.name,
        roi=cfg.subject.roi,
        n_voxels=subject.n_voxels,
        mask_hash=subject.mask_hash,
        split_hash=split.hash,
        fold=fold,
        target=cfg.target.name,
        target_fingerprint=fingerprint,
    )


def fold_data(
    cfg: Config, subject: Subject, fold: Fold, store: Path, unlabelled_ids: NDArray[np.int32] = NO_IMAGES
) -> FoldData:
    """Return responses (`mapper.trials`) and targets of a fold's training and validation images, no others.

    Args:
        store: the features of `cfg.target`.
        unlabelled_ids: images whose targets may be read beside these, without responses.
    """
    allowed = np.union1d(fold.seen, unlabelled_ids)
    targets = control_of(cfg, TargetStore(store, allowed_ids=allowed), fold.seen)
    groups = tuple(Group(*part) for part in column_groups(cfg.target, targets.shape))
    if getattr(cfg.mapper, "trials", "mean") == "single":
        (train, train_ids), (val, val_ids) = (single_betas(subject, ids) for ids in (fold.train, fold.val))
        orders = (subject.trial[single_rows(subject, ids)] for ids in (fold.train, fold.val))
        return FoldData(train, val, train_ids, val_ids, targets, groups, *orders)
    train, val = (mean_betas(subject, ids) for ids in (fold.train, fold.val))
    return FoldData(train, val, fold.train, fold.val, targets, groups, unlabelled_ids=unlabelled_ids)


def fit_fold(
    cfg: Config, subject: Subject, split: Split, fold: int, store: Path, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Fit and save one fold's mapper unless that is done.

    Args:
        fold: its number.
        store: the features of `cfg.target`.
        folder: of the train run.
        device: where the matrix products run.

    Returns:
        Its details: penalties and validation scores.
    """
    path = checkpoint_path(folder, fold)
    if not is_saved(path):
        features, own = TargetStore(store), split.folds[fold]
        others = images_without_voxels(cfg, fold) if getattr(cfg.mapper, "unlabelled", False) else NO_IMAGES
        data, mapper = fold_data(cfg, subject, own, store, others), build_mapper(cfg.mapper, device)
        with scratch_folder(folder) as scratch:
            if cfg.mapper.keeps_some:
                mapper.keep_columns(select_columns(cast(LinearSettings, cfg.mapper), data, device, scratch))
            mapper.fit(data, scratch)
            if cfg.mapper.rescale == "test":
                fitted = own.seen if getattr(cfg.mapper, "refit", True) else own.train
                TargetStatistics.fit(data.targets, fitted).save(statistics_path(path))
            save(path, mapper, cfg.mapper, origin_of(cfg, subject, split, fold, features.fingerprint), features.shape)
    details: dict[str, Any] = read_details(path)["details"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in details["scores"].items())
    if chosen := details.get("chosen"):
        end = ", at the end of mapper.penalties: a wider list may do better" if chosen["at_end"] else ""
        scores += f" ({chosen['n_feat']} voxels under penalty {chosen['penalty']:g}{end})"
    log.info("target %s, fold %d of %d: %s", cfg.target.name, fold + 1, len(split.folds), scores)
    return details


def check_folds(folder: Path, wanted: list[Origin], train_command: str) -> None:
    """Compare the checkpoints of a train run folder with what they are wanted for.

    Args:
        wanted: one for each fold; checkpoints that are not there yet are passed over.
        train_command: what makes the right ones, for the message.

    Raises:
        UserError: one was fitted on something else.
    """
    for origin in wanted:
        path = saved_path(folder, origin)
        if path.with_suffix(".json").exists():
            check_origin(path, Origin(**read_details(path)["origin"]), origin, train_command)


def predict_fold(
    folder: Path,
    origin: Origin,
    voxels_NV: NDArray[np.float32],
    train_command: str,
    image_ids: NDArray[Any] | None = None,
    own_scaling: bool = False,
    rescale: str = "none",
    spread: float = 1.0,
    device: torch.device | None = None,
) -> NDArray[np.float32]:
    """Return predictions (N, *shape of the target) float32 by the mapper of one fold.

    Args:
        folder: of the train run.
        origin: what the mapper must have been fitted on.
        voxels_NV: (N, V) float32 responses as measured.
        train_command: what makes the mapper, for messages.
        image_ids: (N,) of the images, for mappers that draw random numbers.
        own_scaling: z-score the responses by their own statistics instead of the training images' (transductive).
        rescale: give each column mean and spread of the training images, standardised over these images (`test`,
            transductive), or by mean and spread of the predictions of validation images (`train`, for trained
            mappers; those in closed form do it when they are fitted). Columns that are not kept stay 0.
        spread: factor on the distance to the mean of the training targets, afterwards.
        device: where a trained network predicts, by default the CPU.

    Raises:
        UserError: the mapper was fitted on something else, is damaged, or predicts values that are not finite.
    """
    path = saved_path(folder, origin)
    mapper = load(path, origin, train_command, device)
    predicted_NP = mapper.predict(mapper.scaler.restandardised(voxels_NV) if own_scaling else voxels_NV, image_ids)
    if not np.isfinite(predicted_NP).all():
        raise UserError(
            f"{path} predicts values that are not finite. Remove its run folder and run again: {train_command}"
        )
    if rescale != "none":
        held_out = TargetStatistics.load(held_out_path(path), train_command) if rescale == "train" else None
        predicted_NP = TargetStatistics.load(statistics_path(path), train_command).given_to(predicted_NP, held_out)
    if spread != 1:
        centre_P = _centre(mapper, statistics_path(path), train_command)
        predicted_NP = centre_P + np.float32(spread) * (predicted_NP - centre_P)
    if mapper.kept is not None:
        predicted_NP[:, ~mapper.kept] = 0
    return predicted_NP.reshape(-1, *read_details(path)["shape"])


def _centre(mapper: Mapper, statistics: Path, train_command: str) -> NDArray[np.float32]:
    """Return the mean (P,) of the training targets: as recorded beside the mapper, or what the mapper knows of it."""
    if statistics.exists():
        return TargetStatistics.load(statistics, train_command).mean.astype(np.float32)
    return mapper.centre()


def kept_columns(folder: Path, origin: Origin, train_command: str) -> NDArray[np.bool_]:
    """Return the mask (P,) of the target columns that the mapper of one fold predicts; it gives the others as 0."""
    path = saved_path(folder, origin)
    kept = load(path, origin, train_command).kept
    return np.ones(math.prod(read_details(path)["shape"]), bool) if kept is None else kept


def derangement(seed: int, fold: int, n_images: int) -> NDArray[np.intp]:
    """Return a random order (N,) that leaves no image at its place, a function of seed and fold: the shuffled control.

    It is one random cycle through all images.

    Raises:
        UserError: there are fewer than 2 images.
    """
    if n_images < 2:
        raise UserError(f"control=shuffled_voxels needs at least 2 images in fold {fold}, which has {n_images}.")
    order = np.random.default_rng([seed, fold]).permutation(n_images)
    shuffled = np.empty(n_images, np.intp)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def control_of(cfg: Config, store: TargetStore, ids: NDArray[Any]) -> Readable:
    """Return the store, or under `control=shuffled_labels` one whose features of `ids` have changed places."""
    return ShuffledTargets(store, ids, cfg.seed) if cfg.control == "shuffled_labels" else store


class ShuffledTargets:
    """A store's features with those of some images exchanged among them; attributes as of `TargetStore`."""

    def __init__(self, store: TargetStore, ids: NDArray[Any], seed: int) -> None:
        """Exchange the features of `ids` along one random cycle, a function of the seed: none keeps its own."""
        self.store, self.size, self.shape = store, store.size, store.shape
        self.fingerprint, self.target = store.fingerprint, store.target
        order = np.random.default_rng([seed, len(ids)]).permutation(np.unique(ids))
        self._other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Return (n, *shape) float32."""
        return self.store.rows(self._exchanged(ids))

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """Return (n, stop - start) float32."""
        return self.store.columns(self._exchanged(ids), start, stop)

    def _exchanged(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.array([self._other.get(int(i), int(i)) for i in np.asarray(ids).reshape(-1)], np.int64)


Readable = TargetStore | ShuffledTargets
