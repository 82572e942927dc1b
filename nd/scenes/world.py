"""The Scenes data set: images, captions, and every subject's simulated experiment, in the prepared format.

Shapes: N images, T trials, V voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.config import DataConfig
from nd.data.pieces import Piece
from nd.data.prepared import write_stimuli, write_subject
from nd.data.splits import BY_CLUSTER, CLUSTERS, cluster_split, write_clusters
from nd.data.stimuli import content_hash
from nd.data.subject_file import repeats_of
from nd.errors import UserError
from nd.scenes.attributes import attribute_matrix
from nd.scenes.brain import Brain, build_brain, subject_rng
from nd.scenes.captions import captions
from nd.scenes.cortex import MIN_VOXELS
from nd.scenes.draw import draw_scenes
from nd.scenes.filters import Bank, filter_bank
from nd.scenes.scene import Scene, sample_scene

LOG = logging.getLogger(__name__)

SIMULATION_VERSION = 2  # raise it when the same settings give other voxels or images
TRIALS_PER_SESSION = 300  # NSD has 750
MIN_IMAGE_SIZE = 32  # below, the finest filters (16 cycles per image) cannot be sampled


@dataclass(frozen=True)
class Schedule:
    """One subject's experiment: image (T,), session (T,) and repeat (T,), all 0-based, in the order of the trials."""

    image: NDArray[np.int32]
    session: NDArray[np.int32]
    repeat: NDArray[np.int32]


class World:
    """The images of one configuration and what every subject needs of them; each is made when first asked for."""

    def __init__(self, data: DataConfig) -> None:
        """Take the settings. Raises UserError for settings that make no experiment."""
        check_settings(data)
        self.data = data
        self.ids = np.arange(data.n_train + data.n_test, dtype=np.int32)

    @cached_property
    def scenes(self) -> list[Scene]:
        """What the images show."""
        return [sample_scene(self.data.world_seed, int(i)) for i in self.ids]

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, S, S, 3) the images."""
        return draw_scenes(self.scenes, self.data.image_size)

    @cached_property
    def captions(self) -> list[list[str]]:
        """Several captions of every image."""
        return [captions(scene) for scene in self.scenes]

    @cached_property
    def drive(self) -> tuple[Bank, NDArray[np.floating]]:
        """What voxels respond to: filtered images, and the attributes (N, A) of the scenes."""
        return filter_bank(self.images), attribute_matrix(self.scenes)

    @cached_property
    def stimuli_hash(self) -> str:
        """Hash of the stimuli file's content."""
        return content_hash(self.images, self.captions, self.ids)

    @cached_property
    def clusters(self) -> list[str]:
        """The cluster of every image: its background, which decides more of an image than anything else in it.

        The most similar training image to a held-out one, by pixel correlation in the default world, reaches .54 with
        images held out at random and, with clusters held out (four sets of two each), .52 to .53 for shapes and .40 to
        .56 for backgrounds.
        """
        return [scene.background for scene in self.scenes]

    @cached_property
    def seen_ids(self) -> NDArray[np.int32]:
        """The images that training may look at, by the split of the configuration."""
        if self.data.split == BY_CLUSTER:
            return cluster_split(self.data, self.clusters).folds[0].seen
        return self.ids[: self.data.n_train]

    def write_stimuli(self, path: Path) -> None:
        """Write the stimuli file."""
        write_stimuli(path, images=self.images, captions=self.captions, image_id=self.ids)

    def subject_writer(self, name: str) -> Callable[[Path], None]:
        """A function that simulates one subject's experiment and writes its file."""

        def write(path: Path) -> None:
            brain = build_brain(self.data.world_seed, name, self.data.n_voxels)
            clean = brain.responses(*self.drive)
            write_experiment(path, brain, clean, self.data, self.stimuli_hash, self.seen_ids)
            LOG.info("wrote the simulated subject %s", name)

        return write


def pieces_of(data: DataConfig) -> list[Piece]:
    """The files of the prepared folder. Raises UserError for settings that make no experiment."""
    world = World(data)
    names = ("name", "n_train", "n_test", "image_size", "world_seed")
    seen = {**{n: getattr(data, n) for n in names}, "simulation": SIMULATION_VERSION}
    # Trials are z-scored by those of training images, so voxels made for another split are others. Folders made before
    # there was another hold no such entry, which reads as None.
    by_cluster = data.split if data.split == BY_CLUSTER else None
    responses = {**seen, "n_repeats": data.n_repeats, "n_voxels": data.n_voxels, "split": by_cluster}
    subjects = [Piece(f"{name}.h5", responses, world.subject_writer(name)) for name in data.subjects]
    clusters = [Piece(CLUSTERS, seen, lambda path: write_clusters(path, world.clusters))] if by_cluster else []
    return [Piece("stimuli.h5", seen, world.write_stimuli), *clusters, *subjects]


def check_settings(data: DataConfig) -> None:
    """Raise UserError, with every problem, where the settings make no experiment."""
    lowest = {
        "n_train": 2,
        "n_test": 1,
        "n_repeats": 1,
        "n_voxels": MIN_VOXELS,
        "image_size": MIN_IMAGE_SIZE,
        "world_seed": 0,
    }
    problems = [f"data.{n}={getattr(data, n)} is below {low}" for n, low in lowest.items() if getattr(data, n) < low]
    if not data.subjects or len(set(data.subjects)) < len(data.subjects):
        problems.append(f"data.subjects={list(data.subjects)} must name at least one subject, each once")
    if problems:
        raise UserError("Scenes cannot be made: " + "; ".join(problems) + ".")


def write_experiment(
    path: Path,
    brain: Brain,
    responses_NV: NDArray[np.float32],
    data: DataConfig,
    stimuli_hash: str,
    seen_ids: NDArray[np.int32],
) -> None:
    """Simulate one subject's trials and write the prepared file; trials are z-scored by those of ``seen_ids``."""
    rng = subject_rng(data.world_seed, brain.name, "trials")
    plan = make_schedule(rng, len(responses_NV), data.n_repeats)
    betas = brain.trials(rng, responses_NV, plan.image, plan.session)
    write_subject(
        path,
        voxels=zscore_sessions(betas, plan.session, np.isin(plan.image, seen_ids)),
        image_id=plan.image,
        session=plan.session,
        repeat=plan.repeat,
        trial=np.arange(len(plan.image)),
        rois=brain.cortex.rois(),
        ijk=brain.cortex.ijk,
        ncsnr=brain.ncsnr,
        attributes={
            "name": brain.name,
            "source": "scenes",
            "simulated": True,
            "mask": "nsdgeneral",
            "betas": "simulated single-trial responses",
            "scaling": "z-scored per session and voxel by the mean and deviation of its training-image trials",
            "ncsnr": "true value of the simulation, drawn from quantiles measured in NSD",
            "world_seed": data.world_seed,
            "stimuli_hash": stimuli_hash,
        },
    )


def make_schedule(rng: np.random.Generator, n_images: int, n_repeats: int) -> Schedule:
    """Every image ``n_repeats`` times in random order, never twice in a row (possible for 3 or more images).

    There are two sessions or more, so that the smallest world too has one that can be left out.
    """
    order = rng.permutation(np.repeat(np.arange(n_images, dtype=np.int32), n_repeats))
    while (same := np.flatnonzero(order[1:] == order[:-1])).size:
        first, other = same[0] + 1, rng.integers(len(order))
        order[[first, other]] = order[[other, first]]
    n_sessions = max(2, round(len(order) / TRIALS_PER_SESSION))
    session = np.arange(len(order)) * n_sessions // len(order)
    return Schedule(order, session.astype(np.int32), repeats_of(order))


def zscore_sessions(
    betas_TV: NDArray[np.float32], session: NDArray[np.int32], fit_rows: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Z-score each session and voxel by statistics of the trials ``fit_rows`` (T,) alone: test trials would leak."""
    out = np.empty_like(betas_TV)
    for rows, fit in _sessions(session, fit_rows):
        mean, spread = betas_TV[fit].mean(0), betas_TV[fit].std(0)
        out[rows] = (betas_TV[rows] - mean) / np.where(spread > 0, spread, 1)
    return out


def _sessions(
    session: NDArray[np.int32], fit_rows: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(rows, rows to fit on) of each session; a session without two such trials is fitted on all of them."""
    for s in np.unique(session):
        rows = session == s
        fit = rows & fit_rows
        yield rows, fit if fit.sum() > 1 else fit_rows
