"""The MindEye2 release to the prepared format: read in place, so that preparing checks much and writes little.

The release's betas are z-scored already, per session and voxel and without the trials of shared images, and stay as
they are. All sessions are prepared; a split that uses fewer of them (nsd982) leaves the later ones out by itself.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.config import Config
from nd.data.captions import captions_for, files_if_there
from nd.data.linked_stimuli import open_images, write_linked_stimuli
from nd.data.links import link
from nd.data.mindeye2 import tree
from nd.data.mindeye2.betas import check_constant, check_trials, open_betas, read_rois, read_through
from nd.data.mindeye2.trials import read_trials, tars_of
from nd.data.nsd.design import Trials, check_usable
from nd.data.nsd.tree import check_root, check_simulated
from nd.data.pieces import Piece, Settings
from nd.data.prepared import subject_path
from nd.data.rows import RowFile
from nd.data.subject_file import AGAIN, SubjectTable, check_table, lay_out, write_digests, write_rows, write_table
from nd.errors import UserError
from nd.files import atomic_path, located, sha256_file
from nd.hdf5 import allocate
from nd.sealed import ROWS, seal

SOURCE = "mindeye2"


def pieces_of(cfg: Config) -> list[Piece]:
    """The stimuli of ``data.subjects`` and the voxels of ``subject.name``.

    Without ``data.root`` they are only compared with what is prepared already. Raises UserError for an unknown
    subject.
    """
    name = subject_path(cfg).name
    release = Release(cfg)
    return [
        Piece("stimuli.h5", release.stimuli_settings(), release.write_stimuli, links=release.places("images")),
        Piece(
            name,
            release.subject_settings(),
            release.write_subject,
            n_bytes=release.subject_bytes(),
            links=release.places("voxels"),
        ),
    ]


class Release:
    """The files that a configuration names, and the two files that are made of them."""

    def __init__(self, cfg: Config) -> None:
        """Take the settings; no file is opened."""
        self.data, self.subject, self.progress = cfg.data, cfg.subject.name, cfg.trainer.progress
        self.given = located(cfg.data.root) if cfg.data.root else None
        self._trials: dict[str, Trials] = {}

    @cached_property
    def root(self) -> Path:
        """The folder of the release. UserError: not given, not there, or simulated against what is said of it."""
        root = check_root(self.data.root, SOURCE)
        check_simulated(root, self.data.simulated)
        return root

    def trials(self, subject: str) -> Trials:
        """One subject's trials, read once."""
        if subject not in self._trials:
            self._trials[subject] = read_trials(self.root, subject, progress=self.progress)
        return self._trials[subject]

    # ---- what the pieces depend on -----------------------------------------------------------------------------------

    def stimuli_settings(self) -> Settings:
        """All that the stimuli file depends on; files by their size, '' where they are not there."""
        tars = [tar for subject in self.data.subjects for tar in self._tars(subject)]
        captions = located(self.data.captions) if self.data.captions else self._file(tree.CAPTIONS)
        return {
            **self._settings(),
            "subjects": sorted(self.data.subjects),
            "image_size": self.data.image_size,
            "trials_bytes": _bytes(tars),
            "images_bytes": _bytes([self._file(tree.IMAGES)]),
            "captions_bytes": _bytes(files_if_there(captions)),
        }

    def subject_settings(self) -> Settings:
        """All that the subject's file depends on; files by their size, '' where they are not there."""
        return {
            **self._settings(),
            "subject": self.subject,
            "trials_bytes": _bytes(self._tars(self.subject)),
            "betas_bytes": _bytes([self._file(tree.betas_file(self.subject))]),
            "rois_bytes": _bytes([self._file(tree.ROI_MASKS)]),
        }

    def _settings(self) -> Settings:
        return {"name": self.data.name, "source": SOURCE, "simulated": self.data.simulated}

    def places(self, dataset: str) -> dict[str, Path]:
        """Where the file that ``dataset`` is read from lies below the root that was given."""
        name = tree.IMAGES if dataset == "images" else tree.betas_file(self.subject)
        return {dataset: self.given / name} if self.given else {}

    def _file(self, name: str) -> Path | None:
        return self.given / name if self.given else None

    def _tars(self, subject: str) -> list[Path]:
        return tars_of(self.given, subject) if self.given else []

    def subject_bytes(self) -> int:
        """What the subject's file takes, as far as known."""
        return 0 if self.data.in_place else int(_bytes([self._file(tree.betas_file(self.subject))]) or 0)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write_stimuli(self, path: Path) -> None:
        """Link (or copy) the images that the subjects saw, with their captions."""
        file = self.root / tree.IMAGES
        side, shape = self.data.image_size, open_images(file, tree.IMAGES_KEY).shape
        if shape != (side, side, 3):
            raise UserError(f"{file} holds images of {shape[0]} x {shape[1]} pixels, but data.image_size={side}.")
        image_id = np.unique(np.concatenate([self.trials(subject).image_id for subject in self.data.subjects]))
        captions = located(self.data.captions) if self.data.captions else self.root / tree.CAPTIONS
        write_linked_stimuli(
            path,
            file=file,
            key=tree.IMAGES_KEY,
            image_id=image_id,
            rows=image_id,
            captions=captions_for(captions, image_id.tolist()),
            in_place=self.data.in_place,
            progress=self.progress,
        )

    def write_subject(self, path: Path) -> None:
        """Write the subject's file; its voxels are the release's, linked to or copied, after every one was read."""
        betas = open_betas(self.root, self.subject)
        trials = self.trials(self.subject)
        check_trials(betas, self.subject, len(trials.image_id))
        check_usable(self.data, self.subject, trials, path.parent / "stimuli.h5")
        table = self._table(betas)
        check_table(path, table, betas.shape)
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
            if self.data.in_place:
                write_table(handle, self.subject, table)
                allocate(handle, f"{ROWS}/voxels", table.shape[:1], np.dtype(np.uint64))[:] = 0
                write = partial(write_digests, handle)
                constant = read_through(betas, write, f"check {self.subject}", self.progress)
                # Not opened through the link here: this file is open for writing, and so would be the linked one.
                link(handle, "voxels", betas.path, tree.BETAS_KEY)
                handle.attrs["linked_sha256"] = sha256_file(betas.path)
            else:
                lay_out(handle, self.subject, table)
                constant = read_through(betas, partial(write_rows, handle), f"copy {self.subject}", self.progress)
            check_constant(betas, constant, self.data.constant_voxels)
            handle.attrs["n_constant_voxels"] = int(constant.sum())
            seal(handle, AGAIN)

    def _table(self, betas: RowFile) -> SubjectTable:
        trials, n_voxels = self.trials(self.subject), betas.shape[1]
        return SubjectTable(
            image_id=trials.image_id,
            session=trials.session,
            repeat=trials.repeat,
            trial=np.arange(len(trials.image_id)),
            held_out=trials.shared,
            ijk=np.full((n_voxels, 3), -1, np.int16),  # the release does not say where they lie
            rois=read_rois(self.root, self.subject, n_voxels),
            attributes=self._attributes(trials),
        )

    def _attributes(self, trials: Trials) -> dict[str, Any]:
        return {
            "name": self.subject,
            "source": SOURCE,
            "simulated": self.data.simulated,
            "mask": "nsdgeneral",
            "betas": "betas_fithrf, z-scored per session (release)",
            "scaling": "z-scored per session and voxel by the trials whose image is not shared (release)",
            "transductive": False,
            "sessions_scanned": trials.planned,
        }


def _bytes(files: list[Path | None] | list[Path]) -> int | str:
    """Size of some files together; '' (unknown) where one of them is not there."""
    try:
        return sum(file.stat().st_size for file in files if file is not None) if files and None not in files else ""
    except OSError:
        return ""
