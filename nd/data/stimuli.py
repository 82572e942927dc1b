"""The stimuli of a data set in the prepared HDF5 format: writer, and a reader that guards the test pictures.

Layout of ``stimuli.h5`` (N images, H rows, W columns)::

    images    (N, H, W, 3) uint8    RGB
    image_id  (N,)         int32    0-based, unique
    captions  (N, K)       text     up to K per image; empty strings fill the rest
    labels    (N,)         int16    optional class labels
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.errors import LeakError, UserError
from nd.files import atomic_path, open_h5, sha256_array, sha256_json


def write_stimuli(
    path: Path,
    *,
    images: NDArray[np.uint8],
    captions: list[list[str]],
    image_id: NDArray[Any],
    labels: NDArray[np.int16] | None = None,
) -> str:
    """Write the stimuli file atomically and return the hash of its content. Arguments as in the layout above."""
    _check(path, images, captions, image_id, labels)
    longest = max(len(texts) for texts in captions)
    padded = [[*texts, *[""] * (longest - len(texts))] for texts in captions]
    content = content_hash(images, captions, image_id, labels)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        # One image per chunk: pictures are read one by one, in any order.
        handle.create_dataset(
            "images", data=images, chunks=(1, *images.shape[1:]), compression="gzip", compression_opts=1
        )
        handle.create_dataset("image_id", data=np.asarray(image_id, np.int32))
        handle.create_dataset("captions", data=np.array(padded, dtype=object), dtype=h5py.string_dtype())
        if labels is not None:
            handle.create_dataset("labels", data=np.asarray(labels, np.int16))
        handle.attrs["hash"] = content
    return content


def content_hash(
    images: NDArray[np.uint8],
    captions: list[list[str]],
    image_id: NDArray[Any],
    labels: NDArray[np.int16] | None = None,
) -> str:
    """12 hexadecimal digits of all that a stimuli file holds."""
    return sha256_json(
        [sha256_array(images), np.asarray(image_id).tolist(), captions, None if labels is None else labels.tolist()]
    )


def _check(
    path: Path, images: NDArray[Any], captions: list[list[str]], image_id: NDArray[Any], labels: NDArray[Any] | None
) -> None:
    """Refuse stimuli that the reader could not give back."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{path.name}: images are {images.dtype} {images.shape}; wanted uint8 (N, H, W, 3).")
    lengths = {
        "captions": len(captions),
        "image_id": len(image_id),
        "labels": len(images) if labels is None else len(labels),
    }
    for name, length in lengths.items():
        if length != len(images):
            raise UserError(f"{path.name}: {len(images)} images but {length} {name}.")
    if len(np.unique(image_id)) != len(image_id):
        raise UserError(f"{path.name}: image_id holds the same image twice. Give each picture one id.")
    if not all(captions):
        raise UserError(
            f"{path.name}: image {[bool(c) for c in captions].index(False)} has no caption; give at least one each."
        )


class Stimuli:
    """The prepared stimuli; with ``allowed_ids`` every other image is out of reach (LeakError).

    Attributes: ``image_id`` (N,) int32 of all images; ``hash`` of the content; ``shape`` (H, W, 3).
    """

    def __init__(self, path: Path, allowed_ids: NDArray[Any] | None = None) -> None:
        """Open the file. Raises UserError where it is missing, truncated or of another kind."""
        self.path = Path(path)
        self.allowed_ids = None if allowed_ids is None else np.unique(allowed_ids)
        with open_h5(self.path) as handle:
            missing = [name for name in ("images", "image_id", "captions") if name not in handle]
            if missing or "hash" not in handle.attrs:
                lack = ", ".join(missing) or "its hash"
                raise UserError(
                    f"{self.path} is not a prepared stimuli file: it lacks {lack}. "
                    "Write it with `nd prepare` or nd.data.prepared.write_stimuli."
                )
            self.image_id: NDArray[np.int32] = handle["image_id"][()]
            self.hash = str(handle.attrs["hash"])
            self.shape: tuple[int, ...] = handle["images"].shape[1:]
            self.has_labels = "labels" in handle
        self._row = {int(i): row for row, i in enumerate(self.image_id)}

    def images(self, ids: NDArray[Any]) -> NDArray[np.uint8]:
        """(n, H, W, 3) uint8 RGB, in the order of ``ids``."""
        rows = self._rows(ids)
        out = np.empty((len(rows), *self.shape), np.uint8)
        with open_h5(self.path) as handle:
            for position, row in enumerate(rows):
                out[position] = self._read(handle["images"], row)
        return out

    def captions(self, ids: NDArray[Any]) -> list[list[str]]:
        """The captions of each image, at least one, in the order of ``ids``."""
        rows = self._rows(ids)
        with open_h5(self.path) as handle:
            texts = handle["captions"].asstr()[()]
        return [[str(text) for text in texts[row] if text] for row in rows]

    def labels(self, ids: NDArray[Any]) -> NDArray[np.int16]:
        """(n,) int16 class labels. Raises UserError where the data set has none."""
        rows = self._rows(ids)
        if not self.has_labels:
            raise UserError(f"{self.path} holds no labels. Set protocol.label_identification=false for this data set.")
        with open_h5(self.path) as handle:
            return np.asarray(handle["labels"][()][rows], np.int16)

    def _read(self, images: h5py.Dataset, row: int) -> NDArray[np.uint8]:
        try:
            return np.asarray(images[row])
        except OSError as error:
            raise UserError(
                f"{self.path} is damaged at image row {row} ({error}). Write it again with `nd prepare`."
            ) from None

    def _rows(self, ids: NDArray[Any]) -> NDArray[np.intp]:
        """Rows of the file for these ids, after asking whether this reader may see them."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        if self.allowed_ids is not None:
            check_allowed(f"stimuli of {self.path}", ids, self.allowed_ids)
        absent = [int(i) for i in ids if int(i) not in self._row]
        if absent:
            raise UserError(
                f"{self.path} holds no image {absent[0]} ({len(absent)} of the {len(ids)} asked for are absent)."
            )
        return np.array([self._row[int(i)] for i in ids], np.intp)


def check_allowed(what: str, ids: NDArray[Any], allowed_ids: NDArray[Any]) -> None:
    """Raise LeakError where ``ids`` holds an image outside ``allowed_ids``; ``what`` names the thing asked for."""
    forbidden = np.setdiff1d(ids, allowed_ids)
    if forbidden.size:
        raise LeakError(
            f"{what}: {forbidden.size} image(s) were asked for that this step must not see "
            f"(first: image {forbidden[0]}); it may see only its {len(allowed_ids)} training and "
            "validation images. Only `nd evaluate` and features=oracle meet test images."
        )
