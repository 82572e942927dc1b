"""The Scenes data set: pictures, captions, and every subject's simulated experiment, in the prepared format.

Shapes: N pictures, T trials, V voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nd.data.prepared import write_stimuli, write_subject
from nd.errors import UserError
from nd.scenes.attributes import attribute_matrix
from nd.scenes.brain import Brain, build_brain, subject_rng
from nd.scenes.captions import captions
from nd.scenes.cortex import MIN_VOXELS
from nd.scenes.draw import draw_scenes
from nd.scenes.filters import filter_bank
from nd.scenes.scene import sample_scene
from nd.schema import DataConfig

LOG = logging.getLogger(__name__)

SIMULATION_VERSION = 1  # raise it when the same settings give other voxels or pictures
TRIALS_PER_SESSION = 300  # NSD has 750
MIN_IMAGE_SIZE = 32  # below, the finest filters (16 cycles per picture) cannot be sampled


@dataclass(frozen=True)
class Schedule:
    """One subject's experiment: image (T,), session (T,) and repeat (T,), all 0-based, in the order of the trials."""

    image: NDArray[np.int32]
    session: NDArray[np.int32]
    repeat: NDArray[np.int32]


def settings_of(data: DataConfig) -> dict[str, object]:
    """Everything the prepared files depend on."""
    names = ("name", "n_train", "n_test", "n_repeats", "n_voxels", "image_size", "world_seed")
    return {**{n: getattr(data, n) for n in names}, "subjects": list(data.subjects), "simulation": SIMULATION_VERSION}


def write_world(data: DataConfig, folder: Path) -> None:
    """Draw the pictures, let every subject see them, and write all prepared files into ``folder``.

    Raises UserError for settings that make no experiment.
    """
    check_settings(data)
    ids = np.arange(data.n_train + data.n_test, dtype=np.int32)
    scenes = [sample_scene(data.world_seed, int(i)) for i in ids]
    images = draw_scenes(scenes, data.image_size)
    stimuli_hash = write_stimuli(
        folder / "stimuli.h5", images=images, captions=[captions(s) for s in scenes], image_id=ids
    )
    bank, attributes = filter_bank(images), attribute_matrix(scenes)
    for name in data.subjects:
        brain = build_brain(data.world_seed, name, data.n_voxels)
        write_experiment(folder / f"{name}.h5", brain, brain.responses(bank, attributes), data, stimuli_hash)
        LOG.info("wrote the simulated subject %s", name)


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
    path: Path, brain: Brain, responses_NV: NDArray[np.float32], data: DataConfig, stimuli_hash: str
) -> None:
    """Simulate one subject's trials and write the prepared file."""
    rng = subject_rng(data.world_seed, brain.name, "trials")
    plan = make_schedule(rng, len(responses_NV), data.n_repeats)
    betas = brain.trials(rng, responses_NV, plan.image, plan.session)
    write_subject(
        path,
        voxels=zscore_sessions(betas, plan.session, plan.image < data.n_train),
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
            "ncsnr": "true value of the simulation",
            "world_seed": data.world_seed,
            "stimuli_hash": stimuli_hash,
        },
    )


def make_schedule(rng: np.random.Generator, n_images: int, n_repeats: int) -> Schedule:
    """Every image ``n_repeats`` times in random order, never twice in a row (possible for 3 or more images)."""
    order = rng.permutation(np.repeat(np.arange(n_images, dtype=np.int32), n_repeats))
    while (same := np.flatnonzero(order[1:] == order[:-1])).size:
        first, other = same[0] + 1, rng.integers(len(order))
        order[[first, other]] = order[[other, first]]
    n_sessions = max(1, round(len(order) / TRIALS_PER_SESSION))
    session = np.arange(len(order)) * n_sessions // len(order)
    return Schedule(order, session.astype(np.int32), _repeats(order))


def _repeats(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """How often the image of each trial was seen before."""
    by_image = np.argsort(order, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(order[by_image])) + 1]
    counts = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    out = np.empty(len(order), np.int32)
    out[by_image] = counts
    return out


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
