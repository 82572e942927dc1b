"""One simulated experiment as a public release of NSD counts it, and the folder that its files go to.

Shapes: T trials.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.nsd.facts import N_IMAGES, number
from nd.data.nsd.tree import SIMULATED_MARK
from nd.data.stimuli import Stimuli
from nd.data.subject import Subject
from nd.data.subject_file import ALL_VOXELS
from nd.errors import UserError
from nd.files import write_text

# NSD Data Manual, "Functional data (NSD)": a session has 12 runs of 75 trials of 4 s, most of which show an image.
RUNS, SLOTS = 12, 75
IMAGES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ReleaseTrials:
    """The trials of one subject, in order; every array (T,).

    ``image``: 0-based 73k id; ``session``: 0-based; ``run``: 1 to 12 within the session; ``place``: 1-based within the
    run; ``shared``: trials whose image is one of the shared images. ``person``: 1 to 8. ``shared_ids`` and
    ``other_ids``: sorted 0-based ids of all images of the experiment, shown or not.
    """

    person: int
    image: NDArray[np.int64]
    session: NDArray[np.int64]
    run: NDArray[np.int64]
    place: NDArray[np.int64]
    shared: NDArray[np.bool_]
    shared_ids: NDArray[np.int64]
    other_ids: NDArray[np.int64]

    @property
    def n_sessions(self) -> int:
        """Sessions that were scanned."""
        return int(self.session[-1]) + 1


def trials_of(subject: Subject, stimuli: Stimuli, test_ids: NDArray[Any]) -> ReleaseTrials:
    """The trials of a simulated subject, the images ``test_ids`` taken as the shared ones.

    Raises UserError for a measured subject, one seen through an ROI, trials out of order, a name that NSD does not
    have, images that are no 73k ids or not among the stimuli, and more trials in a session than it has slots.
    """
    _check(subject, stimuli, np.asarray(test_ids))
    session = subject.session.astype(np.int64)
    run, place = runs_of(session)
    return ReleaseTrials(
        person=number(subject.name), image=subject.image_id.astype(np.int64), session=session, run=run, place=place,
        shared=np.isin(subject.image_id, test_ids), shared_ids=np.unique(test_ids).astype(np.int64),
        other_ids=np.setdiff1d(stimuli.image_id, test_ids).astype(np.int64),
    )  # fmt: skip


def runs_of(session: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run and place in it of every trial: each session is cut into 12 runs as evenly as possible."""
    run, place = np.empty_like(session), np.empty_like(session)
    for s in np.unique(session):
        for r, rows in enumerate(np.array_split(np.flatnonzero(session == s), RUNS), 1):
            run[rows], place[rows] = r, np.arange(1, len(rows) + 1)
    return run, place


def _check(subject: Subject, stimuli: Stimuli, test_ids: NDArray[Any]) -> None:
    number(subject.name)
    if not subject.attributes.get("simulated", False):
        raise UserError(
            f"{subject.path} is not simulated: only simulated subjects are written in the files of a public release."
        )
    if subject.roi != ALL_VOXELS:
        raise UserError(f"a release holds every voxel: open {subject.path} without roi={subject.roi!r}.")
    n_sessions, steps = len(np.unique(subject.session)), np.diff(subject.session, prepend=0)
    in_order = np.array_equal(subject.trial, np.arange(len(subject.trial)))
    if not in_order or (steps < 0).any() or subject.session[-1] != n_sessions - 1:
        raise UserError(f"{subject.path}: a release needs all trials in order, in sessions 0, 1, 2, ... without a gap.")
    most = int(np.bincount(subject.session).max())
    if most > RUNS * SLOTS:
        raise UserError(f"{subject.path} has {most} trials in a session; a session of NSD has {RUNS * SLOTS} slots.")
    ids = stimuli.image_id
    if ids.min() < 0 or ids.max() >= N_IMAGES:
        raise UserError(f"{stimuli.path}: images {ids.min()}..{ids.max()}; 73k ids are 0..{N_IMAGES - 1}.")
    unknown = np.setdiff1d(np.union1d(subject.image_id, test_ids), ids)
    if unknown.size or not len(test_ids):
        raise UserError(
            f"{subject.path} and its {len(test_ids)} test images do not fit {stimuli.path}: "
            f"{unknown.size} image(s) are not there (at least one test image is needed)."
        )


def shown_images(stimuli: Stimuli) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (image id, image (H, W, 3)) of all stimuli, a few in memory at a time."""
    for first in range(0, len(stimuli.image_id), IMAGES_AT_ONCE):
        ids = stimuli.image_id[first : first + IMAGES_AT_ONCE]
        yield from zip(ids.tolist(), stimuli.images(ids), strict=True)


@contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """Make the folder of a tree, and remove it where writing fails. UserError where something lies in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not an empty folder, and a tree is written whole or not at all. NSD has one trial order for "
            "all subjects but every simulated subject has its own, so an NSD tree holds one subject only; a MindEye2 "
            "tree takes several, all in one call. Choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def sign(folder: Path, release: str, subjects: Sequence[Subject], notes: list[str]) -> None:
    """Write the file that says, in words, that the tree is simulated and what it was made from."""
    lines = [
        f"Everything in this folder is SIMULATED. Nobody was scanned: it is a small tree in the files and codes of the "
        f"{release}, made to try readers.",
        "The images are drawn by code and keep their own side; the voxels are responses of a simulated brain.",
        *notes,
    ]
    for subject in subjects:
        known = subject.attributes
        lines.append(
            f"Made from subject {subject.name} of {known.get('source', 'unknown')} (world_seed "
            f"{known.get('world_seed', 'unknown')}, stimuli {known.get('stimuli_hash', 'unknown')}): "
            f"{len(subject.image_id)} trials, {subject.n_sessions} session(s), {subject.n_voxels} voxels, betas "
            f"{known.get('scaling', 'of unknown scaling')}."
        )
    write_text(folder / SIMULATED_MARK, "\n".join(lines) + "\n")
