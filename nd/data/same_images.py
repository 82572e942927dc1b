"""Whether two ids mean the same image: equal by the hash of their pixels, nearly so by small copies of them.

A stimuli file holds a print of every image, made while it is written, so that the question costs no image afterwards::

    prints/pixels (N,)       uint64   hash of the image's pixels
    prints/small  (N, P)     uint8    the image at SIDE x SIDE pixels by area means, P = SIDE * SIDE * 3

Near means a root mean square difference of small copies of at most NEAR. The same image saved as JPEG of quality 75, or
enlarged four times and reduced again, lies within 1.6; different images lie beyond 7.8 among 1,200 Scenes images and
beyond 13 among the digits of digits69.

Shapes: N images, P numbers of a small copy, A B images on either side of a split.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nd.data.whole_numbers import whole_numbers
from nd.digests import digest_rows
from nd.errors import LeakError
from nd.h5_values import read_whole
from nd.sealed import ROWS

LOG = logging.getLogger(__name__)

SIDE = 8
NEAR = 4.0  # of 255
SHOWN = 3  # pairs that a message names
BLOCK = 2048  # images compared with all others at a time: 16 MB for 2,000 test images

Pair = tuple[int, int]


@dataclass(frozen=True)
class Prints:
    """What tells images apart: ``image_id`` (N,), ``pixels`` (N,) uint64 and ``small`` (N, P) uint8.

    ``digests`` (N,), where the images were looked at, tell whether one has changed (``nd.sealed``).
    """

    image_id: NDArray[np.int32]
    pixels: NDArray[np.uint64]
    small: NDArray[np.uint8]
    digests: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, image_id: NDArray[Any], images: Iterable[tuple[int, NDArray[np.uint8]]]) -> Prints:
        """Take the prints of (place in ``image_id``, image (H, W, 3) uint8), one in memory at a time."""
        n_images = len(image_id)
        digests = np.zeros(n_images, np.uint64)
        prints = cls(
            whole_numbers(image_id, "image_id").astype(np.int32),
            np.zeros(n_images, np.uint64),
            np.zeros((n_images, SIDE * SIDE * 3), np.uint8),
            digests,
        )
        for place, image in images:
            pixels = np.ascontiguousarray(image)
            digests[place : place + 1] = digest_rows(pixels[None])
            prints.pixels[place] = int.from_bytes(hashlib.sha256(pixels.data).digest()[:8], "little")
            reduced = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.01)
            prints.small[place] = np.asarray(reduced, np.uint8).reshape(-1)
        return prints

    @classmethod
    def read(cls, handle: h5py.File) -> Prints | None:
        """Read those of an open stimuli file; None where it was written without."""
        if "prints" not in handle:
            return None
        n_images = handle["image_id"].shape
        pixels = read_whole(handle, "prints/pixels", "u", n_images)
        small = read_whole(handle, "prints/small", "u", (*n_images, SIDE * SIDE * 3))
        return cls(read_whole(handle, "image_id", "iu"), pixels, small)

    def write(self, handle: h5py.File) -> None:
        """Add them to an open stimuli file, with the digests of its images."""
        handle.create_dataset("prints/pixels", data=self.pixels)
        handle.create_dataset("prints/small", data=self.small)
        if self.digests is not None:
            handle.create_dataset(f"{ROWS}/images", data=self.digests)

    def rows(self, ids: NDArray[Any]) -> NDArray[np.intp]:
        """Places of the images ``ids`` among these; those that are not here are passed over."""
        return np.flatnonzero(np.isin(self.image_id, ids))

    def doubles(self) -> list[Pair]:
        """Return pairs of ids of equal images: the first of each group with every other."""
        order = np.lexsort((self.image_id, self.pixels))
        same = np.flatnonzero(np.diff(self.pixels[order]) == 0) + 1
        first = np.searchsorted(self.pixels[order], self.pixels[order][same])
        ids = self.image_id[order]
        return sorted(zip(ids[first].tolist(), ids[same].tolist(), strict=True))


@dataclass(frozen=True)
class Across:
    """Pairs (seen in training, test) of ids of ``equal`` images, and of ``near`` ones that are not equal."""

    equal: list[Pair] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)


def across(prints: Prints, seen: NDArray[Any], test: NDArray[Any], *, near: bool = True) -> Across:
    """Compare the images on both sides of a split.

    Args:
        prints: of all images of the data set.
        seen: (A,) ids of training and validation images.
        test: (B,) ids of test images.
        near: whether to look for near images too; it takes A x B x P multiplications.

    Returns:
        The pairs, sorted by the id of the test image.
    """
    a, b = prints.rows(seen), prints.rows(test)
    pairs = [(i, j) for i, j in _candidates(prints, a, b, near) if i != j]
    ids, pixels = prints.image_id, prints.pixels
    equal = sorted(((int(ids[i]), int(ids[j])) for i, j in pairs if pixels[i] == pixels[j]), key=_by_test)
    others = sorted(((int(ids[i]), int(ids[j])) for i, j in pairs if pixels[i] != pixels[j]), key=_by_test)
    return Across(equal, others)


def _by_test(pair: Pair) -> Pair:
    return pair[1], pair[0]


def _candidates(prints: Prints, a: NDArray[np.intp], b: NDArray[np.intp], near: bool) -> Iterable[tuple[Any, Any]]:
    """Places of the two images of every pair that is equal or, where ``near``, near."""
    if not near:
        for i in a[np.isin(prints.pixels[a], prints.pixels[b])]:
            yield from ((i, j) for j in b[prints.pixels[b] == prints.pixels[i]])
        return
    small_BP = prints.small[b].astype(np.float32)
    squares_B = (small_BP**2).sum(1)
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK]
        small_AP = prints.small[part].astype(np.float32)
        squared_AB = (small_AP**2).sum(1)[:, None] + squares_B - 2 * small_AP @ small_BP.T
        for i, j in np.argwhere(squared_AB <= NEAR**2 * small_BP.shape[1]):
            yield part[i], b[j]


def named(pairs: list[Pair]) -> str:
    """``image 4 is test image 17, image 5 is test image 18 and 3 more``."""
    shown = ", ".join(f"image {seen} is test image {test}" for seen, test in pairs[:SHOWN])
    return shown + (f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")


def check_across(found: Across, whose: str, rule: str) -> None:
    """Refuse equal images on both sides of a split, and warn of near ones.

    Args:
        found: what ``across`` found.
        whose: the subject, for messages.
        rule: ``data.same_images``: "refuse", or "allow" to warn of equal ones only.

    Raises:
        LeakError: equal images, unless they are allowed.
    """
    if found.equal:
        said = f"{len(found.equal)} test images of {whose} are training images under another id ({named(found.equal)})"
        if rule == "refuse":
            raise LeakError(
                f"{said}, so whoever remembers training images would score for it. Give equal images one id, or leave "
                "the trials of one of them out; data.same_images=allow trains on them all the same."
            )
        LOG.warning("%s; data.same_images=allow keeps them", said)
    if found.near:
        LOG.warning(
            "%d test images of %s are nearly training images (%s): look at them; where they show the same, give them "
            "one id or leave one out", len({test for _, test in found.near}), whose, named(found.near),
        )  # fmt: skip


def say_doubles(prints: Prints) -> None:
    """Warn of equal images under several ids, wherever they are used."""
    pairs = prints.doubles()
    if pairs:
        shown = ", ".join(f"{a} and {b}" for a, b in pairs[:SHOWN]) + (", ..." if len(pairs) > SHOWN else "")
        LOG.warning("%d images are equal to an image of another id (%s)", len(pairs), shown)
