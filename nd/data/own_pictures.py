"""People's own images, from a folder or an array, brought one by one to one square size in RGB.

A folder holds .png, .jpg or .jpeg files named by image id and nothing else (``12.png``, ``000012.jpg``); an array is a
.npy (N, H, W, 3) uint8 whose row is the image id. An image that is not square keeps its central square; one of another
size is resized (Lanczos); grey becomes RGB; what lies behind transparent parts becomes black. An image that is RGB and
of the right size keeps every pixel. Orientation tags of cameras are not followed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nd.data.npy import open_npy
from nd.data.number_list import LARGEST
from nd.data.stimuli import add_entries, add_images, check_entries
from nd.errors import UserError
from nd.files import atomic_path, sha256_file, sha256_json

LOG = logging.getLogger(__name__)

RULE = "central square, Lanczos, RGB, black behind transparent parts"
SUFFIXES = (".png", ".jpg", ".jpeg")
NAMES = "Name images by image id and nothing else, such as 12.png or 000012.jpg."
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel; others would be cut off
# What Pillow raises for damaged files of these formats, besides OSError.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class OwnPictures:
    """Pictures that are read one at a time.

    Attributes: ``source`` as given; ``ids`` (N,) int32, sorted; ``files`` of a folder, in that order; ``array``
    (N, H, W, 3) uint8 instead of them; ``ignored`` names of image files that are not a number.
    """

    source: Path
    ids: NDArray[np.int32]
    files: tuple[Path, ...] = ()
    array: NDArray[np.uint8] | None = None
    ignored: tuple[str, ...] = ()

    def picture(self, position: int, side: int) -> tuple[NDArray[np.uint8], list[str]]:
        """(side, side, 3) uint8 of the image ``ids[position]``, and what was done to it. UserError: damaged."""
        if self.array is not None:
            return squared(Image.fromarray(np.asarray(self.array[position])), side)
        path = self.files[position]
        try:
            with Image.open(path) as image:
                image.load()
                mode = image.mode
                if mode in MODES:
                    return squared(image, side)
        except DAMAGE as error:
            raise UserError(f"{path} cannot be read as an image ({error}). Write it again, as PNG or JPEG.") from None
        raise UserError(f"{path} has pixels of mode {mode}; wanted 8 bits per channel. Save it as 8-bit grey or RGB.")

    def fingerprint(self) -> str:
        """Hash of all files' content, by image id. UserError where a file cannot be read."""
        if self.array is not None:
            return hash_of(self.source)
        return sha256_json([[int(i), hash_of(path)] for i, path in zip(self.ids, self.files, strict=True)])

    def said_of_names(self) -> str:
        """How images are to be named, and how many were not."""
        if not self.ignored:
            return NAMES if self.array is None else "The row of the array is the image id."
        return f"{NAMES} Not named so and ignored: {len(self.ignored)}, such as {self.ignored[0]}."


def open_pictures(source: Path) -> OwnPictures:
    """Look at a folder or a .npy of images. UserError: missing, no images, two files for one image."""
    if source.is_dir():
        return _open_folder(source)
    array = open_npy(source, "uint8")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(
            f"{source} is {array.dtype} {array.shape}; wanted images (images, height, width, 3) uint8, whose row is "
            "the image id, or a folder of images."
        )
    return OwnPictures(source, np.arange(len(array), dtype=np.int32), array=array)


def _open_folder(folder: Path) -> OwnPictures:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    by_id: dict[int, Path] = {}
    for path in found:
        if not re.fullmatch("[0-9]+", path.stem):
            continue
        number = int(path.stem)
        if number > LARGEST:
            raise UserError(f"{path} names image {number}; image ids are at most {LARGEST}. Number them anew.")
        if number in by_id:
            raise UserError(f"{by_id[number]} and {path.name} are both image {number}. Keep one of them.")
        by_id[number] = path
    used, ids = set(by_id.values()), sorted(by_id)
    ignored = tuple(path.name for path in found if path not in used)
    pictures = OwnPictures(folder, np.array(ids, np.int32), tuple(by_id[i] for i in ids), None, ignored)
    if not ids:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}) of an image. {pictures.said_of_names()}")
    return pictures


def squared(image: Image.Image, side: int) -> tuple[NDArray[np.uint8], list[str]]:
    """(side, side, 3) uint8 of an image, and what was done to it, in words."""
    done, (width, height) = [], image.size
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if np.asarray(layer)[..., 3].min() < 255:
            done.append("set on black")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    elif image.mode != "RGB":
        done.append("turned into RGB")
    image = image.convert("RGB")
    if width != height:
        inner = min(width, height)
        left, top = (width - inner) // 2, (height - inner) // 2
        image = image.crop((left, top, left + inner, top + inner))
        done.append("cut to the central square")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
        done.append("resized")
    return np.asarray(image, np.uint8), done


def write_pictures(
    path: Path, pictures: OwnPictures, side: int, captions: list[list[str]], *, progress: bool = False
) -> str:
    """Write the stimuli file (layout: ``nd.data.stimuli``) atomically, one image in memory; return its hash.

    Args: ``side`` of the square images; ``captions``, N lists of at least one; ``progress``: show a bar.
    """
    check_entries(path, len(pictures.ids), captions, pictures.ids)
    digest, altered = hashlib.sha256(), Counter[str]()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        images = add_images(handle, (len(pictures.ids), side, side, 3))
        for position in tqdm(range(len(pictures.ids)), unit="picture", desc="pictures", disable=not progress):
            picture, done = pictures.picture(position, side)
            images[position] = picture
            digest.update(picture.tobytes())
            altered.update(done)
        add_entries(handle, pictures.ids, captions)
        content = sha256_json([digest.hexdigest(), side, pictures.ids.tolist(), captions])
        handle.attrs.update({"hash": content, "pictures": _said(altered, len(pictures.ids))})
    LOG.info("pictures: %s", _said(altered, len(pictures.ids)))
    return content


def _said(altered: Counter[str], n_pictures: int) -> str:
    """``3 of 12 resized``."""
    return "; ".join(f"{n} of {n_pictures} {what}" for what, n in sorted(altered.items())) or "as given"


def hash_of(path: Path) -> str:
    """Hash of a file of the user's. UserError where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. Check its owner and mode.") from None
