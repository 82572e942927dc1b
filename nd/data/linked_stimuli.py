"""Write a stimuli file from images that lie in an HDF5 file already: linked to, or copied one by one.

The images of NSD are 40 GB, so they are read where they lie unless a copy is asked for. Either way the prepared file
gives the same images and carries the same hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.image_checks import checked
from nd.data.images import ImageFile
from nd.data.links import link
from nd.data.same_images import Prints, say_doubles
from nd.data.stimuli import add_entries, add_images, check_entries
from nd.data.subject_file import AGAIN
from nd.data.whole_numbers import LARGEST, whole_numbers
from nd.errors import UserError
from nd.files import atomic_path, sha256_array, sha256_json
from nd.hdf5 import names_in, open_h5
from nd.sealed import seal

N_HASHED = 64  # images whose pixels enter the hash: all of NSD's would take many minutes


def write_linked_stimuli(
    path: Path,
    *,
    file: Path,
    key: str,
    image_id: NDArray[Any],
    rows: NDArray[Any],
    captions: list[list[str]],
    in_place: bool,
    progress: bool = True,
) -> str:
    """Write the stimuli file atomically and return the hash of its content.

    Args:
        file, key: the HDF5 file and its dataset of images: (M, H, W, 3) or (M, 3, H, W), uint8 or floats in [0, 1].
        image_id: (N,) 0-based ids, unique.
        rows: (N,) the row of the dataset for each of them.
        captions: N lists of at least one caption.
        in_place: link to the images; False copies those needed, as uint8 (N, H, W, 3).
        progress: show a bar with rate and time left: every image is read once, to tell equal ones apart.

    Raises:
        UserError: an image file that is missing, damaged or holds something else; ids, rows and captions that do not
            fit each other.
    """
    images = open_images(file, key)
    image_id = whole_numbers(image_id, f"{path.name}: image_id").astype(np.int32)
    rows = whole_numbers(rows, f"{path.name}: rows", lowest=-LARGEST).astype(np.int32)
    check_entries(path, len(rows), captions, image_id)
    if rows.min() < 0 or rows.max() >= images.n_images:
        raise UserError(
            f"{file} holds {images.n_images} images in {key}; rows {rows.min()}..{rows.max()} are asked for. "
            "Is it the whole file? Fetch it again."
        )
    content, content_of = _hash(images, image_id, rows, captions)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        add_entries(handle, image_id, captions)
        handle.attrs.update({"hash": content, "hash_of": content_of})
        copies = None
        if in_place:
            _link(handle, file, key, images.layout, rows)
        else:
            copies = add_images(handle, (len(rows), *images.shape))
        prints = Prints.of(image_id, _looked_at(images, rows, image_id, copies, progress))
        prints.write(handle)
        seal(handle, AGAIN)
        say_doubles(prints)
    return content


def open_images(file: Path, key: str) -> ImageFile:
    """The images in dataset ``key`` of a file. UserError: missing, damaged, or something else."""
    if not file.is_file():
        raise UserError(f"the image file {file} is not there. Fetch it; `nd doctor` lists what belongs where.")
    with open_h5(file) as handle:
        if key not in handle:
            held = names_in(handle)
            raise UserError(f"{file} holds no images {key!r} but {held}. Is it the released file? Fetch it again.")
    return ImageFile(file, key)


def _hash(
    images: ImageFile, image_id: NDArray[np.int32], rows: NDArray[np.int32], captions: list[list[str]]
) -> tuple[str, str]:
    """The hash, the same for linked and for copied images, and what it is a hash of."""
    sample = np.unique(np.linspace(0, len(rows) - 1, N_HASHED).round().astype(np.int64))
    pixels = {n: sha256_array(image) for n, image in images.each(rows[sample], image_id[sample])}
    parts = [[len(rows), *images.shape], "uint8", image_id.tolist(), captions, [pixels[n] for n in sorted(pixels)]]
    return sha256_json(parts), f"ids, captions, shape and the pixels of {len(sample)} of {len(rows)} images"


def _link(handle: h5py.File, file: Path, key: str, layout: str, rows: NDArray[np.int32]) -> None:
    link(handle, "images", file, key)
    if not np.array_equal(rows, np.arange(len(rows))):
        handle.create_dataset("image_row", data=rows)
    handle.attrs["layout"] = layout


def _looked_at(
    images: ImageFile,
    rows: NDArray[np.int32],
    image_id: NDArray[np.int32],
    copies: h5py.Dataset | None,
    progress: bool,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (position, image) of all images, each checked and, where there is a place for them, copied."""
    title = "look at images" if copies is None else "copy images"
    bar = tqdm(images.each(rows, image_id), total=len(rows), unit="image", desc=title, disable=not progress)
    with bar:
        for position, image in checked(bar, image_id):
            if copies is not None:
                copies[position] = image
            yield position, image
