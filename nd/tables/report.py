"""One self-contained page about a table: images, scores, plots, what made them. No script, no outside resource.

The page is the template ``report.html.j2``; this module gathers what stands in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nd.errors import UserError
from nd.files import read_json, write_text
from nd.runs.folder import RunFolder
from nd.tables import plots
from nd.tables.blocks import blocks
from nd.tables.formats import PAIRED, chance_cell, difference_line, published_cells
from nd.tables.gallery import Gallery, data_uri, gallery, write_grid
from nd.tables.learning_curves import Learning
from nd.tables.table import Table

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
LEARNING_NOTE = (
    "Training loss is the mean over an epoch, with its terms as they are weighted; the contrast changes its kind where "
    "voxels are no longer mixed (training.mixco_share). Scores are those of validation images, never of test images; a "
    "ring marks the weights that were kept. Retrieval is the share of images whose own truth correlates best with the "
    "prediction, by chance one over the number of validation images."
)


def write_report(table: Table, folder: Path, command: str, learnings: Sequence[Learning] = ()) -> list[Path]:
    """Write ``<table>.html`` and the image grid ``<table>.png``.

    Args:
        table: what is shown.
        folder: where the files go.
        command: what makes them again, as the page says it.
        learnings: learning curves of the table's trained networks.

    Returns:
        Both paths.

    Raises:
        UserError: a table that shows no images, or a file that is no tuning record.
    """
    shown = gallery(table)
    paths = [folder / f"{table.spec.name}.html", folder / f"{table.spec.name}.png"]
    write_text(paths[0], page(table, shown, command, learnings))
    write_grid(shown, table.title, paths[1])
    return paths


def page(table: Table, shown: Gallery, command: str, learnings: Sequence[Learning] = ()) -> str:
    """Return the whole page; arguments and errors as ``write_report``."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template("report.html.j2").render(
        table=table,
        several=len(table.subjects) > 1,
        measured="simulated" if table.rows[0].run.simulated else "measured",
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        colours=plots.ROLE_COLOURS,
        no_break=lambda text: text.replace(" ", "\xa0"),
        gallery=shown,
        published=[published_cells(table, row) for row in table.published_beside],
        chance=[chance_cell(table, column) for column in table.columns],
        blocks=blocks(table),
        paired=PAIRED,
        differences=[difference_line(difference, table) for difference in table.differences],
        score_plot=_uri(plots.score_plot(table)),
        learning_note=LEARNING_NOTE,
        learning_plots=learning_plots(learnings),
        tuning_plot=tuning_plot(table),
        command=command,
        provenance=provenance(table),
        versions=versions(table),
    )


def _uri(figure: Any) -> str:
    return data_uri(plots.svg(figure), "svg+xml")


def tuning_plot(table: Table) -> str:
    """Return the kappa-eta curve, or nothing when the spec names none or its file is not there.

    Raises:
        UserError: another file.
    """
    if not table.spec.curve:
        return ""
    path = table.spec.folder / table.spec.curve
    if not path.exists():
        log.warning("%s does not exist; the report is without its tuning curve", path)
        return ""
    tuning = read_json(path)
    try:
        return _uri(plots.tuning_plot(tuning))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no tuning record: {error!r} is missing or wrong.") from None


def learning_plots(learnings: Sequence[Learning]) -> dict[str, str]:
    """Return the learning curves of trained networks, those that the same rows read in one image, by their rows."""
    together: dict[str, list[Learning]] = {}
    for learning in learnings:
        together.setdefault(", ".join(learning.rows), []).append(learning)
    return {rows: _uri(plots.learning_plot(group)) for rows, group in together.items()}


def provenance(table: Table) -> list[list[str]]:
    """Return which run each row is, of which code, on what, for how long; the first line names the columns."""
    lines = [["row", "subject", "evaluate run", "code", "seed", "images made on", "time", "peak memory"]]
    for row in table.rows:
        manifest = row.folder.manifest
        sampled = RunFolder.open(row.entry.cfg, "reconstruct").manifest or manifest
        lines.append([
            row.row.label, row.subject, row.folder.run_id, _short_git(manifest["git"]), str(manifest["seeds"]["seed"]),
            sampled["device"]["name"], f"{sampled['seconds']:.0f} s",
            f"{sampled['peak_memory_mb']['resident'] / 1000:.1f} GB",
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
