"""What is known of the Natural Scenes Dataset before any file of it is opened.

Numbers from the NSD Data Manual (pages "Technical notes", "Functional data (NSD)", "ROIs") and from Allen et al. 2022,
Nature Neuroscience 25; nsdgeneral voxel counts from the MindEye2 code (mindeye_models.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nd.errors import UserError, unknown
from nd.files import sha256_json

if TYPE_CHECKING:
    from nd.data.subject import Subject

N_IMAGES = 73_000
IMAGE_SIDE = 425
TRIALS_PER_SESSION = 750
N_SHARED = 1000  # images that every subject was to see; the first of each subject's 10,000
BETA_UNIT = 300.0  # betas are stored as int16: percent signal change times 300
# sha256_json of the sorted COCO ids of the 1,000 shared images: the same for all subjects, in every release.
SHARED_COCO_HASH = "29785247681e"
SHARED_HASH = "2bb91bb51a4f"  # the same of their 0-based 73k ids
TERMS_URL = "https://naturalscenesdataset.org (Data access: a form with the terms of use, answered within days)"


@dataclass(frozen=True)
class Person:
    """One NSD subject: sessions scanned, nsdgeneral voxels and grid of func1pt8mm, images and shared images seen."""

    sessions: int
    voxels: int
    grid: tuple[int, int, int]
    images: int
    shared: int


PEOPLE = {
    "subj01": Person(40, 15724, (81, 104, 83), 10_000, 1000),
    "subj02": Person(40, 14278, (82, 106, 84), 10_000, 1000),
    "subj03": Person(32, 15226, (81, 106, 82), 9_411, 930),
    "subj04": Person(30, 13153, (85, 99, 80), 9_209, 907),
    "subj05": Person(40, 13039, (79, 97, 78), 10_000, 1000),
    "subj06": Person(32, 17907, (85, 113, 83), 9_411, 930),
    "subj07": Person(40, 12682, (78, 95, 81), 10_000, 1000),
    "subj08": Person(30, 14386, (80, 103, 78), 9_209, 907),
}


def person(name: str) -> Person:
    """What is known of one subject. Raises UserError for another name."""
    if name not in PEOPLE:
        raise unknown("NSD subject", name, PEOPLE)
    return PEOPLE[name]


def number(name: str) -> int:
    """1 to 8."""
    person(name)
    return list(PEOPLE).index(name) + 1


def check_split(split: str, subject: Subject) -> None:
    """Hold a prepared NSD subject, seen in the sessions of a split, against what the split's name stands for.

    Raises UserError where sessions are missing or, for measured data, images are not as many as NSD's design has, or
    test images of nsd1000 are not its shared ones.
    """
    planned = int(subject.attributes.get("sessions_scanned", 0))
    if split == "nsd1000" and subject.n_sessions < planned:
        raise UserError(
            f"split nsd1000 uses all {planned} sessions of {subject.name}, but {subject.path} holds "
            f"{subject.n_sessions}. Prepare all of them (data.sessions=0), or choose data.split=nsd_partial, which is "
            "comparable with nothing published."
        )
    if subject.attributes.get("simulated", False) or split == "nsd_partial":
        return
    known = person(subject.name)
    wanted = {"nsd982": (982, 9841), "nsd1000": (known.shared, known.images)}[split]
    found = len(np.unique(subject.image_id[subject.held_out])), len(np.unique(subject.image_id))
    if found != wanted:
        raise UserError(
            f"split {split} of {subject.name} has {wanted[0]} test images among {wanted[1]}, but {subject.path} shows "
            f"{found[0]} among {found[1]}. Is nsd_expdesign.mat NSD's own? Prepare the subject again from whole files."
        )
    _check_ids(split, subject)


def _check_ids(split: str, subject: Subject) -> None:
    """Raise UserError where the test images of nsd1000, all the shared ones, are others by their 73k ids."""
    test = np.unique(subject.image_id[subject.held_out])
    if split != "nsd1000" or len(test) != N_SHARED:
        return
    found = sha256_json([int(i) for i in test])
    if found != SHARED_HASH:
        raise UserError(
            f"the test images of {subject.path} have 0-based 73k ids with hash {found}, NSD's shared1000 has"
            f" {SHARED_HASH}. Were 1-based ids taken for 0-based ones? Prepare the subject again from NSD's own files."
        )
