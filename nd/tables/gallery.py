"""The images of a table beside their stimuli: which images are shown, and the grid as a PNG.

Images are chosen by a fixed rule, so none is picked for its looks: all test images are ranked by the PixCorr of the
last row shown that decodes, and the shown ones lie evenly from the best to the worst.

K images shown, L rows of images, H W image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluation.reconstructions import read_images, scored_run
from nd.evaluation.scores import evenly_ranked
from nd.files import atomic_path
from nd.tables.pages import data_uri, png
from nd.tables.rows import TableRow
from nd.tables.table import Table

N_SHOWN = 12
RANKED_BY = "pixcorr"
CELL, GAP, LABEL_WIDTH, LABEL_SIZE = 120, 4, 210, 16  # of the PNG grid, pixels; the cell is about that


@dataclass(frozen=True)
class Gallery:
    """Images to show, L rows of K, with a label per row and what is said of each."""

    labels: list[str]
    images: list[NDArray[np.uint8]]  # per label, (K, H, W, 3)
    scores: list[list[float | None]]  # of each image in the metric they are ranked by; None for the stimuli
    image_ids: list[int]
    ranks: list[int]
    rule: str
    score_title: str = "PixCorr"

    def lines(self) -> Iterator[tuple[str, list[str], list[float | None]]]:
        """Label, images as URIs, and scores of each row."""
        for label, images, scores in zip(self.labels, self.images, self.scores, strict=True):
            yield label, [data_uri(png(image), "png") for image in images], scores


def ranked_row(table: Table, subject: str, among: Collection[str] = ()) -> TableRow:
    """Return the row by whose scores the images are ranked: the last of the spec's ``images`` rows that decodes.

    Args:
        table: with rows of the subject.
        subject: whose.
        among: labels of rows that may be taken; none: all.
    """
    rows = [row for row in table.rows if row.subject == subject and (not among or row.row.label in among)]
    order = {label: k for k, label in enumerate(table.spec.images)}
    rows.sort(key=lambda row: order.get(row.row.label, -1))
    shown = [row for row in rows if row.row.label in order] or rows
    return next((row for row in reversed(shown) if row.row.role == "method"), shown[0])


def ranking(table: Table, row: TableRow) -> tuple[str, str, NDArray[np.float64]]:
    """Return by which metric a row's images are ranked: PixCorr where it has that, else its first column.

    Columns of retrieval have no scores per image; where a table has no others it is the first score of an image.

    Returns:
        The metric, its title, and a number for each image (N,), the higher the better.
    """
    scored = [name for name in row.per_image if name != "image_id"]
    metric = next(name for name in (RANKED_BY, *(c.metric for c in table.columns), *scored) if name in scored)
    titles = {RANKED_BY: "PixCorr"} | {column.metric: column.title for column in table.columns}
    lower = metric in row.run.scores and row.run.scores[metric].better == "lower"
    return metric, titles.get(metric, metric), -row.per_image[metric] if lower else row.per_image[metric]


def gallery(table: Table, n_shown: int = N_SHOWN) -> Gallery:
    """Return the images of the spec's ``images`` rows for the first subject, first repeat, stimuli on top.

    Raises:
        UserError: the spec names no rows, or images are gone or not those that were scored.
    """
    rows = [row for row in table.rows if row.subject == table.subjects[0] and row.row.label in table.spec.images]
    rows.sort(key=lambda row: table.spec.images.index(row.row.label))
    if not rows:
        raise UserError(f"table {table.spec.name} shows no images. Name rows of it in its spec as `images:`.")
    ranked = ranked_row(table, table.subjects[0])
    columns, (metric, title, goodness) = ranked.per_image, ranking(table, ranked)
    chosen = evenly_ranked(goodness, n_shown)
    ids = [int(i) for i in columns["image_id"][chosen]]
    order = np.argsort(-goodness, kind="stable")
    stimuli = Stimuli(stimuli_path(rows[0].entry.cfg)).images(np.array(ids))
    return Gallery(
        labels=["stimulus", *(row.label for row in rows)],
        images=[stimuli, *(_images(row, ids) for row in rows)],
        scores=[[None] * len(ids), *(scores_of(row, metric, ids) for row in rows)],
        image_ids=ids,
        ranks=[int(np.flatnonzero(order == position)[0]) + 1 for position in chosen],
        rule=(
            f"Images are not picked by eye: the {len(columns['image_id'])} test images are ranked by {title} of "
            f"'{ranked.row.label}', and those shown lie evenly from the best to the worst. First repeat of each."
        ),
        score_title=title,
    )


def _images(row: TableRow, ids: list[int]) -> NDArray[np.uint8]:
    images, image_ids, _ = read_images(scored_run(row.entry.cfg, row.folder).output("images.h5"))
    position = {int(image_id): k for k, image_id in enumerate(image_ids)}
    return np.stack([images[position[image_id], 0] for image_id in ids])


def scores_of(row: TableRow, metric: str, ids: Sequence[int]) -> list[float | None]:
    """Return a row's scores of some images in one metric, None where it has none."""
    columns = row.per_image
    if metric not in columns:
        return [None] * len(ids)
    by_id = dict(zip(columns["image_id"].astype(int).tolist(), columns[metric].tolist(), strict=True))
    return [None if np.isnan(by_id[image_id]) else by_id[image_id] for image_id in ids]


def cell_side(side: int) -> int:
    """Return the side at which images are shown: a whole multiple of theirs, so that all pixels look alike."""
    return side * max(1, round(CELL / side)) if side <= CELL else CELL


def grid_image(shown: Gallery, title: str) -> Image.Image:
    """Return the gallery as one image: a labelled row for the stimuli and for each method."""
    cell = cell_side(shown.images[0].shape[1])
    step = cell + GAP
    size = (LABEL_WIDTH + step * len(shown.image_ids) + GAP, 40 + step * len(shown.labels) + GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LABEL_SIZE)
    draw.text((GAP + 6, 10), title, fill="#222222", font=font)
    for line, (label, images) in enumerate(zip(shown.labels, shown.images, strict=True)):
        top = 40 + line * step
        draw.multiline_text((GAP + 6, top + cell // 2), _wrapped(label), fill="#222222", font=font, anchor="lm")
        for column, image in enumerate(images):
            # Nearest neighbour where it enlarges: what was decoded is shown, not what resampling makes of it.
            rule = Image.Resampling.NEAREST if image.shape[0] <= cell else Image.Resampling.LANCZOS
            tile = Image.fromarray(image).resize((cell, cell), rule)
            canvas.paste(tile, (LABEL_WIDTH + column * step, top))
    return canvas


def _wrapped(label: str) -> str:
    return label.replace(" (", "\n(")


def write_grid(shown: Gallery, title: str, path: Path) -> Path:
    """Write the grid as PNG."""
    with atomic_path(path) as temporary:
        grid_image(shown, title).save(temporary, format="PNG", optimize=True)
    return path
