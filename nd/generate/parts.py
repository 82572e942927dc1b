"""Images on disk as they are finished: one whole file per batch, merged in canonical order at the end.

The images of a run are cut into batches in the order of their ids. A run that was killed computes only what has no file
yet, by the plan it began with, so the merged file is the same to the last bit (``nd.generate.plan`` says why).

B images of a part, N images of a run, R repeats, H W image.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from nd.digests import digest_rows
from nd.errors import UserError
from nd.files import atomic_path, read_json, write_json, write_text
from nd.generate.plan import Plan
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.sealed import seal

log = logging.getLogger(__name__)

AGAIN = "Remove its folder and run `nd reconstruct` again."


def partition(image_ids: Sequence[int], batch: int) -> list[list[int]]:
    """Cut images, in the order given, into batches of ``batch`` images, at least 1 (the last may be smaller)."""
    return [[int(i) for i in image_ids[k : k + batch]] for k in range(0, len(image_ids), batch)]


def unfinished(batches: Sequence[Sequence[int]], finished: Collection[int]) -> list[list[int]]:
    """Return batches without the images that are finished; whole batches unless the batch size was changed."""
    return [left for batch in batches if (left := [i for i in batch if i not in finished])]


class PlanFacts(TypedDict):
    """A `Plan` as JSON."""

    guided: int
    plain: int
    decode: int
    checkpoint: int | bool  # which earlier versions wrote


class Execution(TypedDict, total=False):
    """How a run goes about its work, as far as it is read here."""

    plan: PlanFacts


class WithExecution(TypedDict, total=False):
    """What is read here of a manifest."""

    execution: Execution


class Parts:
    """The finished batches of one run."""

    def __init__(self, folder: Path) -> None:
        """Look at a folder of parts; it is made when the first part is written.

        The folder belongs to one run: whether the run's inputs are still the same is checked before it is opened.
        """
        self.folder = folder
        self._known: dict[tuple[str, int], list[int]] = {}  # by name and time of writing; each is looked into once

    @property
    def plan(self) -> Plan | None:
        """The plan the finished images were made by; None where none is finished or there was no plan.

        A run that has finished nothing may begin anew with another one, should its memory have been too small.
        """
        recorded = execution(self.folder.parent) if self._files() else {}
        return Plan(**recorded["plan"]) if "plan" in recorded else None

    def record(self, plan: Plan) -> None:
        """Note in the run's manifest by which plan its images are made."""
        record_execution(self.folder.parent, plan=asdict(plan))

    def finished(self) -> set[int]:
        """Return the ids of the images that have an image."""
        return {image_id for _, ids in self._scan() for image_id in ids}

    def write(self, image_ids: Sequence[int], images_BRHW3: NDArray[np.uint8], captions: Sequence[str] = ()) -> Path:
        """Write one batch, whole or not at all.

        Args:
            image_ids: B stimulus numbers.
            images_BRHW3: (B, R, H, W, 3) uint8 RGB.
            captions: B decoded captions; none where the generator decodes none.

        Returns:
            The file.

        Raises:
            UserError: a full disk, or no right to write.
        """
        path = self.folder / f"part-{int(image_ids[0]):06d}.h5"
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
            file["images"] = images_BRHW3
            file["image_id"] = np.asarray(image_ids, dtype=np.int32)
            if captions:
                file.create_dataset("caption", data=list(captions), dtype=h5py.string_dtype())
            seal(file, AGAIN)
        return path

    def fail(self, failed: Mapping[int, str]) -> None:
        """Note images that could not be made, for whoever merges; the next run tries them again."""
        for image_id, message in failed.items():
            write_text(self.folder / f"failed-{image_id:06d}.txt", message)

    def failures(self) -> list[str]:
        """Return what was noted of images that failed and have none, in their order, and forget all notes.

        A run that was killed before it asked leaves its notes, and the next one may have made those images since.
        """
        files, made = sorted(self.folder.glob("failed-*.txt")), self.finished()
        still = [path for path in files if int(path.stem.removeprefix("failed-")) not in made]
        messages = [path.read_text(encoding="utf-8") for path in still]
        for path in files:
            path.unlink()
        if not self._files() and self.folder.is_dir():
            self.remove()  # nothing was made: nothing should look as if it was
        return messages

    def merge(self, image_ids: Sequence[int], target: Path, attributes: Mapping[str, str | int | float | bool]) -> None:
        """Write all images to one file, which holds images (N, R, H, W, 3) uint8 and image_id (N,) int32.

        Where captions were decoded, it also holds caption (N,) text; empty for an image whose part has none.

        Args:
            image_ids: N stimulus numbers, in the order of the file.
            target: the file.
            attributes: of the file.

        Raises:
            UserError: an image is missing.
        """
        found, row_of = self._scan(), {image_id: row for row, image_id in enumerate(image_ids)}
        there = {image_id for _, ids in found for image_id in ids}
        missing = [i for i in image_ids if i not in there]
        if missing:
            raise UserError(
                f"{self.folder} has no image of {len(missing)} images ({_few(missing)}). Run the same command again."
            )
        said: dict[int, str] = {}
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as file:
            digests = np.zeros(len(image_ids), np.uint64)
            for path, ids in found:  # one part in memory at a time
                with open_h5(path) as part:
                    images = read_whole(part, "images", "u")
                    said |= dict(zip(ids, captions_of(part), strict=False))
                merged = file.require_dataset("images", (len(image_ids), *images.shape[1:]), np.uint8)
                for image_id, repeats in zip(ids, images, strict=True):
                    if image_id in row_of:
                        merged[row_of[image_id]] = repeats
                        digests[row_of[image_id]] = digest_rows(repeats[None])[0]
            file["image_id"] = np.asarray(image_ids, dtype=np.int32)
            if said:
                texts = [said.get(i, "") for i in image_ids]
                file.create_dataset("caption", data=texts, dtype=h5py.string_dtype())
            file.attrs.update(attributes)
            seal(file, AGAIN, {"images": digests})

    def remove(self) -> None:
        """Delete the parts, once they are merged, with what killed processes have left half-written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.h5"))

    def _scan(self) -> list[tuple[Path, list[int]]]:
        return [(path, ids) for path in self._files() if (ids := self._ids(path))]

    def _ids(self, path: Path) -> list[int]:
        """The ids of the images of a part, which is looked through once; none of one that is damaged."""
        key = (path.name, path.stat().st_mtime_ns)
        if key not in self._known:
            try:
                with open_h5(path) as file:
                    images, ids = read_whole(file, "images", "u"), read_whole(file, "image_id", "iu", (None,))
                if images.ndim != 5 or len(images) != len(ids):
                    raise UserError(f"{path}: images {images.shape} of {len(ids)} ids.")
            except UserError as error:
                log.warning("%s Its images are computed again", error)
                return []
            self._known[key] = [int(i) for i in ids]
        return self._known[key]


def captions_of(file: h5py.File) -> list[str]:
    """Return the decoded captions of a file of images, in its order; none where there are none."""
    return [str(text) for text in read_whole(file, "caption", "O")] if "caption" in file else []


def _few(ids: Sequence[int]) -> str:
    return ", ".join(str(i) for i in ids[:5]) + (", ..." if len(ids) > 5 else "")


def execution(folder: Path) -> dict[str, Any]:
    """Return what was recorded of how a run goes about its work; empty where there is no manifest."""
    path = folder / "manifest.json"
    recorded: dict[str, Any] = read_json(path, WithExecution).get("execution", {}) if path.exists() else {}
    return recorded


def record_execution(folder: Path, **facts: Any) -> None:
    """Add to the manifest in a run's folder how the run goes about its work: no part of its identity."""
    path = folder / "manifest.json"
    manifest = read_json(path, WithExecution) if path.exists() else {}
    write_json(path, manifest | {"execution": manifest.get("execution", {}) | facts})
