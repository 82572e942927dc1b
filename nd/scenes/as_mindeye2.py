"""Simulated subjects as a small tree in the files, keys, dtypes and index bases of the MindEye2 release.

Image i of the data set is 0-based 73k image i, its test images are the shared ones, and images keep their own side
(the release's have 224 pixels). Betas are the subject's voxels bit for bit. Order of the rows, padding and sample
numbers follow MedARC-AI/MindEyeV2@06f5a4c:src/dataset_creation.ipynb.

Shapes: T trials, V voxels, S side of an image.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.mindeye2 import tree
from nd.data.nsd.facts import N_IMAGES
from nd.data.stimuli import Stimuli
from nd.data.subject import Subject
from nd.errors import UserError
from nd.hdf5 import allocate
from nd.scenes.release_trials import ReleaseTrials, fresh, shown_images, sign, trials_of

CONTEXT = 15  # trials before and after that a sample tells of
OTHERS = 3  # rows for the presentations of the same image
UNKNOWN = -1.0
# The older test set was made when 37 of 40 sessions had been released.
OLD_SHARE = 37 / 40
ROI_OF = {"V1": "V1", "V2": "V2", "V3": "V3", "V4": "hV4"}
LEAST_CAPTIONS = 5
NOTES = [
    "Columns of the behavioural arrays that a simulated experiment does not have are -1. V4 is the simulated hV4, "
    "higher_vis all voxels outside V1 to V4."
]


def write_mindeye2(folder: Path, subjects: Sequence[Subject], stimuli: Stimuli, test_ids: NDArray[Any]) -> None:
    """Write the tree of simulated subjects that saw the same images. The same input gives the same arrays.

    Args:
        folder: does not exist yet, or is empty.
        subjects: whole, or their first sessions; named subj01 to subj08, each once.
        test_ids: 0-based ids of the images that are to be the shared ones.

    Raises:
        UserError: a folder in use, or subjects that no release could hold.
    """
    names = [subject.name for subject in subjects]
    if not names or len(set(names)) < len(names):
        raise UserError(f"a MindEye2 tree needs at least one subject, each once; got {', '.join(names) or 'none'}.")
    everybody = [trials_of(subject, stimuli, test_ids) for subject in subjects]
    with fresh(folder):
        _write_images(folder / tree.IMAGES, stimuli)
        _write_captions(folder / tree.CAPTIONS, stimuli)
        _write_masks(folder / tree.ROI_MASKS, subjects)
        for subject, trials in zip(subjects, everybody, strict=True):
            _write_betas(folder / tree.betas_file(subject.name), subject)
            _write_samples(folder, subject.name, trials)
        sign(folder, "MindEye2 release", subjects, NOTES)


def behaviour(trials: ReleaseTrials) -> NDArray[np.float64]:
    """(T, 17) what the release says of every trial; -1 in columns that were not simulated."""
    table = np.full((len(trials.image), tree.N_COLUMNS), UNKNOWN)
    table[:, tree.IMAGE] = trials.image
    table[:, tree.SUBJECT] = trials.person
    table[:, tree.SESSION] = trials.session + 1
    table[:, tree.RUN] = trials.run
    table[:, tree.TRIAL] = trials.place
    table[:, tree.GLOBAL_TRIAL] = np.arange(len(table))
    table[:, tree.IS_SHARED] = trials.shared
    return table


def around(trials: ReleaseTrials) -> dict[str, NDArray[np.intp]]:
    """Trials of the four arrays of each sample, -1 where there is none: (T, 1), twice (T, 15), (T, 3).

    ``past_behav`` and ``future_behav``: the nearest trial of the same session first. ``olds_behav``: the presentations
    of the same image in their order, with -1 for the present one.
    """
    n_trials = len(trials.image)
    now = np.arange(n_trials)[:, None]
    steps = np.arange(1, CONTEXT + 1)
    out = {"behav": now}
    for name, there in (("past_behav", now - steps), ("future_behav", now + steps)):
        inside = (there >= 0) & (there < n_trials)
        same = trials.session[np.clip(there, 0, n_trials - 1)] == trials.session[:, None]
        out[name] = np.where(inside & same, there, -1)
    olds = np.full((n_trials, OTHERS), -1)
    for image in np.unique(trials.image):
        shown = np.flatnonzero(trials.image == image)
        for trial in shown:
            olds[trial, : len(shown)] = np.where(shown == trial, -1, shown)[:OTHERS]
    return {**out, "olds_behav": olds}


def _write_samples(folder: Path, name: str, trials: ReleaseTrials) -> None:
    # Index -1 takes the last row, which is all -1.
    rows = np.concatenate([behaviour(trials), np.full((1, tree.N_COLUMNS), UNKNOWN)])
    parts = {part: rows[indices] for part, indices in around(trials).items()}
    n_old = max(1, round(trials.n_sessions * OLD_SHARE))
    shared = np.flatnonzero(trials.shared)
    write_tar(folder / tree.test_tar(name), parts, shared)
    write_tar(folder / tree.test_tar(name, tree.OLD_TEST), parts, shared[trials.session[shared] < n_old])
    first = 0  # samples are numbered through all sessions
    for session in range(trials.n_sessions):
        mine = np.flatnonzero((trials.session == session) & ~trials.shared)
        write_tar(folder / tree.train_tar(name, session), parts, mine, first)
        first += len(mine)


def write_tar(path: Path, parts: dict[str, NDArray[np.float64]], rows: NDArray[np.intp], first: int = 0) -> None:
    """Write some trials as a webdataset: members ``sample<nine digits>.<part>.npy``, counted from ``first``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for sample, row in enumerate(rows, first):
            for part in sorted(parts):
                data = io.BytesIO()
                np.save(data, parts[part][row])
                member = tarfile.TarInfo(f"sample{sample:09d}.{part}.npy")
                member.size = data.tell()
                data.seek(0)
                archive.addfile(member, data)


def _write_betas(path: Path, subject: Subject) -> None:
    rows = np.arange(len(subject.image_id))
    with h5py.File(path, "w") as handle:
        betas = allocate(handle, tree.BETAS_KEY, (len(rows), subject.n_voxels), np.dtype(np.float32))
        for positions, values in subject.blocks(rows):
            betas[positions] = values


def _write_images(path: Path, stimuli: Stimuli) -> None:
    """(73000, 3, S, S) float16 in [0, 1]; only images that are there take room. Value k is k / 255, rounded."""
    shape = (3, *stimuli.shape[:2])
    with h5py.File(path, "w") as handle:
        images = handle.create_dataset(tree.IMAGES_KEY, (N_IMAGES, *shape), np.float16, chunks=(1, *shape), fillvalue=0)
        for image, pixels_HWC in shown_images(stimuli):
            images[image] = (pixels_HWC.transpose(2, 0, 1) / 255).astype(np.float16)


def _write_captions(path: Path, stimuli: Stimuli) -> None:
    """(73000, 5 or more) text; rows of images that are not there are empty and, in a sparse file, take no room."""
    texts = stimuli.captions(stimuli.image_id)
    n_columns = max(LEAST_CAPTIONS, *(len(captions) for captions in texts))
    dtype = np.dtype(f"<U{max(len(text) for captions in texts for text in captions)}")
    out = np.lib.format.open_memmap(path, "w+", dtype, (N_IMAGES, n_columns))
    for image, captions in zip(stimuli.image_id, texts, strict=True):
        out[image, : len(captions)] = captions
    out.flush()


def _write_masks(path: Path, subjects: Sequence[Subject]) -> None:
    """``<subject>/<ROI>`` (V,) bool over the columns of the betas."""
    with h5py.File(path, "w") as handle:
        for subject in subjects:
            nothing = np.zeros(subject.n_voxels, bool)
            masks = {name: subject.rois.get(area, nothing) for name, area in ROI_OF.items()}
            masks["higher_vis"] = ~np.any(list(masks.values()), axis=0)
            masks["nsd_general"] = np.ones(subject.n_voxels, bool)
            for name, mask in masks.items():
                handle.create_dataset(f"{subject.name}/{name}", data=mask)
