"""Lazy reader of one subject's prepared file (layout: ``nd.data.subject_file``).

Opening reads the small columns alone, whatever the file's size; voxels are read by rows when they are asked for, and
every value handed out is finite. The reader holds no open file, so it can be copied to worker processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.links import check_linked
from nd.data.rows import RowFile
from nd.data.subject_file import ALL_VOXELS, TRIAL_COLUMNS
from nd.data.whole_numbers import RESAVED, whole_numbers
from nd.errors import UserError, unknown
from nd.files import sha256_json
from nd.h5_values import dataset_of, read_whole
from nd.hdf5 import attributes_of, open_h5

# What NSD's streams atlas calls early; files without that atlas have its areas apart.
JOINED = {"early": ("V1", "V2", "V3", "hV4")}
# Streams of the visual system, chosen as <name>_stream: the ROIs that make one, as far as a file has them, of NSD's
# streams atlas (Allen et al. 2022) and of Scenes. After Goodale & Milner 1992, with the lateral surface apart.
STREAMS: dict[str, tuple[str, ...]] = {
    "early": ("early",),
    "ventral": ("ventral", "midventral", "face_like", "place_like"),
    "lateral": ("lateral", "midlateral"),
    "dorsal": ("parietal", "midparietal"),
}
OF_STREAM = "_stream"


class Subject:
    """A prepared subject file opened for reading, seen through one ROI and, where asked, its first sessions alone.

    Attributes: ``name``; ``n_voxels`` V inside the ROI; ``image_id``, ``session``, ``repeat``, ``trial`` (T,) int32 and
    ``held_out`` (T,) bool of the trials seen; ``ijk`` (V, 3) int16; ``ncsnr`` (V,) float32 or None; ``rois`` masks over
    all voxels of the file; ``attributes``; ``n_sessions`` of the trials seen; ``mask_hash`` of subject, voxel positions
    and ROI: two equal hashes mean the same voxels in the same order.
    """

    def __init__(
        self,
        path: Path,
        roi: str = ALL_VOXELS,
        sessions: int = 0,
        streams: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: of the file.
            roi: as of ``mask_of``.
            sessions: above 0 hides the trials of later ones.
            streams: ROIs by name of a stream, which take the place of ``STREAMS``' or join them.

        Raises:
            UserError: missing, truncated, wrong columns, a broken link, unknown or empty ROI, too few sessions.
        """
        self.path, self.roi, self._streams = Path(path), roi, dict(streams or {})
        with open_h5(self.path) as handle:
            self._check(handle)
            check_linked(self.path, handle)
            self.attributes: dict[str, Any] = attributes_of(handle)
            columns = {name: self._whole(handle, name).astype(np.int32) for name in TRIAL_COLUMNS}
            n_trials = len(columns["image_id"])
            held_out = self._whole(handle, "held_out") > 0 if "held_out" in handle else np.zeros(n_trials, bool)
            self.rois: dict[str, NDArray[np.bool_]] = {
                name: self._whole(handle, f"rois/{name}", RESAVED) > 0 for name in handle["rois"]
            }
            ijk = self._whole(handle, "ijk", RESAVED).astype(np.int16)
            ncsnr = read_whole(handle, "ncsnr", "f", ijk.shape[:1]) if "ncsnr" in handle else None
        self._matrix = RowFile(self.path)
        self._trials = self._visible(columns["session"], sessions)
        self.image_id, self.session, self.repeat, self.trial = (columns[n][self._trials] for n in TRIAL_COLUMNS)
        self.held_out = held_out[self._trials]
        self.n_sessions = len(np.unique(self.session))
        self.name = str(self.attributes.get("name", self.path.stem))
        self._n_all = len(ijk)
        self._columns = np.flatnonzero(self.mask_of(roi))
        self.n_voxels = len(self._columns)
        self.ijk = ijk[self._columns]
        self.ncsnr = None if ncsnr is None else ncsnr[self._columns]
        self.mask_hash = sha256_json([self.name, self._columns.tolist(), self.ijk.tolist()])

    def _whole(self, handle: Any, name: str, within: float = 0.0) -> NDArray[np.int64]:
        """The whole numbers of a dataset, whoever wrote it."""
        return whole_numbers(read_whole(handle, name), f"{self.path}: {name}", lowest=-1, within=within)

    def _check(self, handle: Any) -> None:
        """Refuse a file of another kind and one whose parts do not fit each other."""
        present = {str(name) for name in handle}  # whether or not a link leads anywhere
        missing = [name for name in ("voxels", "ijk", "rois", *TRIAL_COLUMNS) if name not in present]
        if missing:
            raise UserError(
                f"{self.path} is not a prepared subject file: it lacks {', '.join(missing)} and holds "
                f"{', '.join(sorted(present)) or 'nothing'}. Write it with `nd prepare` or "
                "nd.data.prepared.write_subject."
            )
        if not isinstance(handle["rois"], h5py.Group):
            raise UserError(f"{self.path}: rois is no group of masks. Write the file again.")
        n_trials, n_voxels = RowFile(self.path).shape
        per_trial = [*TRIAL_COLUMNS, *(["held_out"] if "held_out" in present else [])]
        if any(dataset_of(handle, c).shape != (n_trials,) for c in per_trial):
            shapes = ", ".join(f"{c} {handle[c].shape}" for c in per_trial)
            raise UserError(
                f"{self.path}: the columns do not have one row per trial (voxels ({n_trials}, {n_voxels}), {shapes}). "
                "Write the file again."
            )
        masks = [name for name in handle["rois"] if dataset_of(handle, f"rois/{name}").shape != (n_voxels,)]
        if masks or dataset_of(handle, "ijk").shape != (n_voxels, 3):
            raise UserError(f"{self.path}: ROI masks or ijk do not fit {n_voxels} voxels. Write the file again.")

    @property
    def inner_rois(self) -> dict[str, NDArray[np.bool_]]:
        """Masks (V,) over the voxels seen, of the ROIs that have some there."""
        masks = {name: mask[self._columns] for name, mask in self.rois.items()}
        return {name: mask for name, mask in masks.items() if mask.any()}

    def mask_of(self, roi: str) -> NDArray[np.bool_]:
        """Return the mask of an ROI over all voxels of the file.

        Args:
            roi: 'all', a name, '<stream>_stream', or several joined by '+'.

        Raises:
            UserError: there is none of that name (lists those there are), or it holds no voxel.
        """
        if roi == ALL_VOXELS:
            return np.ones(self._n_all, bool)
        # Names may end in '+', as ecc4+ of NSD's prf-eccrois does: the last '+' of several joins.
        names = [roi] if roi in self.rois else re.split(r"\+(?!\+|$)", roi)
        mask: NDArray[np.bool_] = np.any([self._one(name) for name in names], axis=0)
        if not mask.any():
            raise UserError(f"ROI {roi!r} of {self.path.name} holds no voxel. Choose another.")
        return mask

    def inside(self, roi: str) -> NDArray[np.bool_]:
        """Mask (V,) of an ROI over the voxels seen, which may hold none of it."""
        return self.mask_of(roi)[self._columns]

    def inside_if_known(self, roi: str) -> NDArray[np.bool_]:
        """The same; empty where this subject has no ROI of that name, which another one has."""
        try:
            return self.inside(roi)
        except UserError:
            return np.zeros(self.n_voxels, bool)

    def _one(self, name: str) -> NDArray[np.bool_]:
        areas = self._areas(name)
        if not areas and name.endswith(OF_STREAM):
            areas = self._areas_of_stream(name.removesuffix(OF_STREAM))
        if not areas:
            raise unknown(f"ROI of {self.path.name}", name, [ALL_VOXELS, *self.rois])
        joined: NDArray[np.bool_] = np.any([self.rois[area] for area in areas], axis=0)
        return joined

    def _areas(self, name: str) -> list[str]:
        return [name] if name in self.rois else [area for area in JOINED.get(name, ()) if area in self.rois]

    def _areas_of_stream(self, stream: str) -> list[str]:
        """ROIs that make a stream: all that were given for it, or those of the built-in ones that there are."""
        if stream not in STREAMS and stream not in self._streams:
            raise unknown("stream", stream, dict.fromkeys([*self._streams, *STREAMS]))
        wanted = self._streams.get(stream) or STREAMS[stream]
        absent = [name for name in wanted if not self._areas(name)]
        if absent and (stream in self._streams or len(absent) == len(wanted)):
            raise UserError(
                f"{self.path.name} has no ROI {', '.join(absent)}, of which the {stream} stream is made; it has:"
                f" {', '.join(self.rois) or 'none'}. Say which of these make the stream, e.g."
                f" data.streams={{{stream}: [{', '.join(list(self.rois)[:2]) or 'V1'}]}}."
            )
        return [area for name in wanted for area in self._areas(name)]

    def _visible(self, session: NDArray[np.int32], sessions: int) -> NDArray[np.intp]:
        """Rows of the trials that may be seen."""
        present = np.unique(session)
        if sessions > len(present):
            raise UserError(
                f"{self.path} holds {len(present)} sessions, but {sessions} are asked for. Prepare more of them, or "
                "choose a split that needs fewer (data.split=nsd_partial takes what there is)."
            )
        return np.arange(len(session)) if not sessions else np.flatnonzero(session <= present[sessions - 1])

    def early(self, sessions: int) -> NDArray[np.bool_]:
        """(T,) whether a trial is of the first ``sessions`` sessions, counted in the order of their numbers.

        UserError: fewer than 1, or more than there are.
        """
        present = np.unique(self.session)
        if not 1 <= sessions <= len(present):
            raise UserError(
                f"subject.sessions={sessions}, but {self.name} has {len(present)} sessions here; wanted 1 to "
                f"{len(present)}, or 0 for all."
            )
        return self.session <= present[sessions - 1]

    def only(self, trials: NDArray[np.bool_]) -> Subject:
        """The same subject with the trials of the mask (T,) alone; the others are out of sight."""
        seen = copy(self)
        seen._trials, seen.held_out = self._trials[trials], self.held_out[trials]
        seen.image_id, seen.session, seen.repeat, seen.trial = (getattr(self, name)[trials] for name in TRIAL_COLUMNS)
        seen.n_sessions = len(np.unique(seen.session))
        return seen

    def blocks(self, rows: NDArray[Any]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield (positions in ``rows``, their voxels) in file order, a few MiB at a time."""
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self._trials)):
            raise UserError(
                f"{self.path.name} has trials 0..{len(self._trials) - 1}; asked for {rows.min()}..{rows.max()}."
            )
        everything = self.n_voxels == self._matrix.shape[1]
        for positions, values in self._matrix.blocks(self._trials[rows]):
            yield positions, values if everything else values[:, self._columns]

    def voxels(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return the responses of some trials.

        Args:
            rows: (n,) places among the trials seen, in any order.

        Returns:
            (n, V) float32, in the order asked for and in the unit of the file.
        """
        out = np.empty((len(rows), self.n_voxels), np.float32)
        for positions, values in self.blocks(rows):
            out[positions] = values
        return out

    def rows_of(self, image_ids: NDArray[Any]) -> NDArray[np.intp]:
        """Rows of all trials of some images, in file order."""
        return np.flatnonzero(np.isin(self.image_id, image_ids))


def single_betas(subject: Subject, image_ids: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return every visible trial of some images, trials of an image together.

    Args:
        image_ids: (n,) different images, all of them shown to the subject.

    Returns:
        (T, V) float32 betas and (T,) int32 image ids, in the order of ``image_ids`` and then of the trials.

    Raises:
        UserError: an image was never shown to this subject.
    """
    rows = single_rows(subject, image_ids)
    return subject.voxels(rows), subject.image_id[rows].astype(np.int32)


def single_rows(subject: Subject, image_ids: NDArray[Any]) -> NDArray[np.intp]:
    """Return the rows (T,) of ``single_betas``, among all trials of the subject. Raises UserError as there."""
    rows = subject.rows_of(image_ids)
    place = {int(image): k for k, image in enumerate(image_ids)}
    missing = set(place) - set(subject.image_id[rows].tolist())
    if missing:
        raise UserError(f"{subject.path.name} has no trial of {len(missing)} images (first: image {min(missing)}).")
    return rows[np.argsort([place[int(image)] for image in subject.image_id[rows]], kind="stable")]


def mean_betas(subject: Subject, image_ids: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean over all visible trials of each image.

    Args:
        subject: with V voxels in its ROI.
        image_ids: (n,) ids, in any order.

    Returns:
        (n, V) float32, rows in the order of ``image_ids``, in the unit of the file.

    Raises:
        UserError: an image was never shown to this subject.
    """
    wanted, inverse = np.unique(np.asarray(image_ids), return_inverse=True)
    missing = np.setdiff1d(wanted, subject.image_id)
    if missing.size:
        raise UserError(
            f"{subject.path.name} has no trial of {missing.size} of the {wanted.size} images asked for "
            f"(first: image {missing[0]}). Was it prepared with the same data settings as the split?"
        )
    rows = subject.rows_of(wanted)
    target = np.searchsorted(wanted, subject.image_id[rows])
    total = np.zeros((len(wanted), subject.n_voxels), np.float32)
    for positions, values in subject.blocks(rows):
        for place, row in zip(target[positions], values, strict=True):  # np.add.at takes 4 times as long
            total[place] += row
    total /= np.bincount(target, minlength=len(wanted))[:, None].astype(np.float32)
    return total[inverse]
