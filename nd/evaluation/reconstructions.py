"""Reconstructions as a file (``images`` (N, R, H, W, 3), ``image_id`` (N,)), and whether they are the ones wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.h5_values import dataset_of, read_whole
from nd.hdf5 import attributes_of, open_h5
from nd.runs.folder import RunFolder, found
from nd.sealed import recorded_of

AGAIN = "Remove its folder and run `nd reconstruct` again with the same data settings."
SHOWN = 5  # ids named in a message
# What the released code of each writes: brain-diffuser scripts/*.py and NeuralDiffuser src/recon.py number their images
# by where they first occur in the trials, MindEye2's files are sorted by 73k id.
ORDERS = (
    "order=first_appearance (in the subject's trials, as Brain-Diffuser and NeuralDiffuser write them) or"
    " order=canonical (rising image ids, as MindEye2 does)"
)


@dataclass(frozen=True)
class Wanted:
    """The images to be scored, ``ids`` (N,) rising, and ``in_order`` (N,), what the n-th image is of, if said.

    With ``subset`` some of them are enough.
    """

    ids: NDArray[np.int32]
    in_order: NDArray[np.int32] | None = None
    order: str = ""
    subset: bool = False

    def by_position(self, n_images: int, what: str) -> NDArray[np.int32]:
        """Ids (N,) of images that carry none. UserError: no order is given, or another count of images."""
        if self.in_order is None:
            raise UserError(
                f"{what} carry no image ids, so nothing says which image is of which image. Name files "
                "<image id>.png or <image id>_<repeat>.png (in .h5 and .pt: add image_id), or say what order they are "
                f"in: {ORDERS}."
            )
        if n_images != len(self.ids):
            raise UserError(
                f"{what} are {n_images}, but the split has {len(self.ids)}; matched by position "
                f"(order={self.order}) they must be as many. Add or remove images, or name them by image id."
            )
        return self.in_order


class Stored:
    """Images (N, R, H, W, 3) of a file, sliced like an array and read as they are asked for.

    Five images of 512 px for each of 1,000 images are 4 GB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as handle:
            images = dataset_of(handle, "images")
            self.shape: tuple[int, ...] = images.shape
            self.dtype: np.dtype[Any] = images.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Read what a slice, a place or a tuple of them asks for."""
        with open_h5(self.path) as handle:
            images = handle["images"]
            rows = np.arange(len(self))[key[0] if isinstance(key, tuple) else key]
            recorded_of(self.path).check_before("images", np.atleast_1d(rows), lambda some: images[some])
            return np.asarray(images[key])


def read_images(path: Path) -> tuple[Stored | NDArray[np.uint8], NDArray[np.int32], dict[str, Any]]:
    """Images (N, R, H, W, 3) and their ids (N,), both in rising order of ids, and the file's attributes.

    Bytes in that order stay in the file until they are asked for.
    """
    with open_h5(path) as handle:
        missing = [name for name in ("images", "image_id") if name not in handle]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}. Remove its folder and run `nd reconstruct` again.")
        image_ids = read_whole(handle, "image_id", "iu", (None,)).astype(np.int32)
        facts = attributes_of(handle)
    images = Stored(path)
    if images.ndim != 5 or images.dtype.kind not in "uf":
        raise UserError(
            f"{path}: {images.dtype} {images.shape} was found, RGB images (N, R, H, W, 3), bytes or floats, were "
            f"wanted. {AGAIN}"
        )
    check_unique(image_ids, len(images), path)
    order = np.argsort(image_ids)
    if images.dtype == np.uint8 and np.array_equal(order, np.arange(len(order))):
        return images, image_ids, facts
    return images[:][order], image_ids[order], facts


def scored_run(cfg: Config, evaluated: RunFolder) -> RunFolder:
    """Return the reconstruct run whose images an evaluate run has scored.

    Raises:
        UserError: it is gone, or another one lies in its place.
    """
    run = found(cfg, "reconstruct")
    scored = evaluated.manifest.get("inputs", {}).get("images")
    if scored is not None and scored != run.fingerprint:
        raise UserError(
            f"{run.path} is not the run that was scored. Remove {evaluated.path} and run `nd evaluate` again, which "
            "scores the images that are there."
        )
    return run


def check_unique(image_ids: NDArray[Any], n_images: int, path: Path) -> None:
    """Raise UserError unless every image has an id of its own."""
    n_ids = len(np.unique(image_ids))
    if n_images != len(image_ids) or n_ids != len(image_ids):
        raise UserError(f"{path}: {n_images} images for {n_ids} different image ids; one each is wanted.")


def check_ids(
    image_ids: NDArray[np.int32], wanted: Sequence[int] | NDArray[np.int32], path: Path, advice: str = AGAIN
) -> None:
    """Refuse other images than the wanted ones: scores of other sets are not comparable.

    Args:
        image_ids: (N,) those there are.
        wanted: those of the split.
        path: where they were found.
        advice: what to do.

    Raises:
        UserError: images are missing, or do not belong.
    """
    missing, extra = np.setdiff1d(wanted, image_ids), np.setdiff1d(image_ids, wanted)
    if missing.size or extra.size:
        raise UserError(
            f"{path} holds {len(image_ids)} images, the split has {len(wanted)}: {missing.size} missing "
            f"{missing[:SHOWN].tolist()}, {extra.size} that do not belong {extra[:SHOWN].tolist()}. {advice}"
        )


def check_external_ids(image_ids: NDArray[np.int32], wanted: Wanted, source: Path, said: str = "") -> None:
    """``check_ids`` for images made elsewhere; ``said``: what else is to be known of them."""
    hint = "Add or remove those, or choose the data, subject and split they were made for"
    hint += "." if wanted.subset else " (subset=true scores those there are)."
    if len(image_ids) == len(wanted.ids):
        hint += f" If the numbers are positions and no image ids (0.png is the first image), give {ORDERS}."
    check_ids(image_ids, np.intersect1d(wanted.ids, image_ids) if wanted.subset else wanted.ids, source, hint + said)
