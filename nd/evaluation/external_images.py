"""Anyone's reconstructions, matched to the images they are of: a folder of images, or an array in one file.

A folder holds .png or .jpg files named ``<image id>`` or ``<image id>_<repeat>``; a file is .h5, .npy or .pt with
(N, H, W, 3), (N, R, H, W, 3) or channels first, uint8 or floats in [0, 1], and in .h5 and .pt an ``image_id`` (N,).
Where there are no ids, ``order`` says what the n-th image is of:

- ``first_appearance``: the n-th of the part's images that the subject was shown, as the released code of Brain-Diffuser
  and NeuralDiffuser numbers them (ozcelikfu/brain-diffuser@31d52c0:data/prepare_nsddata.py;
  HaoyyLi/NeuralDiffuser@9286cad:src/score_z.py: predictions follow the trials of the test).
- ``canonical``: the n-th of them by rising image id, the order of MindEye2's files.

Where images are hardly told apart by their own stimuli, the other orders are tried, and one that fits better is named.

N images, R repeats, H W image.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import Config
from nd.data.prepared import open_subject
from nd.errors import UserError
from nd.evaluation.external_files import ARRAYS, read_array, read_folder
from nd.evaluation.reconstructions import Wanted
from nd.files import HASH_CHARS, located
from nd.generate.inputs import part_ids
from nd.metrics.identification import two_way_identification
from nd.metrics.images import check_images, n_overshooting, resize, to_float

log = logging.getLogger(__name__)

ORDER_NAMES = ("first_appearance", "canonical")
ALIKE = 0.6  # identification by pixels below which an order is doubted; chance is .5
BETTER = 0.1  # by how much another order must do better to be named
SIDE = 32  # at which orders are compared: enough for layout, and 1,000 images take a moment


@dataclass(frozen=True)
class ExternalImages:
    """Images (N, R, H, W, 3), uint8 or floats in [0, 1], their ids (N,) int32, rising, and what their file says."""

    images: NDArray[Any]
    image_ids: NDArray[np.int32]
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """12 hexadecimal digits of the pixels, their type and the ids, the same from whatever form of file they came.

        Floats and bytes are told apart even where they mean the same pixels: floats are resized as they are.
        """
        images = self.images
        digest = hashlib.sha256(f"{images.dtype.str}{images.shape}{self.image_ids.tolist()}".encode())
        for image in images:
            digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()[:HASH_CHARS]


def read_external(cfg: Config) -> ExternalImages:
    """Read the images of ``cfg.images`` and match them to the images of ``cfg.part``.

    Raises:
        UserError: missing, foreign or doubled images, another count, no ids and no order, other forms of file,
            unreadable files, grey, NaN or 0-255 float pixels, sizes that differ or are not square, other contents than
            ``cfg.images_hash``.
    """
    source, wanted = located(cfg.images), wanted_of(cfg)
    if source.is_dir():
        external = ExternalImages(*read_folder(source, wanted))
    elif source.suffix.lower() in ARRAYS:
        external = ExternalImages(*read_array(source, wanted))
    else:
        raise UserError(f"images={source}: wanted a folder of .png or .jpg, or one file {', '.join(ARRAYS)}.")
    _check(external, source)
    if found := n_overshooting(external.images):
        log.warning("%s: %d values lie outside [0, 1], by at most a grey level; they are clamped", source, found)
    if cfg.images_hash not in ("", external.hash):
        raise UserError(
            f"{source} holds other images (hash {external.hash}) than images_hash={cfg.images_hash} asks for. Give "
            "those images, or leave images_hash out: it is filled in."
        )
    return external


def wanted_of(cfg: Config) -> Wanted:
    """The images of ``cfg.part``, and in which order images without ids are, if ``cfg.order`` says so.

    Raises:
        UserError: ``order=first_appearance`` where the subject was not shown all of them.
    """
    ids = np.array(part_ids(cfg), np.int32)
    in_order = {"": None, "canonical": ids}
    if cfg.order not in in_order:
        return Wanted(ids, first_appearance(cfg, ids), cfg.order)
    return Wanted(ids, in_order[cfg.order], cfg.order, cfg.subset)


def first_appearance(cfg: Config, ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """The images ``ids`` (N,) in the order in which the subject first saw them. UserError: not all were shown."""
    subject = open_subject(cfg)
    rows = subject.rows_of(ids)
    shown = subject.image_id[rows[np.argsort(subject.trial[rows], kind="stable")]]
    found, first = np.unique(shown, return_index=True)
    missing = np.setdiff1d(ids, found)
    if missing.size:
        raise UserError(
            f"order=first_appearance: {subject.path.name} has no trial of {missing.size} of the {len(ids)} images "
            f"{missing[:5].tolist()}, so their place is not known. Name the images by image id, or give "
            "order=canonical."
        )
    return np.asarray(shown[np.sort(first)], np.int32)


def doubted_order(cfg: Config, external: ExternalImages, shown: NDArray[np.uint8]) -> str:
    """Say whether images given by position fit another known order better; '' where there is no reason to doubt.

    Args:
        cfg: whose ``order`` they were read in.
        external: the images, by rising id.
        shown: (N, H, W, 3) uint8, the stimuli in the same order.
    """
    if not cfg.order:
        return ""
    pred, true = (_small(images) for images in (external.images[:, 0], shown))
    known = {name: _order(replace(cfg, order=name)) for name in ORDER_NAMES}
    orders = {name: ids for name, ids in known.items() if ids is not None}
    place = np.argsort(np.argsort(orders[cfg.order]))  # of the n-th image of the file among the rising ids
    shares = {}
    for name, ids in orders.items():
        rows = np.argsort(np.argsort(ids))  # its stimulus, were it in that order
        shares[name] = float(two_way_identification(pred[place], true[rows]).mean())
    own, best = shares[cfg.order], max(shares, key=shares.__getitem__)
    if own >= ALIKE:
        return ""
    said = f"order={cfg.order}: identification by pixels is {own:.2f}, near chance (.50)"
    if shares[best] < own + BETTER:
        return f"{said}, and no better in any other known order ({', '.join(n for n in shares if n != cfg.order)})."
    return f"{said}; by order={best} it is {shares[best]:.2f}. Were the images made in that order? Give order={best}."


def _order(cfg: Config) -> NDArray[np.int32] | None:
    """The ids in an order, or None where the subject was not shown all of them."""
    try:
        return wanted_of(cfg).in_order
    except UserError:
        return None


def _small(images: NDArray[Any]) -> Tensor:
    return torch.cat([resize(to_float(image[None]), SIDE, "bilinear", antialias=True) for image in images])


def _check(external: ExternalImages, source: Path) -> None:
    height, width = external.images.shape[2:4]
    if height != width:
        long, short = max(height, width), min(height, width)
        beside = f" Where they are {long // short} images in one, cut them apart and save <image id>_<repeat>.png."
        raise UserError(
            f"{source}: images of {width} x {height} pixels; square images are wanted. Crop them first."
            + (beside if long % short == 0 else "")
        )
    for image, image_id in zip(external.images, external.image_ids, strict=True):
        check_images(image, f"{source}: image {image_id}")
