"""Which image was shown in every trial: NSD's design file and its list of images.

Both count from 1 where this module counts from 0: trial n showed image ``subjectim[subject, masterordering[n]]``, and
the shared images are the first of every subject's list (NSD Data Manual, "Experiments"; the same reading as
ozcelikfu/brain-diffuser@31d52c0:data/prepare_nsddata.py).
Shapes: T trials, S sessions, I images of a subject.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import DataConfig
from nd.data.mat import read_mat
from nd.data.nsd.facts import SHARED_COCO_HASH, TRIALS_PER_SESSION, number, person
from nd.data.nsd.tree import DESIGN, STIM_INFO, simulated
from nd.data.same_images import across, check_across
from nd.data.splits import SESSIONS_OF, subject_split
from nd.data.stimuli import Stimuli
from nd.data.subject_file import repeats_of
from nd.data.whole_numbers import LARGEST, whole_numbers
from nd.errors import UserError
from nd.files import sha256_json, unreadable

KEYS = ("masterordering", "subjectim", "sharedix")
MEND = "Fetch the file again from the NSD bucket."


@dataclass(frozen=True)
class Trials:
    """One subject's trials in the order of the experiment.

    image_id (T,) int32 0-based 73k id; session (T,) int32 0-based; repeat (T,) int32 0-based presentation number;
    shared (T,) bool: of an image that every subject was to see; planned: sessions that the subject was scanned in.
    """

    image_id: NDArray[np.int32]
    session: NDArray[np.int32]
    repeat: NDArray[np.int32]
    shared: NDArray[np.bool_]
    planned: int

    @property
    def per_session(self) -> NDArray[np.intp]:
        """Trials (S,) of each session."""
        return np.bincount(self.session)


def read_trials(root: Path, subject: str, sessions: int = 0) -> Trials:
    """Return the trials of one subject's first sessions.

    Args:
        root: of the tree.
        subject: "subj01" to "subj08".
        sessions: how many; 0: all.

    Raises:
        UserError: the design is missing, damaged or contradicts itself, or has fewer sessions.
    """
    path, content = root / DESIGN, _load(root / DESIGN)
    counts = _trials_per_session(path, content)[: person(subject).sessions]
    if sessions > len(counts):
        raise UserError(
            f"data.sessions={sessions}, but {subject} has {len(counts)} sessions by {path}. Give fewer, or 0."
        )
    kept = counts[: sessions or len(counts)]
    images = _images(path, content, subject)
    position = _whole(path, content, "masterordering").ravel()[: kept.sum()] - 1
    if len(position) < kept.sum() or position.min(initial=0) < 0 or position.max(initial=0) >= len(images):
        raise UserError(f"{path}: masterordering does not give {kept.sum()} trials of images 1..{len(images)}. {MEND}")
    image_id = images[position].astype(np.int32)
    return Trials(
        image_id=image_id,
        session=np.repeat(np.arange(len(kept), dtype=np.int32), kept),
        repeat=repeats_of(image_id),
        shared=position < content["sharedix"].size,
        planned=len(counts),
    )


def check_usable(data: DataConfig, subject: str, trials: Trials, stimuli: Path) -> None:
    """Refuse trials that could not be evaluated, before their betas are read.

    Args:
        data: settings of the split, and whether equal images may stand on both sides of it.
        subject: its name, for messages.
        trials: all that are prepared.
        stimuli: the prepared stimuli file.

    Raises:
        UserError: too few test, validation or training images.
        LeakError: an image that is trained on and tested under two ids.
    """
    used = trials.session < SESSIONS_OF.get(data.split, trials.planned)
    fold = subject_split(data, trials.image_id[used], trials.shared[used]).folds[0]
    check_across(across(Stimuli(stimuli).prints(), fold.seen, fold.test), subject, data.same_images)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing. `nd doctor data=nsd` lists what belongs below data.root.")
    content = read_mat(path, [*KEYS, "stimpattern"], MEND)
    lacking = [key for key in KEYS if key not in content]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; it is not NSD's design. {MEND}")
    return content


def _whole(path: Path, content: dict[str, NDArray[Any]], key: str) -> NDArray[np.int64]:
    return whole_numbers(content[key], f"{path}: {key}", lowest=-LARGEST, advice=MEND)


def _trials_per_session(path: Path, content: dict[str, NDArray[Any]]) -> NDArray[np.intp]:
    """Trials of each planned session: where stimpattern (S, runs, slots) marks an image."""
    if "stimpattern" not in content:
        return np.full(content["masterordering"].size // TRIALS_PER_SESSION, TRIALS_PER_SESSION)
    pattern = _whole(path, content, "stimpattern")
    if pattern.ndim != 3:
        raise UserError(f"{path}: stimpattern has shape {pattern.shape}; wanted (sessions, runs, slots). {MEND}")
    return (pattern > 0).sum((1, 2))


def _images(path: Path, content: dict[str, NDArray[Any]], subject: str) -> NDArray[np.int64]:
    """0-based ids (I,) of a subject's images, the shared ones first."""
    table, row = _whole(path, content, "subjectim"), number(subject) - 1
    if table.ndim != 2 or len(table) <= row:
        raise UserError(f"{path}: subjectim has shape {table.shape} and no row for {subject}. {MEND}")
    images, shared = table[row], _whole(path, content, "sharedix").ravel()
    repeated = len(images) - len(np.unique(images))
    if repeated:
        raise UserError(f"{path}: subjectim lists {repeated} image ids of {subject} twice. {MEND}")
    if set(images[: len(shared)]) != set(shared):
        raise UserError(
            f"{path}: the first {len(shared)} images of {subject} in subjectim are not those of sharedix, so the test "
            f"images are unknown. {MEND}"
        )
    return images - 1


def read_coco_ids(root: Path, image_id: NDArray[Any], shared: NDArray[Any]) -> NDArray[np.int64]:
    """Return the COCO ids of some images.

    Of measured data, the shared images must be NSD's own (by the hash of their COCO ids), so that a test set is never
    other than its name says.

    Args:
        root: of the tree.
        image_id: (n,) 0-based 73k ids.
        shared: (m,) those of the shared images.

    Returns:
        (n,) int64.

    Raises:
        UserError: the list is missing, damaged or of other images.
    """
    path = root / STIM_INFO
    coco = _coco_column(path)
    absent = np.setdiff1d(np.r_[image_id, shared], np.fromiter(coco, np.int64, len(coco)))
    if absent.size:
        raise UserError(f"{path} lists no image {absent[0]} ({absent.size} are absent). {MEND}")
    found = sha256_json(sorted(coco[int(i)] for i in shared))
    if not simulated(root) and found != SHARED_COCO_HASH:
        raise UserError(
            f"the {len(shared)} shared images have COCO ids with hash {found} by {path}, but NSD's shared1000 has "
            f"{SHARED_COCO_HASH}. Fetch {STIM_INFO} and {DESIGN} again from the NSD bucket."
        )
    return np.array([coco[int(i)] for i in image_id], np.int64)


def _coco_column(path: Path) -> dict[int, int]:
    """COCO id by 0-based 73k id."""
    if not path.is_file():
        raise UserError(f"{path} is missing. `nd doctor data=nsd` lists what belongs below data.root.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle)  # a third of the time that rows by name take: there are 73,000
            names = next(rows, [])
            nsd_id, coco_id = names.index("nsdId"), names.index("cocoId")
            return {int(row[nsd_id]): int(row[coco_id]) for row in rows if row}
    except OSError as error:
        raise unreadable(path, error) from None
    except (IndexError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not NSD's list of images: its columns nsdId and cocoId ({error}). {MEND}") from None
