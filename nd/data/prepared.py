"""The prepared format in one place: where its files lie, and the readers and writers of both of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.components import component
from nd.data.piece_records import recorded_hash
from nd.data.same_images import Across, Prints, across, check_across
from nd.data.splits import (
    BY_CLUSTER,
    CLUSTERS,
    MIN_TRAIN,
    MIN_VAL,
    SESSIONS_OF,
    Split,
    cluster_split,
    get_split,
    narrowed,
    read_clusters,
    subject_split,
)
from nd.data.stimuli import Stimuli, check_allowed, write_stimuli
from nd.data.subject import Subject, mean_betas, single_betas
from nd.data.subject_file import ALL_VOXELS, SubjectTable, write_subject
from nd.errors import UserError, unknown

__all__ = [
    "Stimuli",
    "Subject",
    "SubjectTable",
    "check_allowed",
    "data_folder",
    "images_without_voxels",
    "mean_betas",
    "open_subject",
    "single_betas",
    "split_of",
    "stimuli_path",
    "subject_path",
    "write_stimuli",
    "write_subject",
]


def data_folder(cfg: Config) -> Path:
    """Folder of the prepared data set: ``<paths.data>/<data.name>``."""
    return Path(cfg.paths.data) / cfg.data.name


def subject_path(cfg: Config, name: str = "") -> Path:
    """Prepared file of one subject, by default ``subject.name``. Raises UserError for a subject of no such data set."""
    name = name or cfg.subject.name
    if name not in cfg.data.subjects:
        raise unknown(f"subject of data={cfg.data.name}", name, cfg.data.subjects)
    return data_folder(cfg) / f"{name}.h5"


def stimuli_path(cfg: Config) -> Path:
    """Prepared stimuli file of the data set."""
    return data_folder(cfg) / "stimuli.h5"


def open_subject(cfg: Config) -> Subject:
    """Return ``subject.name`` through ``subject.roi`` and in the sessions that the split uses.

    Where ``subject.sessions`` is given, training and validation images are seen in the first sessions alone, and test
    images in all their trials.

    Args:
        cfg: the configuration, whose data are prepared.

    Raises:
        UserError: files that are missing or of no use, and as ``split_of``.
    """
    subject = _whole_subject(cfg, "", cfg.subject.roi)
    if not cfg.subject.sessions:
        return subject
    test_ids = _early_split(cfg, subject).test_ids
    return subject.only(subject.early(cfg.subject.sessions) | np.isin(subject.image_id, test_ids))


def split_of(cfg: Config, name: str = "") -> Split:
    """Return the split of the configuration; where images differ by subject, that of one subject.

    Where ``subject.sessions`` is given, training and validation images that ``subject.name`` was not shown in its first
    sessions are left out; which images are for validation and for the test does not depend on it.

    Args:
        cfg: the configuration, whose data are prepared.
        name: of the subject, by default ``subject.name``.

    Raises:
        UserError: a split of another data set, too few images or sessions, or, for NSD, sessions and images that are
            not those its name stands for.
        LeakError: an image is trained on under one id and tested under another.
    """
    split = _cut(cfg, name)
    if cfg.data.same_images == "refuse" and stimuli_path(cfg).is_file():
        check_across(_across(cfg, split, near=False), name or cfg.subject.name, cfg.data.same_images)
    return split


def same_across(cfg: Config) -> Across:
    """Return which images are trained on and tested under two ids, and which nearly so.

    Args:
        cfg: the configuration, whose data are prepared.

    Returns:
        Pairs (training or validation image, test image), from the prints of the stimuli file: no image is read.

    Raises:
        UserError: data that are not prepared, or as ``split_of`` says.
    """
    return _across(cfg, _cut(cfg, ""), near=True)


def with_doubles(cfg: Config, image_ids: NDArray[Any]) -> NDArray[np.int32]:
    """Return image ids together with every other id under which the data set holds an equal image, sorted."""
    prints = _prints_of(cfg)
    return np.union1d(image_ids, prints.image_id[np.isin(prints.pixels, prints.pixels[prints.rows(image_ids)])])


def images_without_voxels(cfg: Config, fold: int = 0) -> NDArray[np.int32]:
    """Return images that a mapper may learn from although it has no responses of the subject to them, sorted.

    Training images that ``subject.sessions`` leaves out and, where subjects saw different images, the training and
    validation images of the others. Images of this fold's test or validation are never among them, under whatever id.

    Args:
        cfg: the configuration, whose data are prepared.
        fold: number of the fold.

    Raises:
        UserError: a subject of ``data.subjects`` that is not prepared, or as ``split_of`` says.
    """
    own = split_of(cfg).folds[fold]
    whole = split_of(replace(cfg, subject=replace(cfg.subject, sessions=0))).folds[fold]
    ids = whole.train
    if component("source", cfg.data.source).by_subject:
        for name in (name for name in cfg.data.subjects if name != cfg.subject.name):
            ids = np.union1d(ids, np.concatenate([one.seen for one in split_of(cfg, name).folds]))
    held = np.concatenate([whole.test, whole.val, own.train])
    return np.setdiff1d(ids, with_doubles(cfg, held)).astype(np.int32)


def _across(cfg: Config, split: Split, near: bool) -> Across:
    prints = _prints_of(cfg)
    found = [across(prints, fold.seen, fold.test, near=near) for fold in split.folds]
    equal, close = ([pair for one in found for pair in getattr(one, kind)] for kind in ("equal", "near"))
    return Across(sorted(set(equal)), sorted(set(close)))


def _prints_of(cfg: Config) -> Prints:
    path = stimuli_path(cfg)
    return _prints(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _prints(path: Path, mtime_ns: int) -> Prints:
    """Those kept in a file that is as `nd prepare` wrote it, else computed: images may have been changed since."""
    return Stimuli(path).prints(kept=path.is_file() and recorded_hash(path) is not None)


def _cut(cfg: Config, name: str) -> Split:
    if _is_limited(cfg, name):
        return _early_split(cfg, _whole_subject(cfg, name))
    if not component("source", cfg.data.source).by_subject:
        return _shared_split(cfg)
    return _whole_split(cfg, _whole_subject(cfg, name))


def _shared_split(cfg: Config) -> Split:
    """The split of images that all subjects saw."""
    if cfg.data.split == BY_CLUSTER:
        return cluster_split(cfg.data, read_clusters(data_folder(cfg) / CLUSTERS))
    return get_split(cfg.data)


def _is_limited(cfg: Config, name: str) -> bool:
    """Whether ``subject.sessions`` is about this subject."""
    return cfg.subject.sessions != 0 and name in ("", cfg.subject.name)


def _whole_subject(cfg: Config, name: str, roi: str = ALL_VOXELS) -> Subject:
    return Subject(subject_path(cfg, name), roi, SESSIONS_OF.get(cfg.data.split, 0), cfg.data.streams)


def _whole_split(cfg: Config, subject: Subject) -> Split:
    """The split over all sessions that it uses."""
    if not component("source", cfg.data.source).by_subject:
        return _shared_split(cfg)
    if cfg.data.source != "own":
        from nd.data.nsd.facts import check_split

        check_split(cfg.data.split, subject)
    return subject_split(cfg.data, subject.image_id, subject.held_out)


def _early_split(cfg: Config, subject: Subject) -> Split:
    """The split without the training and validation images that ``subject.sessions`` leaves out."""
    early, limit = subject.early(cfg.subject.sessions), f"subject.sessions={cfg.subject.sessions}"
    split = narrowed(_whole_split(cfg, subject), subject.image_id[early])
    for fold in split.folds:
        if len(fold.train) < MIN_TRAIN or len(fold.val) < MIN_VAL:
            raise UserError(
                f"{limit} leaves {len(fold.train)} training and {len(fold.val)} validation images of {subject.name}; "
                f"wanted at least {MIN_TRAIN} and {MIN_VAL}. Use more of its {subject.n_sessions} sessions, or another "
                "data.n_val."
            )
    # A test image keeps its later trials, which a fold that trains on it would then see.
    seen = np.concatenate([fold.seen for fold in split.folds])
    mixed = np.intersect1d(np.intersect1d(seen, split.test_ids), subject.image_id[~early])
    if mixed.size:
        raise UserError(
            f"{limit} does not go with split {split.name!r}: {mixed.size} images (first: image {mixed[0]}) are trained "
            f"on in one fold, tested in another, and shown to {subject.name} both in these sessions and in later ones. "
            "Use all sessions (subject.sessions=0)."
        )
    return split
