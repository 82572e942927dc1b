"""Consistency strips: all repeats of a few images side by side, to see what is decoded and what is drawn anew.

K images shown, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nd.data.prepared import Stimuli, stimuli_path
from nd.evaluation.scores import evenly_ranked
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.runs.folder import RunFolder
from nd.tables.gallery import ranked_row, ranking, scores_of
from nd.tables.image_browser import Source
from nd.tables.pages import data_uri
from nd.tables.rows import TableRow
from nd.tables.sprites import encoded, tile
from nd.tables.table import Table

N_SHOWN = 4
MOST_REPEATS = 6
SIDE = 128  # of a tile at most
QUALITY = 92
CONSISTENCY = "consistency_pixcorr"


@dataclass(frozen=True)
class Strip:
    """The repeats of one row for one image as one wide image, with their number and consistency, if it is known."""

    label: str
    uri: str
    repeats: int
    consistency: float | None


@dataclass(frozen=True)
class ImageStrips:
    """One image: its stimulus and the strips of the rows that made it more than once."""

    image_id: int
    stimulus: str
    strips: list[Strip]


def image_strips(table: Table, sources: Sequence[Source]) -> list[ImageStrips]:
    """Return strips of a few images for the first subject, evenly from the best to the worst; none without repeats."""
    subject = table.subjects[0]
    shown = [(row, run) for row, run in sources if row.subject == subject and row.row.label in table.spec.images]
    shown = [(row, run) for row, run in shown if row.run.n_repeats > 1]
    if not shown:
        return []
    ranked = ranked_row(table, subject)
    chosen = evenly_ranked(ranking(table, ranked)[2], N_SHOWN)
    ids = [int(i) for i in ranked.per_image["image_id"][chosen]]
    stimuli = Stimuli(stimuli_path(table.rows[0].entry.cfg)).images(np.array(ids))
    strips = [_strips_of(row, run, ids) for row, run in shown]
    return [
        ImageStrips(image_id, strip_uri([stimuli[k]]), [own[k] for own in strips if own[k].repeats > 1])
        for k, image_id in enumerate(ids)
    ]


def _strips_of(row: TableRow, run: RunFolder, ids: Sequence[int]) -> list[Strip]:
    consistency = scores_of(row, CONSISTENCY, ids)
    with open_h5(run.path / "images.h5") as handle:
        place = {int(image_id): k for k, image_id in enumerate(read_whole(handle, "image_id", "iu", (None,)))}
        repeats = [np.asarray(handle["images"][place[image_id], :MOST_REPEATS]) for image_id in ids]
    return [
        Strip(row.label, strip_uri(list(images)), len(images), score)
        for images, score in zip(repeats, consistency, strict=True)
    ]


def strip_uri(images: Sequence[NDArray[np.uint8]]) -> str:
    """Return images side by side as a URI."""
    side = min(SIDE, images[0].shape[0])
    return data_uri(encoded(np.concatenate([tile(image, side) for image in images], axis=1), QUALITY), "jpeg")
