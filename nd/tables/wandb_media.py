"""What W&B shows of results: scores of each image beside its images, a grid of them, and tables with their files.

N images, R repeats, H W image, K shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nd.evaluation.scores import PerImage, evenly_ranked
from nd.runs.catalogue import MAIN_SCORES

LARGEST = 128  # pixels; larger images are shown smaller
GAP = 2  # white pixels between images
GRID = 12  # images of the grid
MOST_REPEATS = 5  # shown of an image


@dataclass(frozen=True)
class Pairs:
    """Stimuli beside what was made of them, all of one size, from the best to the worst.

    Attributes:
        image_ids: (K,).
        stimuli: K images (H, W, 3) uint8.
        made: for each up to five reconstructions (H, W, 3) uint8.
    """

    image_ids: list[int]
    stimuli: list[NDArray[np.uint8]]
    made: list[list[NDArray[np.uint8]]]

    def some(self, n_shown: int) -> Pairs:
        """Return fewer of them, evenly spaced."""
        kept = evenly_ranked(-np.arange(len(self.image_ids), dtype=np.float64), n_shown)
        return Pairs([self.image_ids[k] for k in kept], [self.stimuli[k] for k in kept], [self.made[k] for k in kept])


def pair(image_ids: Sequence[int], stimuli: NDArray[Any], made: Sequence[NDArray[Any]]) -> Pairs:
    """Return stimuli beside their reconstructions, shrunk to 128 pixels where they are larger.

    Args:
        image_ids: (K,).
        stimuli: (K, h, w, 3) uint8.
        made: K arrays (R, H, W, 3), uint8 or floats in [0, 1].
    """
    side = min(LARGEST, max(stimuli.shape[1], made[0].shape[1])) if len(made) else LARGEST
    return Pairs(
        [int(image_id) for image_id in image_ids],
        [sized(image, side) for image in stimuli],
        [[sized(image, side) for image in repeats[:MOST_REPEATS]] for repeats in made],
    )


def sized(image: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3), uint8 or floats in [0, 1], as uint8 with a side of so many pixels."""
    if image.dtype != np.uint8:
        image = np.clip(image.astype(np.float64) * 255, 0, 255).round().astype(np.uint8)
    if image.shape[:2] == (side, side):
        return image
    # Nearest neighbour where it enlarges: what was made is shown, not what resampling makes of it.
    rule = Image.Resampling.LANCZOS if image.shape[0] > side else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((side, side), rule))


def ranked_by(scores: PerImage) -> str:
    """Return the score by which images are ranked: the first main one that there is."""
    there = [name for name in scores if name != "image_id"]
    return next((name for name in MAIN_SCORES if name in there), there[0])


def per_image_table(wandb: Any, scores: PerImage, pairs: Pairs | None) -> Any:
    """Return a table with a row per image: its id, images where there are any, and every score.

    Args:
        wandb: the package.
        scores: columns of ``per_image.csv``.
        pairs: of some of the images; None: no column of images.
    """
    ids = scores["image_id"].astype(int).tolist()
    names = [name for name in scores if name != "image_id"]
    columns = ["image_id", *(["stimulus", "reconstructions"] if pairs is not None else []), *names]
    shown = _cells(wandb, pairs) if pairs is not None else {}
    rows = []
    for row, image_id in enumerate(ids):
        values = [float(scores[name][row]) for name in names]
        images = shown.get(image_id, [None, None]) if pairs is not None else []
        rows.append([image_id, *images, *(None if np.isnan(value) else value for value in values)])
    return wandb.Table(columns=columns, data=rows)


def _cells(wandb: Any, pairs: Pairs) -> dict[int, list[Any]]:
    each = zip(pairs.image_ids, pairs.stimuli, pairs.made, strict=True)
    return {
        image_id: [wandb.Image(image, file_type="png") for image in (stimulus, beside(made))]
        for image_id, stimulus, made in each
    }


def beside(images: Sequence[NDArray[np.uint8]], axis: int = 1) -> NDArray[np.uint8]:
    """Return images (H, W, 3) of one size in a row, or below each other (``axis=0``), white between them.

    >>> beside([np.zeros((4, 4, 3), np.uint8)] * 2).shape
    (4, 10, 3)
    """
    shape = list(images[0].shape)
    shape[axis] = GAP
    white = np.full(shape, 255, np.uint8)
    return np.concatenate([part for image in images for part in (white, image)][1:], axis=axis)


def grid(pairs: Pairs) -> NDArray[np.uint8]:
    """Return some of the pairs as one image: stimuli above, each with its reconstructions below it."""
    some = pairs.some(GRID)
    return beside([beside([stimulus, *made], axis=0) for stimulus, made in zip(some.stimuli, some.made, strict=True)])


def caption(pairs: Pairs, scores: PerImage) -> str:
    """Return what a grid shows, and by which rule."""
    ids = ", ".join(map(str, pairs.some(GRID).image_ids))
    return f"stimuli, and reconstructions below, from the best to the worst by {ranked_by(scores)}: images {ids}"


def files_artifact(wandb: Any, name: str, kind: str, files: Sequence[Path]) -> Any:
    """Return an artifact that holds files under their own names."""
    artifact = wandb.Artifact(name, type=kind)
    for path in files:
        artifact.add_file(str(path), name=path.name)
    return artifact
