"""An array of reconstructions in one file: .h5 (``images``, optional ``image_id``), .npy, or .pt.

A .pt holds a tensor, or a dict of the names of .h5; it is read without running any code it may carry.

N images, R repeats, H W image; channels are last, or first as PyTorch has them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from nd.data.npy import open_npy
from nd.data.whole_numbers import whole_numbers
from nd.errors import UserError
from nd.evaluation.reconstructions import Wanted, check_given_ids, check_unique
from nd.files import open_h5

IMAGES, IDS = "images", "image_id"
FORMS = "(N, H, W, 3), (N, R, H, W, 3), (N, 3, H, W) or (N, R, 3, H, W)"
Content = tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]


def read_array(path: Path, wanted: Wanted) -> tuple[NDArray[Any], NDArray[np.int32], dict[str, Any]]:
    """Pictures (N, R, H, W, 3) and ids (N,), both by rising id, and the attributes of an .h5.

    Raises:
        UserError: another form, grey images, ids that are missing, foreign or doubled, no ids and no order, ids
            beside an order, an unreadable file.
    """
    values, ids, facts = ARRAYS[path.suffix.lower()](path)
    images = with_repeats(values, path)
    if ids is None:
        ids = wanted.by_position(len(images), f"{path}: its pictures")
    elif wanted.order:
        raise UserError(f"{path} holds {IDS}, which says what each image is of; leave order={wanted.order} out.")
    else:
        ids = whole_numbers(ids, f"{path}: {IDS}")
        check_unique(ids, len(images), path)
        check_given_ids(ids.astype(np.int32), wanted, path)
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
            raise UserError(f"{path} has no dataset {IMAGES}; it holds {', '.join(handle) or 'nothing'}. Name it so.")
        try:
            ids = handle[IDS][()] if IDS in handle else None
            return handle[IMAGES][()], _numbers(ids, path), dict(handle.attrs)
        except OSError as error:
            raise UserError(f"{path} is damaged ({error}). Write it again.") from None


def _from_npy(path: Path) -> Content:
    return open_npy(path, "uint8"), None, {}


def _from_pt(path: Path) -> Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n", 1)[0][:120]
        raise UserError(
            f"{path} cannot be read as plain tensors ({reason}). Save the tensor alone: torch.save(images, path)."
        ) from None
    held = content if isinstance(content, dict) else {IMAGES: content}
    if not isinstance(held.get(IMAGES), torch.Tensor):
        names = ", ".join(str(name) for name in held) if held is content else type(content).__name__
        raise UserError(f"{path} holds {names}; wanted a tensor, or a dict with {IMAGES} and perhaps {IDS}.")
    images = held[IMAGES]
    images = images.float() if images.dtype == torch.bfloat16 else images  # numpy has no bfloat16
    ids = held.get(IDS)
    return images.numpy(force=True), _numbers(None if ids is None else np.asarray(ids), path), {}


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
