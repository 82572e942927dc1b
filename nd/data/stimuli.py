"""The stimuli of a data set in the prepared HDF5 format: writer, and a reader that guards the test images.

Layout of ``stimuli.h5`` (N images, H rows, W columns)::

    images    (N, H, W, 3) uint8    RGB
    image_id  (N,)         int32    0-based, unique
    captions  (N, K)       text     up to K per image; empty strings fill the rest; all empty: there are none
    labels    (N,)         int16    optional class labels
    prints/...                      what tells images apart (``nd.data.same_images``)
    digests/...                     of all of it, of each image as it is handed out, optional (``nd.sealed``)

Images that lie elsewhere already are not copied (``nd.data.linked_stimuli``): ``images`` is then a link to a dataset
of another file, channels last or first, uint8 or floats in [0, 1], and there are further

    image_row (N,)         int32    optional: row of ``images`` for each entry of image_id; default: its position

with the attributes ``layout`` ("HWC" or "CHW") and ``linked_bytes``, the size of that file. The reader hands out
(H, W, 3) uint8 in either case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.data.images import ImageFile
from nd.data.links import check_linked
from nd.data.same_images import Prints
from nd.data.subject_file import AGAIN
from nd.data.whole_numbers import whole_numbers
from nd.errors import LeakError, UserError
from nd.files import atomic_path, sha256_array, sha256_json
from nd.h5_values import attribute, read_whole
from nd.hdf5 import open_h5
from nd.sealed import recorded_of, seal
from nd.terminal import check_text


def write_stimuli(
    path: Path,
    *,
    images: NDArray[np.uint8],
    captions: list[list[str]],
    image_id: NDArray[Any],
    labels: NDArray[np.int16] | None = None,
) -> str:
    """Write the stimuli file atomically from arrays in memory.

    Args:
        path: of the file, ``<paths.data>/<data.name>/stimuli.h5``.
        images: (N, H, W, 3) uint8, RGB.
        captions: N lists of texts, at least one each, or all empty where there are none.
        image_id: (N,) whole numbers from 0 on, each once.
        labels: (N,) class labels, where there are any.

    Returns:
        The hash of its content, 12 hexadecimal digits.

    Raises:
        UserError: arrays that do not fit each other, or text that cannot be stored.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{path.name}: images are {images.dtype} {images.shape}; wanted uint8 (N, H, W, 3).")
    check_entries(path, len(images), captions, image_id, labels)
    content = content_hash(images, captions, image_id, labels)
    prints = Prints.of(image_id, enumerate(images))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        add_images(handle, images.shape)[:] = images
        add_entries(handle, image_id, captions)
        if labels is not None:
            handle.create_dataset("labels", data=_labels(path, labels))
        prints.write(handle)
        handle.attrs["hash"] = content
        seal(handle, AGAIN)
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


def add_images(handle: h5py.File, shape: tuple[int, ...]) -> h5py.Dataset:
    """Add the dataset of the images, still to be filled. One per chunk: they are read one by one, in any order."""
    return handle.create_dataset(
        "images", shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
    )


def add_entries(handle: h5py.File, image_id: NDArray[Any], captions: list[list[str]]) -> None:
    """Add image ids and captions."""
    longest = max(1, *(len(texts) for texts in captions))
    padded = [[*texts, *[""] * (longest - len(texts))] for texts in captions]
    handle.create_dataset("image_id", data=whole_numbers(image_id, "image_id").astype(np.int32))
    handle.create_dataset("captions", data=np.array(padded, dtype=object), dtype=h5py.string_dtype())


def add_captions(handle: h5py.File, captions: list[list[str]]) -> None:
    """Add captions to a file that was written without, as its attribute ``captions_hash`` then says; ``hash`` stays.

    Args:
        handle: the file, open for writing.
        captions: one list or more of each image, in the order of the file.
    """
    ids = handle["image_id"][()]
    check_entries(Path(handle.filename), len(ids), captions, ids)
    del handle["image_id"], handle["captions"]
    add_entries(handle, ids, captions)
    handle.attrs["captions_hash"] = sha256_json(captions)


def check_entries(
    path: Path,
    n_images: int,
    captions: list[list[str]],
    image_id: NDArray[Any],
    labels: NDArray[Any] | None = None,
) -> None:
    """Refuse stimuli that the reader could not give back."""
    lengths = {
        "captions": len(captions),
        "image_id": len(image_id),
        "labels": n_images if labels is None else len(labels),
    }
    for name, length in lengths.items():
        if length != n_images:
            raise UserError(f"{path.name}: {n_images} images but {length} {name}.")
    if not n_images:
        raise UserError(f"{path.name}: no image is given; a stimuli file holds at least one.")
    if len(np.unique(image_id)) != n_images:
        raise UserError(f"{path.name}: image_id holds the same image twice. Give each image one id.")
    for image, texts in zip(image_id, captions, strict=True):
        if not texts and any(captions):
            raise UserError(f"{path.name}: image {image} has no caption; give at least one each.")
        for text in texts:
            check_text(text, f"a caption of image {image}")


def _labels(source: Path, labels: Any) -> NDArray[np.int16]:
    return whole_numbers(labels, f"{source}: labels", lowest=-(2**15), highest=2**15 - 1).astype(np.int16)


class Stimuli:
    """The prepared stimuli; with ``allowed_ids`` every other image is out of reach (LeakError).

    Attributes: ``image_id`` (N,) int32 of all images; ``hash`` of the content; ``shape`` (H, W, 3).
    """

    def __init__(self, path: Path, allowed_ids: NDArray[Any] | None = None) -> None:
        """Open the file. Raises UserError where it is missing, truncated or of another kind."""
        self.path = Path(path)
        self.allowed_ids = None if allowed_ids is None else np.unique(allowed_ids)
        with open_h5(self.path) as handle:
            present = set(handle.keys())  # names, whether or not a link leads anywhere
            missing = [name for name in ("images", "image_id", "captions") if name not in present]
            if missing or "hash" not in handle.attrs:
                lack = ", ".join(missing) or "its hash"
                raise UserError(
                    f"{self.path} is not a prepared stimuli file: it lacks {lack}. "
                    "Write it with `nd prepare` or nd.data.prepared.write_stimuli."
                )
            self.image_id = self._whole(handle, "image_id").astype(np.int32)
            self.hash = attribute(handle, "hash", str)
            self._later = attribute(handle, "captions_hash", str, "")
            self.has_labels = "labels" in present
            check_linked(self.path, handle)
            layout = attribute(handle, "layout", str, "HWC")
            rows = self._whole(handle, "image_row") if "image_row" in present else np.arange(len(self.image_id))
        self._images, self._image_row = ImageFile(self.path, layout=layout), rows
        self.shape: tuple[int, ...] = self._images.shape
        self._check_rows()
        self._row = {int(i): row for row, i in enumerate(self.image_id)}

    def hash_of(self, part: str) -> str:
        """Return the hash of what "images" or "captions" depend on; captions that were added later change no image."""
        return sha256_json([self.hash, self._later]) if part == "captions" and self._later else self.hash

    def _whole(self, handle: h5py.File, name: str) -> NDArray[np.int64]:
        return whole_numbers(read_whole(handle, name, shape=(None,)), f"{self.path}: {name}")

    def _check_rows(self) -> None:
        rows, n_images = self._image_row, self._images.n_images
        if len(rows) != len(self.image_id) or rows.min(initial=0) < 0 or rows.max(initial=0) >= n_images:
            raise UserError(
                f"{self.path}: its {len(self.image_id)} images are not among the {n_images} images of "
                f"{self._images.file}. Remove {self.path} and run `nd prepare` again."
            )

    def images(self, ids: NDArray[Any]) -> NDArray[np.uint8]:
        """Return images.

        Args:
            ids: (n,) image ids, in any order.

        Returns:
            (n, H, W, 3) uint8, RGB, in the order of ``ids``.

        Raises:
            LeakError: images that this reader may not see.
            UserError: images that are not there, or a damaged file.
        """
        rows = self._rows(ids)
        out = np.empty((len(rows), *self.shape), np.uint8)
        for position, image in self._images.each(self._image_row[rows], self.image_id[rows]):
            out[position] = image
        recorded_of(self.path).check_rows("images", rows, out)
        return out

    def captions(self, ids: NDArray[Any]) -> list[list[str]]:
        """Return the captions of each image, at least one, in the order of ``ids``. UserError where there are none."""
        rows = self._rows(ids)
        with open_h5(self.path) as handle:
            texts = read_whole(handle, "captions", "O", (len(self.image_id), None))
        found = [[str(text) for text in texts[row] if text] for row in rows]
        if not all(found):
            raise UserError(
                f"{self.path} holds no captions, of which targets c and clip_text are made. Choose a method or targets "
                f"without them, or add captions by the command that prepared it, with data.captions=<file>."
            )
        return found

    @property
    def has_captions(self) -> bool:
        """Whether images have captions; either all have, or none."""
        with open_h5(self.path) as handle:
            return any(handle["captions"].asstr()[0])

    def labels(self, ids: NDArray[Any]) -> NDArray[np.int16]:
        """(n,) int16 class labels. Raises UserError where the data set has none."""
        rows = self._rows(ids)
        if not self.has_labels:
            raise UserError(f"{self.path} holds no labels. Set protocol.label_identification=false for this data set.")
        with open_h5(self.path) as handle:
            return _labels(self.path, read_whole(handle, "labels", shape=self.image_id.shape))[rows]

    def prints(self, *, kept: bool = True) -> Prints:
        """Return what tells the images of the file apart, of all of them.

        Args:
            kept: take those that were written with the images, where there are any; False computes them.
        """
        if kept:
            with open_h5(self.path) as handle:
                written = Prints.read(handle)
            if written is not None:
                return written
        return Prints.of(self.image_id, self._images.each(self._image_row, self.image_id))

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
