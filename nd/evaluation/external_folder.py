"""A folder of reconstructions: .png or .jpg files named by image id, or in a known order.

``12.png`` and ``000012_0.png`` are of image 12, the second its repeat 0. With an order given, numbers in names are
positions: ``00000.png`` is the first image, ``3_1.png`` repeat 1 of the fourth; other names hold one image each and
come in the order of their names, numbers inside them compared as numbers.

N images, R repeats, H W image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nd.data.own_images import DAMAGE, SUFFIXES
from nd.data.whole_numbers import LARGEST
from nd.errors import UserError
from nd.evaluation.reconstructions import Wanted, check_given_ids

NUMBERED = re.compile(r"([0-9]+)(?:_([0-9]+))?")
Repeats = dict[int, Path]


def read_folder(folder: Path, wanted: Wanted) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Images (N, R, H, W, 3) and ids (N,) of a folder, by rising id.

    Raises:
        UserError: no images, ids that are missing, foreign or doubled, repeats that differ, no ids and no order,
            files that cannot be read, are not RGB, or differ in size.
    """
    files = sorted((path for path in folder.iterdir() if _is_image(path)), key=_natural)
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
    by_id = _by_position(files, folder, wanted) if wanted.order else _by_name(files, folder, wanted)
    _check_repeats(by_id, folder)
    ids = sorted(by_id)
    return _pixels([[path for _, path in sorted(by_id[i].items())] for i in ids], ids), np.array(ids, np.int32)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which 9.png comes before 10.png."""
    parts = re.split("([0-9]+)", path.stem)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _by_name(files: list[Path], folder: Path, wanted: Wanted) -> dict[int, Repeats]:
    """Files by image id and repeat. UserError: none is named so, or they are not the wanted images."""
    named = [path for path in files if NUMBERED.fullmatch(path.stem)]
    if not named:
        wanted.by_position(len(files), f"{folder}: its images (such as {files[0].name})")
    by_id, ignored = _grouped(named, folder), len(files) - len(named)
    said = f" Left out, since not named by image id: {ignored}." if ignored else ""
    check_given_ids(np.array(sorted(by_id), np.int32), wanted, folder, said)
    return by_id


def _by_position(files: list[Path], folder: Path, wanted: Wanted) -> dict[int, Repeats]:
    """Files by the id of the image whose place they have. UserError: another count."""
    if all(NUMBERED.fullmatch(path.stem) for path in files):
        places = [repeats for _, repeats in sorted(_grouped(files, folder).items())]
    else:
        places = [{0: path} for path in files]
    ids = wanted.by_position(len(places), f"{folder}: its images")
    return {int(image_id): repeats for image_id, repeats in zip(ids, places, strict=True)}


def _grouped(files: Iterable[Path], folder: Path) -> dict[int, Repeats]:
    """Files by the numbers of their names; a name without a repeat is repeat 0."""
    groups: dict[int, Repeats] = {}
    for path in files:
        match = NUMBERED.fullmatch(path.stem)
        number, repeat = (int(text or 0) for text in match.groups()) if match else (0, 0)
        if number > LARGEST:
            raise UserError(f"{path} names image {number}; image ids are at most {LARGEST}.")
        group = groups.setdefault(number, {})
        if repeat in group:
            raise UserError(
                f"{folder}: {group[repeat].name} and {path.name} are both repeat {repeat} of image {number}. Keep one."
            )
        group[repeat] = path
    return groups


def _check_repeats(by_id: dict[int, Repeats], folder: Path) -> None:
    """Scores are means over the repeats, so every image needs the same ones."""
    every = sorted({repeat for repeats in by_id.values() for repeat in repeats})
    for image_id, repeats in by_id.items():
        absent = sorted(set(every) - set(repeats))
        if absent:
            raise UserError(
                f"{folder}: image {image_id} lacks repeat {absent[0]}, which others have; {len(every)} of every "
                f"image are wanted ({next(iter(repeats.values())).name} is there)."
            )


def _pixels(files_NR: list[list[Path]], ids: list[int]) -> NDArray[np.uint8]:
    """(N, R, H, W, 3) uint8, read one by one."""
    first = _image(files_NR[0][0], ids[0])
    out = np.empty((len(files_NR), len(files_NR[0]), *first.shape), np.uint8)
    for n, files in enumerate(files_NR):
        for r, path in enumerate(files):
            image = _image(path, ids[n])
            if image.shape != first.shape:
                raise UserError(
                    f"{path} (image {ids[n]}) has {_size(image)} pixels, but {files_NR[0][0].name} {_size(first)}; "
                    "images of one size are wanted. Resize them, all by the same rule."
                )
            out[n, r] = image
    return out


def _image(path: Path, image_id: int) -> NDArray[Any]:
    """(H, W, 3) uint8. UserError: damaged, or of another mode than RGB."""
    try:
        with Image.open(path) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image)
    except DAMAGE as error:
        raise UserError(f"{path} (image {image_id}) cannot be read as an image ({error}). Write it again.") from None
    if mode != "RGB":
        what = "greyscale" if mode in ("1", "L", "LA", "I", "I;16", "F") else f"of mode {mode}"
        raise UserError(
            f"{path} (image {image_id}) is {what}; RGB with 8 bits per channel is wanted. Save it so: "
            "Image.open(path).convert('RGB')."
        )
    return pixels


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
