"""Write a stimuli file from images that lie in an HDF5 file already: linked to, or copied one by one.

The images of NSD are 40 GB, so they are read where they lie unless a copy is asked for. Either way the prepared file
gives the same images and carries the same hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nd.data.pictures import PictureFile
from nd.data.stimuli import add_entries, add_images, check_entries
from nd.errors import UserError
from nd.files import atomic_path, open_h5, sha256_array, sha256_json

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
        file, key: the HDF5 file and its dataset of pictures: (M, H, W, 3) or (M, 3, H, W), uint8 or floats in [0, 1].
        image_id: (N,) 0-based ids, unique.
        rows: (N,) the row of the dataset for each of them.
        captions: N lists of at least one caption.
        in_place: link to the images; False copies those needed, as uint8 (N, H, W, 3).
        progress: show a bar with rate and time left while copying.

    Raises:
        UserError: an image file that is missing, damaged or holds something else; ids, rows and captions that do not
            fit each other.
    """
    pictures = open_pictures(file, key)
    image_id, rows = np.asarray(image_id, np.int32), np.asarray(rows, np.int32)
    check_entries(path, len(rows), captions, image_id)
    if rows.min() < 0 or rows.max() >= pictures.n_pictures:
        raise UserError(
            f"{file} holds {pictures.n_pictures} images in {key}; rows {rows.min()}..{rows.max()} are asked for. "
            "Is it the whole file? Fetch it again."
        )
    content, content_of = _hash(pictures, image_id, rows, captions)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        add_entries(handle, image_id, captions)
        handle.attrs.update({"hash": content, "hash_of": content_of})
        if in_place:
            _link(handle, file, key, pictures.layout, rows)
        else:
            _copy(handle, pictures, rows, image_id, progress)
    return content


def open_pictures(file: Path, key: str) -> PictureFile:
    """The images in dataset ``key`` of a file. UserError: missing, damaged, or something else."""
    if not file.is_file():
        raise UserError(f"the image file {file} is not there. Fetch it; `nd doctor` lists what belongs where.")
    with open_h5(file) as handle:
        if key not in handle:
            held = ", ".join(sorted(handle.keys())) or "nothing"
            raise UserError(f"{file} holds no images {key!r} but {held}. Is it the released file? Fetch it again.")
    return PictureFile(file, key)


def _hash(
    pictures: PictureFile, image_id: NDArray[np.int32], rows: NDArray[np.int32], captions: list[list[str]]
) -> tuple[str, str]:
    """The hash, the same for linked and for copied images, and what it is a hash of."""
    sample = np.unique(np.linspace(0, len(rows) - 1, N_HASHED).round().astype(np.int64))
    pixels = {n: sha256_array(picture) for n, picture in pictures.each(rows[sample], image_id[sample])}
    parts = [[len(rows), *pictures.shape], "uint8", image_id.tolist(), captions, [pixels[n] for n in sorted(pixels)]]
    return sha256_json(parts), f"ids, captions, shape and the pixels of {len(sample)} of {len(rows)} pictures"


def _link(handle: h5py.File, file: Path, key: str, layout: str, rows: NDArray[np.int32]) -> None:
    file = file.absolute()  # not resolved: the name that the user knows is said when it is gone
    handle["images"] = h5py.ExternalLink(str(file), key)
    if not np.array_equal(rows, np.arange(len(rows))):
        handle.create_dataset("image_row", data=rows)
    handle.attrs.update({"layout": layout, "linked_file": str(file), "linked_bytes": file.stat().st_size})


def _copy(
    handle: h5py.File, pictures: PictureFile, rows: NDArray[np.int32], image_id: NDArray[np.int32], progress: bool
) -> None:
    images = add_images(handle, (len(rows), *pictures.shape))
    bar = tqdm(
        pictures.each(rows, image_id), total=len(rows), unit="picture", desc="copy pictures", disable=not progress
    )
    with bar:
        for position, picture in bar:
            images[position] = picture
