"""People's own images, from a folder or an array, brought one by one to one square size in RGB.

A folder holds .png, .jpg or .jpeg files named by image id and nothing else (``12.png``, ``000012.jpg``); an array is a
.npy (N, H, W, 3) uint8 whose row is the image id. An image that is not square keeps its central square; one of another
size is resized (Lanczos); grey, palette and CMYK become RGB; what lies behind transparent parts becomes black. An image
that is RGB and of the right size keeps every pixel. Whatever was done is counted, recorded and said.

Orientation tags of cameras are counted, and followed where ``data.orientation`` asks for it: programs that show stimuli
(MATLAB's imread, Pillow in PsychoPy) do not follow them, so stored pixels are what was seen more often than not.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from nd.data.image_checks import checked
from nd.data.npy import open_npy
from nd.data.same_images import Prints, say_doubles
from nd.data.stimuli import add_entries, add_images, check_entries
from nd.data.subject_file import AGAIN
from nd.data.whole_numbers import LARGEST
from nd.errors import UserError
from nd.files import atomic_path, parsed_by_others, sha256_file, sha256_json, unreadable
from nd.sealed import seal

LOG = logging.getLogger(__name__)

RULE = "central square, Lanczos, RGB, black behind transparent parts"
RULES = {"stored": RULE, "tag": f"{RULE}, turned by orientation tags"}  # by data.orientation
SUFFIXES = (".png", ".jpg", ".jpeg")
NAMES = "Name images by image id and nothing else, such as 12.png or 000012.jpg."
# Modes with 8 bits a channel, in words; others would be cut off.
MODES = {
    **dict.fromkeys(("RGB", "RGBA"), ""),
    **dict.fromkeys(("1", "L", "LA"), "grey"),
    **dict.fromkeys(("P", "PA"), "palette"),
    **dict.fromkeys(("CMYK", "YCbCr"), "CMYK or YCbCr (by plain formula, without colour profile)"),
}
KEPT = "kept as stored, although their orientation tag turns them (data.orientation=tag follows it)"
SQUARED, RESIZED = "cut to the central square", "resized"
EXPECTED = (SQUARED, RESIZED, "grey turned into RGB", "palette turned into RGB")  # lose nothing that a user would miss


def reading_image(path: Path, named: str = "") -> AbstractContextManager[None]:
    """Say of whatever Pillow trips over in the body that a file is no image it can read; images of more than 179
    million pixels are among them (``Image.MAX_IMAGE_PIXELS``)."""
    return parsed_by_others(path, f"{named or path} cannot be read as an image", "Write it again, as PNG or JPEG.")


@dataclass(frozen=True)
class OwnImages:
    """Images that are read one at a time.

    Attributes: ``source`` as given; ``ids`` (N,) int32, sorted; ``files`` of a folder, in that order; ``array``
    (N, H, W, 3) uint8 instead of them; ``ignored`` names of image files that are not a number.
    """

    source: Path
    ids: NDArray[np.int32]
    files: tuple[Path, ...] = ()
    array: NDArray[np.uint8] | None = None
    ignored: tuple[str, ...] = ()

    def image(self, position: int, side: int, *, turn: bool = False) -> tuple[NDArray[np.uint8], list[str]]:
        """Return one image as it is prepared.

        Args:
            position: of its id in ``ids``.
            side: of the square, pixels.
            turn: follow the orientation tag.

        Returns:
            The image (side, side, 3) uint8, and what was done to it, in words.

        Raises:
            UserError: a damaged file, or pixels that would be cut off.
        """
        if self.array is not None:
            return squared(Image.fromarray(np.asarray(self.array[position])), side)
        path = self.files[position]
        with reading_image(path), Image.open(path) as image:
            done = _read_as(image, turn)
            image.load()
            mode = image.mode
            if mode in MODES:
                square, more = squared(ImageOps.exif_transpose(image) if turn else image, side)
                return square, done + more
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


def open_images(source: Path) -> OwnImages:
    """Look at a folder or a .npy of images. UserError: missing, no images, two files for one image."""
    if source.is_dir():
        return _open_folder(source)
    array = open_npy(source, "uint8")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(
            f"{source} is {array.dtype} {array.shape}; wanted images (images, height, width, 3) uint8, whose row is "
            "the image id, or a folder of images."
        )
    return OwnImages(source, np.arange(len(array), dtype=np.int32), array=array)


def _open_folder(folder: Path) -> OwnImages:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    by_id: dict[int, Path] = {}
    for path in found:
        if not re.fullmatch("[0-9]+", path.stem):
            continue
        if not path.is_file():
            raise unreadable(path, FileNotFoundError(ENOENT, "not there"))
        number = int(path.stem)
        if number > LARGEST:
            raise UserError(f"{path} names image {number}; image ids are at most {LARGEST}. Number them anew.")
        if number in by_id:
            raise UserError(f"{by_id[number]} and {path.name} are both image {number}. Keep one of them.")
        by_id[number] = path
    used, ids = set(by_id.values()), sorted(by_id)
    ignored = tuple(path.name for path in found if path not in used)
    images = OwnImages(folder, np.array(ids, np.int32), tuple(by_id[i] for i in ids), None, ignored)
    if not ids:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}) of an image. {images.said_of_names()}")
    return images


def _read_as(image: Image.Image, turn: bool) -> list[str]:
    """What a file holds beyond the pixels that are taken, in words; asked before they are loaded."""
    done, profile = [], image.info.get("icc_profile", b"")
    if any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        done.append("cut from 16 to 8 bits")
    if getattr(image, "n_frames", 1) > 1:
        done.append("the first of several frames")
    if profile and not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be")):
        done.append("read without their colour profile, which is not sRGB")
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):  # last: it loads a PNG
        done.append("turned by their orientation tag" if turn else KEPT)
    return done


def squared(image: Image.Image, side: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Return an image as a square in RGB.

    Args:
        image: of any mode in ``MODES`` and any size.
        side: of the square, pixels.

    Returns:
        The image (side, side, 3) uint8, and what was done to it, in words.
    """
    done, (width, height) = [], image.size
    if MODES[image.mode]:
        done.append(f"{MODES[image.mode]} turned into RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if np.asarray(layer)[..., 3].min() < 255:
            done.append("set on black")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    image = image.convert("RGB")
    if width != height:
        inner = min(width, height)
        left, top = (width - inner) // 2, (height - inner) // 2
        image = image.crop((left, top, left + inner, top + inner))
        done.append(SQUARED)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
        done.append(RESIZED)
    return np.asarray(image, np.uint8), done


def write_images(
    path: Path,
    given: OwnImages,
    side: int,
    captions: list[list[str]],
    *,
    turn: bool = False,
    check: Callable[[Prints], None] = lambda prints: None,
    progress: bool = False,
) -> str:
    """Write the stimuli file (layout: ``nd.data.stimuli``) atomically, one image in memory.

    Args:
        path: of the file.
        given: N images.
        side: of the square images, pixels.
        captions: N lists of captions; all of them may be empty.
        turn: follow orientation tags.
        check: refuses images that do not go together, before the file gets its name.
        progress: show a bar.

    Returns:
        The hash of the content.

    Raises:
        UserError: damaged, blank or saturated images, and what ``check`` refuses.
    """
    n_images = len(given.ids)
    check_entries(path, n_images, captions, given.ids)
    digest, altered = hashlib.sha256(), Counter[str]()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
        dataset = add_images(handle, (n_images, side, side, 3))

        def written() -> Iterator[tuple[int, NDArray[np.uint8]]]:
            for position in tqdm(range(n_images), unit="image", desc="images", disable=not progress):
                image, done = given.image(position, side, turn=turn)
                yield position, image
                dataset[position] = image
                digest.update(image.tobytes())
                altered.update(done)

        prints = Prints.of(given.ids, checked(written(), given.ids))
        check(prints)
        prints.write(handle)
        add_entries(handle, given.ids, captions)
        content = sha256_json([digest.hexdigest(), side, given.ids.tolist(), captions])
        handle.attrs.update({"hash": content, "altered": _said(altered, n_images)})
        seal(handle, AGAIN)
    say_doubles(prints)
    level = logging.INFO if set(altered) <= set(EXPECTED) else logging.WARNING
    LOG.log(level, "images: %s", _said(altered, n_images))
    return content


def _said(altered: Counter[str], n_images: int) -> str:
    """``3 of 12 resized``."""
    return "; ".join(f"{n} of {n_images} {what}" for what, n in sorted(altered.items())) or "as given"


def hash_of(path: Path) -> str:
    """Return the hash of a file of the user's. UserError where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise unreadable(path, error) from None
