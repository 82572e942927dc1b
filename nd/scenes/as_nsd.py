"""One simulated subject as a small tree in the files, keys, dtypes and index bases of the Natural Scenes Dataset.

Image i of the data set is 0-based 73k image i. Its test images stand for the images that all subjects share, and
images keep their own side (NSD's have 425 pixels). NSD shows all subjects the positions of their image lists in one
order, so a tree holds one simulated subject; the lists of the other seven name images that are not there.

Shapes: T trials, I images of a subject's list, S side of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.nsd.facts import N_IMAGES
from nd.data.nsd.tree import DESIGN, STIMULI, STIMULI_KEY, SUBJECTS
from nd.data.stimuli import Stimuli
from nd.data.subject import Subject
from nd.errors import UserError
from nd.scenes.as_nsd_brain import write_betas, write_ncsnr, write_rois
from nd.scenes.as_nsd_info import invented_coco_ids, write_captions, write_info
from nd.scenes.brain import subject_rng
from nd.scenes.release_trials import RUNS, SLOTS, ReleaseTrials, fresh, shown_images, sign, trials_of

NOTES = [
    "Betas were given a mean and a deviation per session and voxel, as percent signal change times 300; z-scored per "
    "session and voxel by the trials that show no shared image they are the subject's voxels to 1e-3.",
    "Voxels beside the mask hold noise. ROIs: V1-V3 are cut into v and d by height, prf-eccrois into fifths by the "
    "depth from the back, which only follows eccentricity; in streams V1-V3 and hV4 are early; no voxel is in "
    "floc-bodies or floc-words.",
]


@dataclass(frozen=True)
class Design:
    """What nsd_expdesign.mat says, with NSD's bases.

    ``order`` (T,): 1-based position in the image list; ``lists`` (8, I): 1-based 73k ids, the shared images first;
    ``shared`` (n,): 1-based 73k ids, sorted; ``pattern`` (sessions, 12, 75): 1 where a slot shows an image.
    """

    order: NDArray[np.uint16]
    lists: NDArray[np.int32]
    shared: NDArray[np.int32]
    pattern: NDArray[np.uint8]


def write_nsd(
    folder: Path,
    subject: Subject,
    stimuli: Stimuli,
    test_ids: NDArray[Any],
    *,
    betas: str = "betas_fithrf_GLMdenoise_RR",
    forms: Sequence[str] = ("nii.gz",),
    grid: tuple[int, int, int] | None = None,
) -> None:
    """Write the tree of one simulated subject. The same input gives the same arrays.

    Args:
        folder: does not exist yet, or is empty.
        subject: whole, or its first sessions; named subj01 to subj08.
        test_ids: 0-based ids of the images that are to be the shared ones.
        betas: version, that is the folder of the betas.
        forms: "nii.gz" or "hdf5" for session 1, 2, ...; repeated where there are more sessions.
        grid: shape of the volumes; by default just larger than the brain.

    Raises:
        UserError: a folder in use, a subject that no release could hold, a grid too small, betas beyond int16.
    """
    trials = trials_of(subject, stimuli, test_ids)
    seed = int(subject.attributes.get("world_seed", 0))
    design = design_of(trials, subject_rng(seed, subject.name, "nsd design"))
    coco = invented_coco_ids()
    with fresh(folder):
        _write_design(folder / DESIGN, design)
        _write_images(folder / STIMULI, stimuli)
        write_info(folder, design.lists, design.order, design.shared, coco)
        write_captions(folder, stimuli, coco)
        shape = write_rois(folder, subject, grid)
        write_ncsnr(folder, subject, shape, betas)
        write_betas(folder, subject, shape, betas, forms)
        sign(folder, "Natural Scenes Dataset", [subject], NOTES)


def design_of(trials: ReleaseTrials, rng: np.random.Generator) -> Design:
    """The design of a tree in which this subject's trials are everybody's."""
    mine = np.concatenate([rng.permutation(trials.shared_ids), rng.permutation(trials.other_ids)])
    if N_IMAGES - len(mine) < len(trials.other_ids):
        raise UserError(
            f"{len(mine)} images leave too few of NSD's {N_IMAGES:,} for the lists of the other subjects. "
            "Use a data set with at most 36,000."
        )
    position = np.empty(N_IMAGES, np.int64)
    position[mine] = np.arange(len(mine))
    pattern = np.zeros((trials.n_sessions, RUNS, SLOTS), np.uint8)
    n_in_run = np.zeros(pattern.shape[:2], np.int64)
    np.add.at(n_in_run, (trials.session, trials.run - 1), 1)
    # Spread over the run, as NSD's blanks are between its images.
    slot = (trials.place - 1) * SLOTS // n_in_run[trials.session, trials.run - 1]
    pattern[trials.session, trials.run - 1, slot] = 1
    return Design(
        order=(position[trials.image] + 1).astype(np.uint16),
        lists=_lists(mine, trials).astype(np.int32),
        shared=(trials.shared_ids + 1).astype(np.int32),
        pattern=pattern,
    )


def _lists(mine: NDArray[np.int64], trials: ReleaseTrials) -> NDArray[np.int64]:
    """(8, I) 1-based ids: this subject's list, and for the others the shared images and then unused ones."""
    n_shared, n_others = len(trials.shared_ids), len(trials.other_ids)
    unused = np.setdiff1d(np.arange(N_IMAGES), mine, assume_unique=True)
    rows = [np.r_[mine[:n_shared], np.roll(unused, -k * n_others)[:n_others]] for k in range(len(SUBJECTS))]
    rows[trials.person - 1] = mine
    return np.stack(rows) + 1


def _write_design(path: Path, design: Design) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True)
    arrays = {
        "masterordering": design.order[None],
        "subjectim": design.lists,
        "sharedix": design.shared[None],
        "stimpattern": design.pattern,
    }
    savemat(path, arrays, do_compression=True)


def _write_images(path: Path, stimuli: Stimuli) -> None:
    """(73000, S, S, 3) uint8, in which only images that are there take room."""
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as handle:
        bricks = handle.create_dataset(
            STIMULI_KEY, (N_IMAGES, *stimuli.shape), np.uint8, chunks=(1, *stimuli.shape), fillvalue=0
        )
        for image, pixels in shown_images(stimuli):
            bricks[image] = pixels
