"""Who saw what, when: the behavioural arrays in the tar files of the MindEye2 release.

One sample is one trial; of its members only ``<sample>.behav.npy`` is read. Trials of shared images are those of
``new_test/0.tar``, all others those of ``train/<session>.tar``. The trial's number among all of its subject is the row
of the betas, so every number must be there exactly once.

Shapes: N samples of all tars, T trials.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.mindeye2 import tree
from nd.data.nsd.design import Trials
from nd.data.nsd.facts import N_IMAGES, TRIALS_PER_SESSION, person
from nd.data.nsd.tree import simulated
from nd.data.subject_file import repeats_of
from nd.data.whole_numbers import whole_numbers
from nd.errors import UserError
from nd.files import unreadable

MEMBER = ".behav.npy"
MOST_BYTES = 1 << 16  # of such a member, which holds 17 numbers
# Columns of whole numbers.
WHOLE = {tree.IMAGE: "image", tree.SESSION: "session", tree.GLOBAL_TRIAL: "trial", tree.IS_SHARED: "mark of the test"}


@dataclass(frozen=True)
class Samples:
    """The rows of one subject's tars: table (N, 17) float64, origin (tar and member) and of new_test or not (N,)."""

    table: NDArray[np.float64]
    origin: list[str]
    in_test: NDArray[np.bool_]

    def column(self, column: int) -> NDArray[np.int64]:
        """(N,) of a column of whole numbers."""
        return self.table[:, column].astype(np.int64)


def read_trials(root: Path, subject: str, *, progress: bool = False) -> Trials:
    """Return all trials of one subject.

    Args:
        root: of the release.
        subject: "subj01" to "subj08".
        progress: show a bar.

    Raises:
        UserError: a tar is missing or damaged, or the trials of all tars contradict each other.
    """
    sessions = n_sessions(root, subject)
    samples = read_samples(root, subject, sessions, progress)
    _check_columns(samples, sessions)
    trial = samples.column(tree.GLOBAL_TRIAL)
    planned = TRIALS_PER_SESSION * sessions
    _check_complete(samples, subject, int(trial.max()) + 1 if simulated(root) else planned)
    _check_shared(samples)
    order = np.argsort(trial)
    session = samples.column(tree.SESSION)[order] - 1
    _check_order(subject, session)
    image_id = samples.column(tree.IMAGE)[order].astype(np.int32)
    return Trials(image_id, session.astype(np.int32), repeats_of(image_id), samples.in_test[order], sessions)


def n_sessions(root: Path, subject: str) -> int:
    """Sessions of a subject: NSD's own, of a simulated tree as many as have a tar."""
    if not simulated(root):
        return person(subject).sessions
    found = [int(path.stem) for path in (root / tree.train_tar(subject, 0)).parent.glob("*.tar") if path.stem.isdigit()]
    return 1 + max(found, default=0)


def tars_of(root: Path, subject: str) -> list[Path]:
    """Every tar that is read of a subject, whether or not it is there: training sessions in order, then the test."""
    names = [tree.train_tar(subject, session) for session in range(n_sessions(root, subject))]
    return [root / name for name in (*names, tree.test_tar(subject))]


def read_samples(root: Path, subject: str, sessions: int, progress: bool) -> Samples:
    """The rows of all tars of a subject. Raises UserError where one is missing or damaged."""
    paths = tars_of(root, subject)
    _check_present(root, subject, paths)
    tables, origin, in_test = [], [], []
    for path in tqdm(paths, f"read trials of {subject}", unit="tar", disable=not progress):
        table, names = read_tar(path)
        tables.append(table)
        origin += [f"{path}, {name}" for name in names]
        in_test += [path == paths[-1]] * len(names)
    if not origin:
        raise UserError(f"the tars {paths[0].parent} of {subject} hold no trial at all. Fetch them again.")
    return Samples(np.concatenate(tables), origin, np.array(in_test))


def _check_present(root: Path, subject: str, paths: list[Path]) -> None:
    absent = [path for path in paths if not tree.there(path)]
    if not absent:
        return
    old = root / tree.test_tar(subject, tree.OLD_TEST)
    hint = (
        f" {old} is not read: it is the test set of fewer sessions." if absent[0] == paths[-1] and old.exists() else ""
    )
    raise UserError(
        f"{absent[0]} is missing ({len(absent)} of the {len(paths)} tars of {subject}).{hint} Fetch what is missing, "
        f"or leave {subject} out of data.subjects (data.subjects=[subj01] asks for subj01 alone)."
    )


def read_tar(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """The behavioural rows (n, 17) of a tar and the members they come from. Raises UserError where it is damaged."""
    rows, names, last, n_members = [], [], "its start", 0
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                last, n_members = f"member {member.name}", n_members + 1
                if member.name.endswith(MEMBER):
                    rows.append(_behaviour(tar, member))
                    names.append(member.name)
    except (PermissionError, IsADirectoryError) as error:
        raise unreadable(path, error) from None
    except Exception as error:  # tarfile and the parser of .npy raise nearly everything
        raise UserError(f"{path} is damaged or cut short at {last} ({error}). Fetch that tar again.") from None
    if n_members and not names:
        raise UserError(f"{path} holds no member *{MEMBER} but {last.removeprefix('member ')}. Fetch that tar again.")
    return np.concatenate(rows) if rows else np.empty((0, tree.N_COLUMNS)), names


def _behaviour(tar: tarfile.TarFile, member: tarfile.TarInfo) -> NDArray[np.float64]:
    """(1, 17) of one member. ValueError where it is anything else."""
    stream = tar.extractfile(member) if member.size <= MOST_BYTES else None
    if stream is None:
        raise ValueError("not a file of that kind")
    row = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    if row.shape != (1, tree.N_COLUMNS) or row.dtype.kind not in "fiu":
        raise ValueError(f"it holds {row.dtype} {row.shape}, wanted float64 (1, {tree.N_COLUMNS})")
    return np.asarray(row, np.float64)


def _check_columns(samples: Samples, sessions: int) -> None:
    """Image, session and trial of every sample are whole numbers in their ranges."""
    ranges = {
        tree.IMAGE: (0, N_IMAGES - 1),
        tree.SESSION: (1, sessions),
        tree.GLOBAL_TRIAL: (0, TRIALS_PER_SESSION * sessions - 1),
        tree.IS_SHARED: (-1, 1),
    }
    for column, (lowest, highest) in ranges.items():
        what = partial(_place, samples, column)
        advice = "Fetch that tar again."
        whole_numbers(samples.table[:, column], what, lowest=lowest, highest=highest, advice=advice)


def _place(samples: Samples, column: int, n: int) -> str:
    return f"{samples.origin[n]}: the {WHOLE[column]} (column {column})"


def _check_complete(samples: Samples, subject: str, n_trials: int) -> None:
    """Every trial is there exactly once."""
    trial = samples.column(tree.GLOBAL_TRIAL)
    counts = np.bincount(trial, minlength=n_trials)
    if counts.max() > 1:
        twice = int(counts.argmax())
        places = " and in ".join(samples.origin[n] for n in np.flatnonzero(trial == twice)[:2])
        raise UserError(f"trial {twice} of {subject} is in {places}. Fetch these tars again.")
    gaps = np.flatnonzero(counts == 0)
    if gaps.size:
        before = np.flatnonzero(trial < gaps[0])
        session = samples.column(tree.SESSION)[before[trial[before].argmax()]] - 1 if before.size else 0
        raise UserError(
            f"no tar holds trial {gaps[0]} of {subject} ({gaps.size} of its {n_trials} trials are missing): is "
            f"{tree.train_tar(subject, int(session))} or {tree.test_tar(subject)} cut short? Fetch both again."
        )


def _check_shared(samples: Samples) -> None:
    """Test trials are those of shared images, and no image of theirs is in another tar."""
    marked = samples.table[:, tree.IS_SHARED] == 1
    wrong = np.flatnonzero(marked != samples.in_test)
    if wrong.size:
        said = "shared" if marked[wrong[0]] else "not shared"
        raise UserError(
            f"{samples.origin[wrong[0]]}: its image is {said} (column {tree.IS_SHARED}), but {tree.NEW_TEST}/0.tar "
            f"alone holds shared images, and all of them ({wrong.size} trials are elsewhere). Fetch these tars again."
        )
    image = samples.column(tree.IMAGE)
    both = np.intersect1d(image[samples.in_test], image[~samples.in_test])
    if both.size:
        first = np.flatnonzero((image == both[0]) & ~samples.in_test)[0]
        raise UserError(
            f"image {both[0]} is of the test, but {samples.origin[first]} shows it too ({both.size} such images). "
            "Training would see test images; fetch these tars again."
        )


def _check_order(subject: str, session: NDArray[np.int64]) -> None:
    """Trials are numbered in the order of the sessions (T,)."""
    back = np.flatnonzero(np.diff(session) < 0)
    if back.size:
        first = int(back[0]) + 1
        raise UserError(
            f"trial {first} of {subject} is of session {session[first] + 1}, but trial {first - 1} of session "
            f"{session[first - 1] + 1}. Sessions follow each other; fetch the tars of {subject} again."
        )
