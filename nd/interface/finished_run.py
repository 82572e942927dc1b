"""A finished run read back: its configuration, images, scores, predictions and manifest.

N images in rising order of their ids, R repeats, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from nd.config import Config
from nd.config.check import restored
from nd.errors import UserError
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.runs.folder import RunFolder, found, run_path
from nd.runs.identity import VERBS
from nd.runs.outputs import output_of
from nd.sealed import DIGESTS

# What each verb reads of an earlier run: the name in its manifest's inputs, and the verb that wrote it.
READS = {"evaluate": ("images", "reconstruct"), "reconstruct": ("predictions", "predict")}
NO_TARGET = ("image_id", "fold", "kept", DIGESTS)  # of predictions.h5


def read_run(run: str | Path | Config, verb: str = "evaluate") -> FinishedRun:
    """Return a finished run.

    Args:
        run: its folder, ``runs/<verb>/<name>-<id>``; or a configuration, of which the matching run is read.
        verb: with a configuration, whose run: train, predict, reconstruct or evaluate.

    Returns:
        The run; nothing but its status is read before it is asked for.

    Raises:
        UserError: no such run, one that is not finished (says which command finishes it), or a folder of another kind.

    >>> import nd
    >>> nd.read_run("runs/evaluate/none")
    Traceback (most recent call last):
    ...
    nd.errors.UserError: runs/evaluate/none is not the folder of a run: ...
    """
    path = found(run, verb).path if isinstance(run, Config) else run_path(run)
    if not (path / "status").is_file() or path.parent.name not in VERBS:
        raise UserError(
            f"{path} is not the folder of a run: <paths.runs>/<verb>/<name>-<id>, of {', '.join(VERBS)}, with a file "
            "'status' was wanted. Runs lie in runs/<verb>/<name>-<run_id>."
        )
    folder = RunFolder(path.parent.name, path, path.name.rpartition("-")[2])
    if not folder.done:
        words = path / "overrides.txt"
        given = words.read_text(encoding="utf-8", errors="replace") if words.is_file() else ""
        command = " ".join(["nd", folder.verb, *given.splitlines()])
        raise UserError(f"{path} is not finished, its status is {folder.status!r}. This goes on with it: {command}")
    return FinishedRun(path, folder.verb)


@dataclass(frozen=True)
class FinishedRun:
    """One finished run of a verb; everything is read when it is first asked for.

    What an earlier step has made is found through it: ``images`` and ``predictions`` of an evaluate run are those
    of the runs it was made from. A damaged or missing file is a ``UserError`` that names it.
    """

    path: Path
    verb: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What ran, with what, on what, for how long: versions, seeds, inputs, files, seconds, memory."""
        return RunFolder(self.verb, self.path, self.path.name.rpartition("-")[2]).manifest

    @cached_property
    def config(self) -> Config:
        """The configuration of the run."""
        path = output_of(self.path, "config.yaml")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            config, checked = restored(values)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, AttributeError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}). Remove its folder and run its verb again.") from None
        if checked.all:
            raise UserError(f"{path} was written by another version of nd: " + " ".join(checked.all))
        return config

    def source(self, verb: str) -> FinishedRun:
        """Return the run of an earlier verb that this one was made from.

        It is found by the fingerprint that this run recorded, beside it, wherever the runs have been moved to.

        Args:
            verb: reconstruct or predict.

        Returns:
            That run; this one where it is of the verb itself.

        Raises:
            UserError: this run was not made from one, or it is no longer there.
        """
        if verb == self.verb:
            return self
        name, earlier = READS.get(self.verb, ("", ""))
        wanted = self.manifest.get("inputs", {}).get(name)
        if wanted is None:
            raise UserError(f"{self.path} was not made from a {verb} run: it read {self.manifest.get('inputs', {})}.")
        root = self.path.parent.parent / earlier
        for status in sorted(root.glob("*/status")):
            folder = RunFolder(earlier, status.parent, "")
            if folder.done and _fingerprint(folder) == wanted:
                return FinishedRun(folder.path, earlier).source(verb)
        raise UserError(
            f"the {earlier} run that {self.path} was made from (fingerprint {wanted}) is not in {root}: it was removed "
            "or made again from other inputs."
        )

    @property
    def image_ids(self) -> NDArray[np.int32]:
        """(N,) stimulus numbers of ``images`` and ``per_image``, rising; of a predict run those of ``predictions``."""
        file, run = ("predictions.h5", self) if self.verb == "predict" else ("images.h5", self.source("reconstruct"))
        ids: NDArray[np.int32] = _read(output_of(run.path, file), "image_id")["image_id"]
        return ids

    @property
    def images(self) -> NDArray[np.uint8]:
        """(N, R, H, W, 3) uint8 RGB reconstructions, all of them (5 of 512 px for each of 1,000 images: 4 GB)."""
        path = output_of(self.source("reconstruct").path, "images.h5")
        images: NDArray[np.uint8] = _read(path, "images")["images"]
        return images

    @cached_property
    def predictions(self) -> dict[str, NDArray[np.float32]]:
        """By target (N, *shape of the target) float32, decoded from the voxels; rows as ``image_ids`` of that run."""
        return _read(output_of(self.source("predict").path, "predictions.h5"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All that ``scores.json`` holds: metrics, protocol, test set, retrieval and brain correlation where asked."""
        from nd.evaluation.summary import read_summary

        return read_summary(self._evaluated("scores.json").parent)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By metric: mean over n images, ends lo and hi of its 95% interval, value by chance, which way is better."""
        scores: dict[str, dict[str, Any]] = self.summary["metrics"]
        return scores

    @cached_property
    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """By metric (N,) float64, repeats made one; NaN where an image has no value. Rows as ``image_ids``."""
        from nd.evaluation.scores import read_per_image

        columns = read_per_image(self._evaluated("per_image.csv"))
        return {name: values for name, values in columns.items() if name != "image_id"}

    def _evaluated(self, file: str) -> Path:
        if self.verb != "evaluate":
            raise UserError(f"{self.path} has no scores: they are of an evaluate run.")
        return self.path / file


def _read(path: Path, *names: str) -> dict[str, Any]:
    """Datasets of an HDF5 file by name; without names those of all targets."""
    with open_h5(path) as file:
        wanted = names or tuple(name for name in file if name not in NO_TARGET)
        missing = [name for name in wanted if name not in file]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}. Remove its folder and run its verb again.")
        return {name: read_whole(file, name) for name in wanted}


def _fingerprint(folder: RunFolder) -> str:
    """The fingerprint of a run; empty where its record is of no use, which is the business of whoever reads it."""
    try:
        return folder.fingerprint
    except UserError:
        return ""
