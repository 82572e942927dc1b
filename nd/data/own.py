"""People's own fMRI: responses, the image of every trial, and the images, written in the prepared format.

    nd prepare data=own data.voxels=voxels.npy data.image_ids=image_ids.npy data.images=images/

- ``voxels``: .npy of numbers (trials, voxels) in any unit; kept as they are.
- ``image_ids``: the image of every trial, from 0 on (``nd.data.whole_numbers``).
- ``images``: ``nd.data.own_images``. All of them are prepared, so that a subject who saw others of them can join.
- Where given, ``session_ids`` and ``test_ids`` like ``image_ids``, ``captions`` by image id (``nd.data.captions``), and
  ROIs (``nd.data.own_volume``).

A further subject joins the folder by the same command with its own voxels, image ids and ``subject.name``. Captions and
further ROIs can be added later, by a command that gives nothing else; what was made before stays of use.
"""

from __future__ import annotations

import logging
import re
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.config import Config
from nd.data.captions import captions_for, files_of
from nd.data.own_images import RULES, OwnImages, hash_of, open_images, write_images
from nd.data.own_trials import OwnTrials
from nd.data.own_volume import NIFTI, read_places, read_roi, roi_files
from nd.data.pieces import Piece, Settings
from nd.data.same_images import Prints, across, check_across
from nd.data.splits import Fold, subject_split
from nd.data.stimuli import Stimuli, add_captions
from nd.data.subject_file import check_roi
from nd.errors import UserError
from nd.files import located, sha256_json

LOG = logging.getLogger(__name__)

EXAMPLE = "nd prepare data=own data.voxels=voxels.npy data.image_ids=image_ids.npy data.images=images/"
TRIAL_FILES = ("voxels", "image_ids", "session_ids", "test_ids")
PLACE_FILES = ("volume", "roi_volumes", "rois")
STIMULI = "stimuli.h5"


def pieces_of(cfg: Config) -> list[Piece]:
    """The stimuli and the file of ``subject.name``; in their settings the hash of a file that is not given is empty.

    Raises UserError for files that are not there or of another form, and for a name that no file can have.
    """
    own = OwnData(cfg)
    return [
        Piece(
            STIMULI,
            own.stimuli_settings(),
            own.write_stimuli,
            n_bytes=own.stimuli_bytes(),
            additions={"captions": own.add_captions},
        ),
        Piece(
            own.file_name,
            own.subject_settings(),
            own.write_subject,
            n_bytes=own.subject_bytes(),
            additions={f"rois/{name}": partial(own.add_roi, name) for name in own.rois},
        ),
    ]


class OwnData:
    """The files that a configuration names, and the two files that are made of them."""

    def __init__(self, cfg: Config) -> None:
        """Take the settings. UserError where a file is not there or a name cannot be a file's."""
        self.data, self.name, self.progress = cfg.data, cfg.subject.name, cfg.trainer.progress
        given = {key: str(getattr(cfg.data, key)) for key in (*TRIAL_FILES, *PLACE_FILES, "images", "captions")}
        self.paths = {key: located(path) for key, path in given.items() if path}
        absent = [f"data.{key}={given[key]}" for key, path in self.paths.items() if not path.exists()]
        if absent:
            raise UserError(f"not there: {', '.join(absent)}. Relative paths start at the current folder.")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) or self.name == "stimuli":
            raise UserError(
                f"subject.name={self.name!r} names the subject's file: use letters, digits, '_', '-' and '.', and not "
                "'stimuli'."
            )
        self.file_name = f"{self.name}.h5"
        self.trials = OwnTrials(self.paths, cfg.data.n_test)

    @cached_property
    def images(self) -> OwnImages:
        """The images, not in memory."""
        return open_images(self.paths["images"])

    @cached_property
    def rois(self) -> dict[str, Path]:
        """The file of every ROI that is given."""
        return roi_files(self.paths)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Hash of every file; empty where it is not given."""
        hashes = {key: hash_of(self.paths[key]) if key in self.paths else "" for key in TRIAL_FILES}
        for key, listed in {"captions": files_of, "volume": lambda path: [path]}.items():
            files = listed(self.paths[key]) if key in self.paths else []
            hashes[key] = sha256_json([[path.name, hash_of(path)] for path in files]) if files else ""
        hashes |= {f"rois/{name}": hash_of(path) for name, path in self.rois.items()}
        return hashes | {"images": self.images.fingerprint() if "images" in self.paths else ""}

    def stimuli_settings(self) -> Settings:
        """All that the stimuli file depends on."""
        settings = {"name": self.data.name, "image_size": self.data.image_size, "rule": RULES[self.data.orientation]}
        return settings | {key: self.hashes[key] for key in ("images", "captions")}

    def subject_settings(self) -> Settings:
        """All that the subject's file depends on."""
        settings = {"name": self.data.name, "simulated": self.data.simulated, "n_test": self.data.n_test}
        # Folders made before places could be given have no entry of them, as those made without have none.
        given = [key for key in self.hashes if key.startswith("rois/") or (key == "volume" and key in self.paths)]
        return settings | {key: self.hashes[key] for key in (*TRIAL_FILES, *given)}

    def stimuli_bytes(self) -> int:
        """At most what the images take."""
        return len(self.images.ids) * self.data.image_size**2 * 3 if "images" in self.paths else 0

    def subject_bytes(self) -> int:
        """What the voxels take."""
        return 4 * self.trials.voxels.size if "voxels" in self.paths else 0

    def _require(self, *keys: str) -> None:
        lacking = [f"data.{key}" for key in keys if key not in self.paths]
        if lacking:
            raise UserError(f"data=own lacks {', '.join(lacking)}. For example:\n  {EXAMPLE}")

    def write_stimuli(self, path: Path) -> None:
        """Write the stimuli file, after checking the trials: nothing is written where they could not be used."""
        measured = (path.parent / self.file_name).exists()  # the subject is there, only the stimuli are missing
        self._require(*(() if measured else ("voxels", "image_ids")), "images")
        images = self.images
        if not measured:
            self.trials.check(images.ids, f"data.images={images.source}. {images.said_of_names()}")
            self._split()
        if images.ignored:
            LOG.warning("%s: %s", images.source, images.said_of_names())
        write_images(
            path,
            images,
            self.data.image_size,
            self._captions(),
            turn=self.data.orientation == "tag",
            check=(lambda prints: None) if measured else self._check_prints,
            progress=self.progress,
        )

    def _split(self) -> Fold:
        """How the trials would be cut. UserError where they could not be evaluated."""
        return subject_split(self.data, self.trials.image_id, self.trials.held_out).folds[0]

    def _check_prints(self, prints: Prints) -> None:
        """Refuse images that are both trained on and tested, whatever their ids."""
        fold = self._split()
        check_across(across(prints, fold.seen, fold.test), self.name, self.data.same_images)

    def _captions(self) -> list[list[str]]:
        ids = self.images.ids.tolist()
        if "captions" in self.paths:
            return captions_for(self.paths["captions"], ids)
        LOG.warning(
            "data.captions was not given, so targets made of captions (c, clip_text) cannot be extracted. Choose a "
            "method without them, or add captions at any time by this command with data.captions=<file>."
        )
        return [[] for _ in ids]

    def write_subject(self, path: Path) -> None:
        """Write the subject's file; the stimuli lie in the same folder."""
        self._require("voxels", "image_ids")
        stimuli = Stimuli(path.parent / STIMULI)
        self.trials.check(stimuli.image_id, f"{stimuli.path}, which was prepared before.")
        self._check_prints(stimuli.prints())
        self.trials.write(path, self.name, self._attributes(stimuli.hash))
        if self.trials.n_constant:
            LOG.warning(
                "%d of %d voxels of %s never vary in its training trials: they carry nothing, and can be left out.",
                self.trials.n_constant, self.trials.voxels.shape[1], self.name,
            )  # fmt: skip

    def add_captions(self, handle: h5py.File) -> None:
        """Add captions to stimuli that were prepared without. UserError where an image has none."""
        add_captions(handle, captions_for(self.paths["captions"], handle["image_id"][()].tolist()))

    def add_roi(self, name: str, handle: h5py.File) -> None:
        """Add an ROI to a subject that was prepared without. UserError where it does not fit, or is another there."""
        n_voxels, path = len(handle["ijk"]), self.rois[name]
        grid = read_places(self.paths["volume"], n_voxels) if path.name.endswith(NIFTI) else None
        mask = read_roi(path, n_voxels, grid)
        if name not in handle["rois"]:
            check_roi(self.file_name, name)
            handle["rois"][name] = mask
        elif not np.array_equal(handle["rois"][name][()], mask):
            raise UserError(f"{path} is another ROI than the {name} that {self.file_name} holds. Name it otherwise.")

    def _attributes(self, stimuli_hash: str) -> dict[str, Any]:
        """What the subject's file says of itself."""
        given = [key for key in (*TRIAL_FILES, "volume") if key in self.paths]
        named = "test_ids" in self.paths
        return {
            "source": "own",
            "simulated": self.data.simulated,
            "mask": "as given" + ("" if "volume" in self.paths else "; voxel positions are not known"),
            "betas": "as given",
            "scaling": "none (as given)",
            "test_images": "named in test_ids" if named else f"the first {self.data.n_test} in the order of a hash",
            "stimuli_hash": stimuli_hash,
            **{f"{key}_file": self.paths[key].name.encode(errors="backslashreplace").decode() for key in given},
            **{f"{key}_sha256": self.hashes[key] for key in given},
        }
