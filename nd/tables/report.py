"""One self-contained page about a table: scores, images, charts, costs, what made them. No outside resource.

The page is the template ``report.html.j2`` with the looks of ``report.css``; ``report.js`` sorts tables and
``report_images.js`` browses images. All are put into the page, which reads nothing else; this module gathers what
stands in it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nd.errors import UserError
from nd.files import read_json, write_text
from nd.runs.folder import RunFolder
from nd.tables.blocks import blocks
from nd.tables.costs import costs_of
from nd.tables.curve_charts import learning_charts, tuning_charts
from nd.tables.formats import PAIRED, chance_cell, difference_line, published_cells
from nd.tables.gallery import Gallery, cell_side, gallery, write_grid
from nd.tables.heat_maps import HeatMap, table_maps, tuning_maps
from nd.tables.image_browser import Browser, browser, sources_of
from nd.tables.learning_curves import Learning
from nd.tables.line_chart import LineChart
from nd.tables.pages import template
from nd.tables.recorded import Way, ways_of
from nd.tables.roi_page import RoiImages, roi_rows, written_for
from nd.tables.score_chart import score_charts
from nd.tables.strips import ImageStrips, image_strips
from nd.tables.table import DEBUG_NOTE, Table

log = logging.getLogger(__name__)
LEARNING_NOTE = (
    "Training loss is the mean over an epoch, with its terms as they are weighted; the contrast changes its kind where "
    "voxels are no longer mixed (training.mixco_share). Scores are those of validation images, never of test images; a "
    "ring marks the weights that were kept. Retrieval is the share of images whose own truth correlates best with the "
    "prediction, by chance one over the number of validation images."
)


@dataclass(frozen=True)
class Extras:
    """What a page shows beside scores, where the runs left it.

    Attributes:
        learnings: learning curves of the table's trained networks.
        images: all images, for the browser.
        strips: repeats of a few images.
        ways: how samplers came to their images.
        rois: images of ROIs, by row.
    """

    learnings: Sequence[Learning] = ()
    images: Browser | None = None
    strips: Sequence[ImageStrips] = ()
    ways: Sequence[Way] = ()
    rois: Sequence[tuple[str, RoiImages]] = ()


def write_report(table: Table, folder: Path, command: str, learnings: Sequence[Learning] = ()) -> list[Path]:
    """Write ``<table>.html`` and the image grid ``<table>.png``; returns both paths. ``command`` makes them again.

    Raises:
        UserError: a table that shows no images, or a file that is no tuning record.
    """
    shown = gallery(table)
    paths = [folder / f"{table.spec.name}.html", folder / f"{table.spec.name}.png"]
    write_text(paths[0], page(table, shown, command, extras_of(table, learnings)))
    write_grid(shown, table.title, paths[1])
    return paths


def extras_of(table: Table, learnings: Sequence[Learning] = ()) -> Extras:
    """Return everything that the runs of a table left for its page.

    Raises:
        UserError: a file that is not what its name says.
    """
    sources = sources_of(table)
    rois = [(row.entry.label, shown) for row in table.rows for shown in written_for(row.entry.cfg)]
    return Extras(learnings, browser(table, sources), image_strips(table, sources), ways_of(table), rois)


def page(table: Table, shown: Gallery, command: str, extras: Extras | None = None) -> str:
    """Return the whole page of a table, with the images that are chosen by rank; ``command`` makes it again.

    Raises:
        UserError: a file that is no tuning record.
    """
    extras = extras or Extras()
    charts, maps = tuning(table)
    return template("report.html.j2").render(
        table=table,
        several=len(table.subjects) > 1,
        measured="simulated" if table.rows[0].run.simulated else "measured",
        debug_note=DEBUG_NOTE,
        bound=lambda text: "\xa0".join(text.rsplit(" ", 1)),  # the arrow stays on the line of the last word
        contents=[],  # the template's sections add themselves
        short=lambda heading: re.split(r"[:;,]| \(", heading)[0],
        gallery=shown,
        published=[published_cells(table, row) for row in table.published_beside],
        chance=[chance_cell(table, column) for column in table.columns],
        blocks=blocks(table),
        paired=PAIRED,
        differences=[difference_line(difference, table) for difference in table.differences],
        score_charts=score_charts(table),
        maps=table_maps(table),
        tuning_charts=charts,
        tuning_maps=maps,
        learning_note=LEARNING_NOTE,
        learning_charts=learning_charts(extras.learnings),
        images=extras.images,
        cell_side=cell_side,
        strips=extras.strips,
        ways=extras.ways,
        rois=[(label, roi_rows(one)) for label, one in extras.rois],
        costs=costs_of(table),
        command=command,
        provenance=provenance(table),
        versions=versions(table),
    )


def tuning(table: Table) -> tuple[list[LineChart], list[HeatMap]]:
    """Return curves and maps over kappa and eta, or nothing when the spec names none or its file is not there.

    Raises:
        UserError: another file.
    """
    if not table.spec.curve:
        return [], []
    path = table.spec.folder / table.spec.curve
    if not path.exists():
        log.warning("%s does not exist; the report is without its tuning curve", path)
        return [], []
    record = read_json(path)
    try:
        return tuning_charts(record), tuning_maps(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no tuning record: {error!r} is missing or wrong.") from None


def provenance(table: Table) -> list[list[str]]:
    """Return which run each row is, of which code, on what; the first line names the columns."""
    lines = [["row", "subject", "evaluate run", "code", "seed", "images made on"]]
    for row in table.rows:
        manifest = row.folder.manifest
        sampled = RunFolder.open(row.entry.cfg, "reconstruct").manifest or manifest
        lines.append([
            row.row.label, row.subject, row.folder.run_id, _short_git(manifest["git"]), str(manifest["seeds"]["seed"]),
            sampled["device"]["name"],
        ])  # fmt: skip
    return lines


def _short_git(git: dict[str, Any]) -> str:
    if not git:
        return "no checkout"
    return str(git["revision"][:10]) + (f" + changes {git['difference']}" if git["dirty"] else "")


def versions(table: Table) -> str:
    """Return the versions of the packages that scored the first row."""
    manifest = table.rows[0].folder.manifest
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return f"nd {manifest['nd']}, Python {manifest['python']}, {packages}"
