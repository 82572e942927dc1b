"""Reconstructions made elsewhere, read from a folder of images or from an array in one file.

A folder holds .png or .jpg files: ``12.png`` and ``000012_0.png`` are of image 12, the second its repeat 0. With an
order given, numbers in names are positions: ``00000.png`` is the first image, ``3_1.png`` repeat 1 of the fourth; other
names hold one image each and come in the order of their names, numbers inside them compared as numbers.

A file is .h5 (``images``, optional ``image_id``), .npy, or .pt: a tensor, or a dict of the names of .h5, read without
running any code it may carry. Channels are last, or first as PyTorch has them.

N images, R repeats, H W image.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nd.data.npy import open_npy
from nd.data.own_images import SUFFIXES, reading_image
from nd.data.whole_numbers import LARGEST, whole_numbers
from nd.errors import UserError
from nd.evaluation.reconstructions import Wanted, check_external_ids, check_unique
from nd.h5_values import read_whole
from nd.hdf5 import attributes_of, names_in, open_h5

NUMBERED = re.compile(r"([0-9]+)(?:_([0-9]+))?")
CODE = re.compile(r"GLOBAL ([\w.]+)")  # the class that a pickle asks for, in PyTorch's message
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
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts]


def _by_name(files: list[Path], folder: Path, wanted: Wanted) -> dict[int, Repeats]:
    """Files by image id and repeat. UserError: none is named so, or they are not the wanted images."""
    named = [path for path in files if NUMBERED.fullmatch(path.stem)]
    if not named:
        wanted.by_position(len(files), f"{folder}: its images (such as {files[0].name})")
    by_id, ignored = _grouped(named, folder), len(files) - len(named)
    said = f" Left out, since not named by image id: {ignored}." if ignored else ""
    check_external_ids(np.array(sorted(by_id), np.int32), wanted, folder, said)
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
    first = _read(files_NR[0][0], ids[0])
    out = np.empty((len(files_NR), len(files_NR[0]), *first.shape), np.uint8)
    for n, files in enumerate(files_NR):
        for r, path in enumerate(files):
            image = _read(path, ids[n])
            if image.shape != first.shape:
                raise UserError(
                    f"{path} (image {ids[n]}) has {_size(image)} pixels, but {files_NR[0][0].name} {_size(first)}; "
                    "images of one size are wanted. Resize them, all by the same rule."
                )
            out[n, r] = image
    return out


def _read(path: Path, image_id: int) -> NDArray[Any]:
    """(H, W, 3) uint8. UserError: damaged, or of another mode than RGB."""
    with reading_image(path, f"{path} (image {image_id})"), Image.open(path) as image:
        deep = any("16" in str(tile[3]) for tile in image.tile)  # Pillow drops half of each number in silence
        image.load()
        mode, pixels = image.mode, np.asarray(image)
    if deep and mode == "RGB":
        raise UserError(
            f"{path} (image {image_id}) has 16 bits per channel; RGB with 8 is wanted, since rounding is part of a"
            " score. Save it so, or all images as floats in [0, 1] (.npy, .h5 or .pt)."
        )
    if mode != "RGB":
        what = "greyscale" if mode in ("1", "L", "LA", "I", "I;16", "F") else f"of mode {mode}"
        raise UserError(
            f"{path} (image {image_id}) is {what}; RGB with 8 bits per channel is wanted. Save it so: "
            "Image.open(path).convert('RGB')."
        )
    return pixels


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


# ---- an array

IMAGES, IDS = "images", "image_id"
FORMS = "(N, H, W, 3), (N, R, H, W, 3), (N, 3, H, W) or (N, R, 3, H, W)"
Content = tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]


def read_array(path: Path, wanted: Wanted) -> tuple[NDArray[Any], NDArray[np.int32], dict[str, Any]]:
    """Images (N, R, H, W, 3) and ids (N,), both by rising id, and the attributes of an .h5.

    Raises:
        UserError: another form, grey images, ids that are missing, foreign or doubled, no ids and no order, ids
            beside an order, an unreadable file.
    """
    values, ids, facts = ARRAYS[path.suffix.lower()](path)
    images = with_repeats(values, path)
    if ids is None:
        ids = wanted.by_position(len(images), f"{path}: its images")
    elif wanted.order:
        raise UserError(f"{path} holds {IDS}, which says what each image is of; leave order={wanted.order} out.")
    else:
        ids = whole_numbers(ids, f"{path}: {IDS}")
        check_unique(ids, len(images), path)
        check_external_ids(ids.astype(np.int32), wanted, path)
    order = np.argsort(ids)
    return images[order], np.asarray(ids, np.int32)[order], facts


def with_repeats(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """(N, R, H, W, 3) of images in any of ``FORMS``. UserError: another one."""
    last, first = values.ndim in (4, 5) and values.shape[-1] == 3, values.ndim in (4, 5) and values.shape[-3] == 3
    if not (last or first) or 0 in values.shape:
        grey = values.ndim == 3 or (values.ndim in (4, 5) and 1 in (values.shape[-1], values.shape[-3]))
        advice = " Greyscale images are wanted as RGB: repeat their channel three times." if grey else ""
        raise UserError(f"{path}: shape {values.shape} was found, RGB images {FORMS} are wanted.{advice}")
    images = values if last else np.moveaxis(values, -3, -1)
    return images if images.ndim == 5 else images[:, None]


def _from_h5(path: Path) -> Content:
    with open_h5(path) as handle:
        if not isinstance(handle.get(IMAGES), h5py.Dataset):
            raise UserError(f"{path} has no dataset {IMAGES}; it holds {names_in(handle)}. Name it so.")
        ids = read_whole(handle, IDS) if IDS in set(handle) else None
        facts = attributes_of(handle)
        return read_whole(handle, IMAGES), _numbers(ids, path), facts


def _from_npy(path: Path) -> Content:
    return open_npy(path, "uint8"), None, {}


def _from_pt(path: Path) -> Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the parsers of zip files and pickles raise nearly everything
        raise UserError(
            f"{path} cannot be read as plain tensors ({_reason(error)}). Save the tensor alone: "
            "torch.save(images, path)."
        ) from None
    held = content if isinstance(content, dict) else {IMAGES: content}
    if not isinstance(held.get(IMAGES), torch.Tensor):
        names = ", ".join(str(name) for name in held) if held is content else type(content).__name__
        raise UserError(f"{path} holds {names}; wanted a tensor, or a dict with {IMAGES} and perhaps {IDS}.")
    images = held[IMAGES]
    images = images.float() if images.dtype == torch.bfloat16 else images  # numpy has no bfloat16
    ids = held.get(IDS)
    return _plain(images, IMAGES, path), _numbers(None if ids is None else _plain(ids, IDS, path), path), {}


def _plain(held: Any, name: str, path: Path) -> NDArray[Any]:
    """What a file holds as an array. UserError: NumPy has nothing like it, as with sparse or quantised tensors."""
    try:
        return held.numpy(force=True) if isinstance(held, torch.Tensor) else np.asarray(held)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: {name} cannot be read as an array ({_reason(error)}). Save plain, dense tensors: images as uint8"
            f" or float32, {IDS} as int64."
        ) from None


def _reason(error: Exception) -> str:
    """What PyTorch says, in a line; of pickled code, what it would have run, not how to run it all the same."""
    if isinstance(error, pickle.UnpicklingError):
        found = CODE.search(str(error))
        return f"it holds {found.group(1)}, which is code" if found else "it is no file of tensors, or holds code"
    return str(error).strip().split("\n", 1)[0][:120]


def _numbers(ids: Any, path: Path) -> NDArray[Any] | None:
    """The ids (N,) as they are, if there are any. UserError: not whole numbers (N,)."""
    if ids is None:
        return None
    if np.ndim(ids) != 1 or np.asarray(ids).dtype.kind not in "iu":
        found = f"{np.asarray(ids).dtype} {np.shape(ids)}"
        raise UserError(f"{path}: {IDS} is {found}; whole numbers (N,), one for each image, are wanted.")
    return np.asarray(ids)


ARRAYS: dict[str, Callable[[Path], Content]] = {
    ".h5": _from_h5,
    ".hdf5": _from_h5,
    ".npy": _from_npy,
    ".pt": _from_pt,
}
