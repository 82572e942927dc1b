"""One self-contained page about a table: images, scores, plots, what made them. No script, no outside resource."""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nd.errors import UserError
from nd.files import read_json, write_text
from nd.runs.folder import RunFolder
from nd.tables import plots
from nd.tables.blocks import Block, blocks
from nd.tables.curves import Learning
from nd.tables.formats import PAIRED, chance_cell, difference_line, number, published_cells
from nd.tables.pictures import Gallery, data_uri, gallery, png, write_grid
from nd.tables.scores import Score
from nd.tables.specs import Column
from nd.tables.table import Table, TableRow

log = logging.getLogger(__name__)
STYLE = Path(__file__).with_suffix(".css")
LEARNING_NOTE = (
    "Training loss is the mean over an epoch, with its terms as they are weighted; the contrast changes its kind where "
    "voxels are no longer mixed (training.mixco_share). Scores are those of validation images, never of test images; a "
    "ring marks the weights that were kept. Retrieval is the share of images whose own truth correlates best with the "
    "prediction, by chance one over the number of validation images."
)


def _e(value: object) -> str:
    return html.escape(str(value))


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{_e(heading)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_e(line)}</li>' for line in lines)}</ul>" if lines else ""


def _role(role: str) -> str:
    return "" if role == "method" else f'<span class="role" style="background:{plots.ROLE_COLOURS[role]}">{role}</span>'


def gallery_html(shown: Gallery) -> str:
    """Return the images as a table: one line for the stimuli and one for each row shown."""
    lines = []
    for line, label in enumerate(shown.labels):
        cells = zip(shown.pictures[line], shown.scores[line], shown.image_ids, shown.ranks, strict=True)
        tds = "".join(
            f'<td><img alt="{_e(label)}, image {image_id}" src="{data_uri(png(image), "png")}">'
            f"{f'rank {rank}' if score is None else f'{score:.2f}'}</td>"
            for image, score, image_id, rank in cells
        )
        first = ' class="first"' if line == 0 else ""
        lines.append(f"<tr{first}><th>{_e(label)}</th>{tds}</tr>")
    rule = f'<p class="soft">{_e(shown.rule)} Below each picture: PixCorr of the image, averaged over repeats.</p>'
    return f'{rule}<table class="gallery">{"".join(lines)}</table>'


def _score_cell(score: Score | None, column: Column) -> str:
    if score is None:
        return "<td>-</td>"
    interval = f"{number(score.lo, column)} &ndash; {number(score.hi, column)}"
    return f"<td>{number(score.mean, column)}<small>{interval}</small></td>"


def _score_line(table: Table, row: TableRow) -> str:
    cells = "".join(_score_cell(row.run.scores.get(c.metric), c) for c in table.columns)
    subject = f"<td>{_e(row.subject)}</td>" if len(table.subjects) > 1 else ""
    label = f"<td>{_e(row.row.label)}{_role(row.row.role)}</td>"
    return f"<tr>{label}{subject}<td>{row.run.n_images} &times; {row.run.n_repeats}</td>{cells}</tr>"


def _arrow(table: Table, column: Column) -> str:
    name, _, arrow = table.arrow(column).rpartition(" ")
    return f"{_e(name)}&nbsp;{arrow}"


def scores_html(table: Table) -> str:
    """Return the score table with intervals and the line of chance."""
    subject = "<th>subject</th>" if len(table.subjects) > 1 else ""
    head = f"<tr><th></th>{subject}<th>images &times; repeats</th>"
    head += "".join(f"<th>{_arrow(table, c)}</th>" for c in table.columns) + "</tr>"
    lines = "".join(_score_line(table, row) for row in table.rows)
    for row in table.published_beside:
        lines += "<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in published_cells(table, row)) + "</tr>"
    blank = "<td></td>" * (2 if subject else 1)
    chance = "".join(f"<td>{chance_cell(table, c)}</td>" for c in table.columns)
    body = f'{lines}<tr class="chance"><td>chance</td>{blank}{chance}</tr>'
    return f'<table class="scores"><thead>{head}</thead><tbody>{body}</tbody></table>'


def block_html(block: Block) -> str:
    """Return a block beside the score table: its lines and what is to be said of them."""
    head, *lines = block.grid
    rows = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    heads = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    table = f'<table class="scores"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f"{table}<br>{_items(block.notes)}"


def _tuning_html(table: Table) -> str:
    """Return the kappa-eta curve, or nothing when the spec names none."""
    if not table.spec.curve:
        return ""
    path = table.spec.folder / table.spec.curve
    if not path.exists():
        log.warning("%s does not exist; the report is without its tuning curve", path)
        return ""
    tuning = read_json(path)
    try:
        figure = plots.tuning_plot(tuning)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no tuning record: {error!r} is missing or wrong.") from None
    return f'<img class="plot" alt="kappa-eta curve" src="{data_uri(plots.svg(figure), "svg+xml")}">'


def learning_html(learnings: Sequence[Learning]) -> str:
    """Return the learning curves of trained networks, those that the same rows read in one image."""
    together: dict[tuple[str, ...], list[Learning]] = {}
    for learning in learnings:
        together.setdefault(learning.rows, []).append(learning)
    parts = [f'<p class="soft">{_e(LEARNING_NOTE)}</p>'] if together else []
    for rows, group in together.items():
        who = ", ".join(rows)
        picture = data_uri(plots.svg(plots.learning_plot(group)), "svg+xml")
        parts.append(f'<h3>{_e(who)}</h3><img class="plot" alt="learning curves of {_e(who)}" src="{picture}">')
    return "".join(parts)


def _short_git(git: dict[str, Any]) -> str:
    if not git:
        return "no checkout"
    return git["revision"][:10] + (f" + changes {git['difference']}" if git["dirty"] else "")


def _provenance_line(row: TableRow, manifest: dict[str, Any], sampled: dict[str, Any]) -> str:
    facts = [
        row.row.label, row.subject, row.folder.run_id, _short_git(manifest["git"]), manifest["seeds"]["seed"],
        sampled["device"]["name"], f"{sampled['seconds']:.0f} s",
        f"{sampled['peak_memory_mb']['resident'] / 1000:.1f} GB",
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{_e(fact)}</td>" for fact in facts) + "</tr>"


def provenance_html(table: Table) -> str:
    """Return which run each row is, of which code, on what, for how long; and the package versions."""
    lines = []
    for row in table.rows:
        sampled = RunFolder.open(row.entry.cfg, "reconstruct").manifest or row.folder.manifest
        lines.append(_provenance_line(row, row.folder.manifest, sampled))
    heads = ("row", "subject", "evaluate run", "code", "seed", "images made on", "time", "peak memory")
    head = "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    manifest = table.rows[0].folder.manifest
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    versions = f"nd {manifest['nd']}, Python {manifest['python']}, {packages}"
    return f'<table class="plain">{head}{"".join(lines)}</table><p class="soft">{_e(versions)}</p>'


def page(table: Table, shown: Gallery, command: str, learnings: Sequence[Learning] = ()) -> str:
    """Return the whole page; ``learnings`` are the learning curves of its trained networks."""
    kind = "simulated" if table.rows[0].run.simulated else "measured"
    plot = f'<img class="plot" alt="scores" src="{data_uri(plots.svg(plots.score_plot(table)), "svg+xml")}">'
    differences = [difference_line(difference, table) for difference in table.differences]
    sections = [
        _section("Pictures", gallery_html(shown)),
        _section("Scores", scores_html(table), "<br>", _items(table.notes)),
        *(_section(block.heading, block_html(block)) for block in blocks(table)),
        _section(PAIRED, _items(differences)),
        _section("Scores with intervals; dashed: chance", plot),
        _section("Learning curves", learning_html(learnings)),
        _section("Guidance tuned on validation images", _tuning_html(table)),
        _section("What made this", f"<p><code>{_e(command)}</code></p>", provenance_html(table)),
    ]
    title, style = _e(table.spec.title), STYLE.read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body><main>'
        f'<h1>{title}<span class="badge {kind}">{kind} fMRI</span></h1><p class="soft">{_e(table.caption)}</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def write_report(table: Table, folder: Path, command: str, learnings: Sequence[Learning] = ()) -> list[Path]:
    """Write ``<table>.html`` and the image grid ``<table>.png``; returns both paths."""
    shown = gallery(table)
    paths = [folder / f"{table.spec.name}.html", folder / f"{table.spec.name}.png"]
    write_text(paths[0], page(table, shown, command, learnings))
    write_grid(shown, table.title, paths[1])
    return paths
