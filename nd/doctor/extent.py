"""How large the data of a configuration are: read from what is there, else from what is known of the data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nd.config import Config, DataConfig
from nd.config.components import component
from nd.data import digits69
from nd.data.mindeye2.betas import open_betas
from nd.data.npy import open_npy
from nd.data.nsd.design import read_trials
from nd.data.nsd.facts import PEOPLE, TRIALS_PER_SESSION, person
from nd.data.nsd.volumes import read_mask
from nd.data.own_images import open_images
from nd.data.prepared import Stimuli, open_subject, stimuli_path
from nd.doctor.tree import Tree
from nd.errors import UserError
from nd.files import located

DIGITS69_VOXELS = 3092


@dataclass(frozen=True)
class Extent:
    """Images of the data set, images a mapper is fitted on, and one subject's trials and voxels. 0: not known yet."""

    images: int = 0
    fitted: int = 0
    trials: int = 0
    voxels: int = 0


def extent(cfg: Config, raw: Tree | None) -> Extent:
    """The extent of the data of ``subject.name``; ``raw`` where raw files were looked at."""
    source = cfg.data.source
    if source in ("nsd", "mindeye2"):
        found = _of_nsd(cfg, raw)
    else:
        found = {"digits69": _of_digits69, "own": _of_own}.get(source, _of_scenes)(cfg.data)
    images, _ = _asked(lambda: (len(Stimuli(stimuli_path(cfg)).image_id), 0))
    try:
        subject = open_subject(cfg)
    except UserError:
        return replace(found, images=images or found.images)
    seen = (
        len(np.unique(subject.image_id[~subject.held_out])) if component("source", source).by_subject else found.fitted
    )
    return Extent(images or found.images, seen, len(subject.image_id), subject.n_voxels)


def _asked(question: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """What files answer; (0, 0) where they cannot, which is said elsewhere."""
    try:
        return question()
    except UserError:
        return 0, 0


def _of_scenes(data: DataConfig) -> Extent:
    n_images = data.n_train + data.n_test
    return Extent(n_images, data.n_train, n_images * data.n_repeats, data.n_voxels)


def _of_digits69(data: DataConfig) -> Extent:
    return Extent(digits69.N_IMAGES, digits69.N_TRAIN, digits69.N_IMAGES, DIGITS69_VOXELS)


def _of_own(data: DataConfig) -> Extent:
    def shape() -> tuple[int, int]:
        voxels = open_npy(located(data.voxels), "float32")
        return (len(voxels), voxels.shape[1]) if voxels.ndim == 2 else (0, 0)

    trials, voxels = _asked(shape) if data.voxels else (0, 0)
    images = _asked(lambda: (len(open_images(located(data.images)).ids), 0))[0] if data.images else 0
    return Extent(images, max(0, images - data.n_test), trials, voxels)


def _of_nsd(cfg: Config, raw: Tree | None) -> Extent:
    """Of NSD's own numbers, or of a simulated tree's."""
    data, subject = cfg.data, cfg.subject.name
    known = person(subject)
    root = raw.root if raw else None
    if cfg.data.simulated:
        return _of_tree(cfg, root) if root else Extent()
    voxels, sessions = known.voxels, known.sessions
    if data.source == "nsd":
        sessions = data.sessions or sessions
        if data.mask != "nsdgeneral":
            voxels = _asked(lambda: (0, len(read_mask(root, subject, data.mask).ijk)))[1] if root else 0
    return Extent(images_seen(data.subjects), known.images - known.shared, TRIALS_PER_SESSION * sessions, voxels)


def images_seen(subjects: list[str]) -> int:
    """How many images some subjects of NSD saw together: their own ones, and those they share."""
    people = [PEOPLE[name] for name in subjects if name in PEOPLE]
    return max((one.shared for one in people), default=0) + sum(one.images - one.shared for one in people)


def _of_tree(cfg: Config, root: Path) -> Extent:
    """Of a simulated tree; what a MindEye2 tree's tars hold is not read here."""
    data, subject = cfg.data, cfg.subject.name
    if data.source == "mindeye2":
        return Extent(0, 0, *_asked(lambda: open_betas(root, subject).shape))
    voxels = _asked(lambda: (0, len(read_mask(root, subject, data.mask).ijk)))[1]
    try:
        trials = read_trials(root, subject, data.sessions)
    except UserError:
        return Extent(voxels=voxels)
    images = np.unique(trials.image_id)
    fitted = len(images) - len(np.unique(trials.image_id[trials.shared]))
    return Extent(len(images), fitted, len(trials.image_id), voxels)
