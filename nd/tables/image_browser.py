"""What the page's browser of images shows: every scored image of every row, beside its stimulus, with its scores.

All rows of a table are of the same images (``nd.tables.rows``), so one list of ids serves them all. Where a page cannot
hold so many images, every second, third, ... by rank is kept, and the page says so.

N images of the table, T tiles on the page's sheets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluation.reconstructions import scored_run
from nd.evaluation.scores import evenly_ranked
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.runs.folder import RunFolder
from nd.tables.gallery import ranked_row, ranking
from nd.tables.rows import TableRow
from nd.tables.sprites import Sheets, Tiles, most_tiles, side_for
from nd.tables.table import Table

log = logging.getLogger(__name__)

DIGITS = 5  # of a score in the page: those that are shown, and enough to rank by
Source = tuple[TableRow, RunFolder]
MANY_ROWS = 5  # above which only the rows that the spec names as `images:` are shown at first


@dataclass(frozen=True)
class Browser:
    """The images of a page.

    Attributes:
        index: plain values, which tile and which scores belong where; see ``index_of``.
        sheets: the tiles.
        native: side of the reconstructions in pixels, from the runs.
        of: how many images the table is of.
    """

    index: dict[str, Any]
    sheets: Sheets
    native: int
    of: int

    @property
    def note(self) -> str:
        """What is shown, at which size, and what was lost."""
        n, side = len(self.index["images"]), self.sheets.side
        number = f"All {n} images" if n == self.of else f"{n} of {self.of} images, evenly from the best to the worst,"
        size = f"{side} pixels wide" + ("" if side == self.native else f" (made {self.native} wide)")
        loss = f"JPEG, quality {self.sheets.quality}" if self.sheets.quality else "without loss"
        return f"{number} of every row, first repeat, {size}, {loss}."


def sources_of(table: Table) -> list[Source]:
    """Return the rows of a table whose images are there, each with the run that made them; others with a warning."""
    return [(row, run) for row in table.rows if (run := images_of(row)) is not None]


def browser(table: Table, sources: Sequence[Source]) -> Browser | None:
    """Return the images of a table and its ``sources_of``; None where there are none."""
    if not sources:
        return None
    ranked = ranked_row(table, table.subjects[0])
    every, images = ranked.per_image["image_id"], len(sources) + 1
    kept = evenly_ranked(ranking(table, ranked)[2], max(1, most_tiles() // images))
    ids = [int(i) for i in every[kept]]
    native = _side(sources[0][1])
    tiles = Tiles(side_for(len(ids) * images, native))
    shown = Stimuli(stimuli_path(table.rows[0].entry.cfg))
    stimuli = [tiles.add(shown.images(np.array([image_id]))[0]) for image_id in ids]
    numbers = [_add(tiles, run, ids) for _, run in sources]
    index = index_of(table, [row for row, _ in sources], kept, stimuli, numbers)
    return Browser(index, tiles.sheets(), native, len(every))


def images_of(row: TableRow) -> RunFolder | None:
    """Return the run that made a row's images; None where they are gone, or are not those that were scored."""
    try:
        return scored_run(row.entry.cfg, row.folder)
    except UserError as error:
        log.warning("%s: its images are not shown: %s", row.entry.label, error)
        return None


def _side(run: RunFolder) -> int:
    with open_h5(run.path / "images.h5") as handle:
        return int(handle["images"].shape[2])


def _add(tiles: Tiles, run: RunFolder, ids: Sequence[int]) -> list[int]:
    """Add the first repeat of a run's images; returns their tiles in the order of ``ids``."""
    with open_h5(run.path / "images.h5") as handle:
        place = {int(image_id): k for k, image_id in enumerate(read_whole(handle, "image_id", "iu", (None,)))}
        return [tiles.add(np.asarray(handle["images"][place[image_id], 0])) for image_id in ids]


def index_of(
    table: Table,
    rows: Sequence[TableRow],
    kept: NDArray[np.intp],
    stimuli: Sequence[int],
    tiles: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Return what the page's script reads.

    Args:
        table: whose columns are the scores.
        rows: those with images.
        kept: positions of the images shown among the table's.
        stimuli: tile of each image's stimulus.
        tiles: by row, the tile of each image.

    Returns:
        ``images`` (ids), ``metrics``, ``subjects``, ``methods`` (the rows' labels), ``stimuli`` and ``rows``, each with
        the numbers of its method and subject, its run, its ``tiles`` and its ``scores`` by metric.
    """
    methods = {row.row.label: row.row for row in rows}
    labels, subjects = list(methods), table.subjects
    columns = [column for column in table.columns if any(column.metric in row.per_image for row in rows)]
    metrics, few = [column.metric for column in columns], len(labels) <= MANY_ROWS
    return {
        "images": rows[0].per_image["image_id"][kept].astype(int).tolist(),
        "metrics": [
            {
                "key": column.metric, "title": column.title, "lower": table.arrow(column).endswith("↓"),
                "percent": column.percent, "decimals": column.decimals,
            }
            for column in columns
        ],
        "subjects": subjects,
        "methods": [
            {"label": label, "role": row.role, "shown": few or label in table.spec.images}
            for label, row in methods.items()
        ],
        "ranked": labels.index(ranked_row(table, subjects[0], labels).row.label),
        "stimuli": list(stimuli),
        "rows": [
            {
                "method": labels.index(row.row.label), "subject": subjects.index(row.subject),
                "run": row.folder.run_id, "tiles": list(mine),
                "scores": {name: _plain(row.per_image[name][kept]) for name in metrics if name in row.per_image},
            }
            for row, mine in zip(rows, tiles, strict=True)
        ],
    }  # fmt: skip


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """Scores as JSON can hold them: rounded, None where an image has none."""
    return [None if math.isnan(value) else float(f"{value:.{DIGITS}g}") for value in values.tolist()]
