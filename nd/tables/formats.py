"""One table in three shapes: text for the terminal, Markdown and LaTeX (booktabs), written by pandas.

All are made of one grid of texts, so they hold the same numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nd.evaluation.scores import Score
from nd.files import write_text
from nd.tables.blocks import Block, blocks, published_label
from nd.tables.csv_export import csv_files
from nd.tables.published import Published
from nd.tables.specs import Column
from nd.tables.statistics import Difference
from nd.tables.table import Table, TableRow

if TYPE_CHECKING:
    import pandas as pd

TEX_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
    | {"\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)
# What CommonMark and GitHub take for markup, and what they do only at the beginning of a paragraph.
MARKUP = re.compile(r"[\\`*~$#]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|!(?=\[)")
BEGINNING = re.compile(r"^(\d*)([>+=-]|[.)](?= |$))")
PAIRED = (
    "Paired differences over images, with 95% bootstrap intervals, sign-flip p-values (corrected: Holm) and effects"
)
ShowScore = Callable[[Column, Score | None], str]


def chance_cell(table: Table, column: Column) -> str:
    """Return the chance level of a column, or a dash."""
    chance = table.chance(column)
    return "-" if chance is None else column.shown(chance)


def difference_line(difference: Difference, table: Table) -> str:
    """Return one paired difference as a sentence, and whether its interval leaves out 0."""
    column = next(c for c in table.columns if c.metric == difference.metric)
    clear = "" if difference.lo > 0 or difference.hi < 0 else " (interval holds 0)"
    who = f", {difference.subject}" if len(table.subjects) > 1 else ""
    said = f"{difference.a} minus {difference.b}{who}: {column.title} {column.with_interval(difference)}{clear}"
    effect = "-" if math.isnan(difference.d_z) else f"{difference.d_z:.2f}"
    return (
        f"{said}; p {probability(difference.p)}, corrected {probability(difference.p_holm)}; "
        f"d_z {effect}, rank-biserial {difference.rank_biserial:.2f}"
    )


def probability(p: float) -> str:
    """Return a p-value with as many digits as are of use."""
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _head(table: Table) -> list[str]:
    several = ["subject"] if len(table.subjects) > 1 else []
    return ["", *several, "images", *(table.arrow(column) for column in table.columns)]


def _cells(table: Table, row: TableRow, cell: ShowScore) -> list[str]:
    several = [row.subject] if len(table.subjects) > 1 else []
    samples = f"{row.run.n_images}x{row.run.n_repeats}"
    return [row.label, *several, samples, *(cell(c, row.run.scores.get(c.metric)) for c in table.columns)]


def score_grid(table: Table, cell: ShowScore) -> list[list[str]]:
    """Return the scores of a table as texts, the line of heads first and that of chance last."""
    several = [""] if len(table.subjects) > 1 else []
    chance = ["chance", *several, "", *(chance_cell(table, column) for column in table.columns)]
    published = [published_cells(table, row) for row in table.published_beside]
    return [_head(table), *(_cells(table, row, cell) for row in table.rows), *published, chance]


def published_cells(table: Table, row: Published) -> list[str]:
    """A published row of the very protocol of the table: it has no interval."""
    several = [", ".join(row.subjects) or "-"] if len(table.subjects) > 1 else []
    values = [(row.scores.get(column.metric), column) for column in table.columns]
    shown = ["-" if value is None else column.shown(value) for value, column in values]
    return [published_label(row), *several, str(row.n_images), *shown]


def _frame(grid: list[list[str]]) -> pd.DataFrame:
    """A grid whose first line names the columns."""
    import pandas as pd  # here, where files are written: it takes a third of a second to load

    return pd.DataFrame(grid[1:], columns=grid[0], dtype=object)


def _lines(grid: list[list[str]], shape: str) -> str:
    """A grid as text in a shape of tabulate's, labels to the left and numbers to the right, none of them touched."""
    align = ["left"] + ["right"] * (len(grid[0]) - 1)
    return str(_frame(grid).to_markdown(index=False, tablefmt=shape, disable_numparse=True, colalign=align))


def text(table: Table) -> str:
    """Return the table as aligned plain text."""
    caption = table.caption.replace("95% bootstrap intervals", "± half the 95% bootstrap interval")
    body = [table.title, caption, "", _lines(score_grid(table, Column.with_half_width), "simple")]
    for block in blocks(table):
        body += ["", block.heading, _lines(block.grid, "simple"), *(f"  {note}" for note in block.notes)]
    for heading, items in _sections(table).items():
        body += ["", heading, *(f"  {item}" for item in items)]
    return "\n".join(body) + "\n"


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    body = [
        f"### {_md(table.title)}",
        "",
        _paragraph(table.caption),
        "",
        _piped(score_grid(table, Column.with_interval)),
    ]
    for block in blocks(table):
        body += ["", f"{_paragraph(block.heading)}:", "", _piped(block.grid)]
        body += ["", *(f"- {_paragraph(note)}" for note in block.notes)] if block.notes else []
    for heading, items in _sections(table).items():
        body += ["", f"{heading}:", "", *(f"- {_paragraph(item)}" for item in items)]
    return "\n".join(body) + "\n"


def _piped(grid: list[list[str]]) -> str:
    return _lines([[_md(cell).replace("|", "\\|") for cell in line] for line in grid], "pipe")


def _md(plain: str) -> str:
    return MARKUP.sub(r"\\\g<0>", plain)


def _paragraph(plain: str) -> str:
    return BEGINNING.sub(r"\1\\\2", _md(plain.strip()))


def _sections(table: Table) -> dict[str, list[str]]:
    """What follows the grids, lines by heading; only what has lines."""
    paired = [difference_line(difference, table) for difference in table.differences]
    return {heading: lines for heading, lines in ((PAIRED, paired), ("Notes", table.notes)) if lines}


def latex(table: Table) -> str:
    """Return the table as a LaTeX ``table`` for the booktabs package; every block is a ``table`` of its own."""
    notes = "; ".join([*table.notes, *(difference_line(d, table) for d in table.differences)])
    whole = Block(f"{table.title}. {table.caption} {notes}", score_grid(table, Column.with_interval))
    return "\n".join(_latex(block) for block in (whole, *blocks(table)))


def _latex(block: Block) -> str:
    caption = f"{block.heading}. {'; '.join(block.notes)}" if block.notes else block.heading
    frame = _frame([[_tex(cell) for cell in line] for line in block.grid])
    align = "l" + "r" * (len(block.grid[0]) - 1)
    return str(frame.to_latex(index=False, caption=_tex(caption), column_format=align))


def _tex(plain: str) -> str:
    return plain.translate(TEX_ESCAPES)


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``<table>.md``, ``.csv``, ``.tex`` and a CSV file for each further kind of numbers; returns the paths.

    Raises:
        UserError: the system refuses to write.
    """
    contents = {".md": markdown(table), ".csv": "", ".tex": latex(table)} | csv_files(table)
    for suffix, content in contents.items():
        write_text(folder / f"{table.spec.name}{suffix}", content)
    return [folder / f"{table.spec.name}{suffix}" for suffix in contents]
