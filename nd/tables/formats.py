"""One table in four shapes: text for the terminal, Markdown, CSV (one line per score) and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

from nd.files import write_text
from nd.tables.blocks import Block, blocks, published_label
from nd.tables.differences import Difference
from nd.tables.published import Published
from nd.tables.scores import Score
from nd.tables.sheets import sheets_of
from nd.tables.specs import Column
from nd.tables.table import Table, TableRow

TEX_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
TEX_SYMBOLS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
PAIRED = (
    "Paired differences over images, with 95% bootstrap intervals, sign-flip p-values (corrected: Holm) and effects"
)
CSV_FIELDS = (
    "table", "row", "role", "subject", "metric", "mean", "lo", "hi", "chance", "better",
    "n_images", "n_repeats", "protocol", "test_set", "simulated", "oracle", "control", "run",
)  # fmt: skip


def number(value: float, column: Column) -> str:
    """Return a value as the column shows it."""
    return column.shown(value)


def with_interval(score: Score | None, column: Column) -> str:
    """Return ``mean [lo, hi]``, or a dash where there is no score."""
    if score is None:
        return "-"
    return f"{number(score.mean, column)} [{number(score.lo, column)}, {number(score.hi, column)}]"


def with_half_width(score: Score | None, column: Column) -> str:
    """Return ``mean ±half`` of the interval: narrow enough for a terminal."""
    if score is None:
        return "-"
    return f"{number(score.mean, column)} ±{number((score.hi - score.lo) / 2, column)}"


def chance_cell(table: Table, column: Column) -> str:
    """Return the chance level of a column, or a dash."""
    chance = table.chance(column)
    return "-" if chance is None else number(chance, column)


def difference_line(difference: Difference, table: Table) -> str:
    """Return one paired difference as a sentence, and whether its interval leaves out 0."""
    column = next(c for c in table.columns if c.metric == difference.metric)
    values = with_interval(Score(difference.mean, difference.lo, difference.hi), column)
    clear = "" if difference.lo > 0 or difference.hi < 0 else " (interval holds 0)"
    who = f", {difference.subject}" if len(table.subjects) > 1 else ""
    said = f"{difference.a} minus {difference.b}{who}: {column.title} {values}{clear}"
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


def _cells(table: Table, row: TableRow, cell: Callable[[Score | None, Column], str]) -> list[str]:
    several = [row.subject] if len(table.subjects) > 1 else []
    samples = f"{row.run.n_images}x{row.run.n_repeats}"
    return [row.label, *several, samples, *(cell(row.run.scores.get(c.metric), c) for c in table.columns)]


def _grid(table: Table, cell: Callable[[Score | None, Column], str]) -> list[list[str]]:
    several = [""] if len(table.subjects) > 1 else []
    chance = ["chance", *several, "", *(chance_cell(table, column) for column in table.columns)]
    published = [published_cells(table, row) for row in table.published_beside]
    return [_head(table), *(_cells(table, row, cell) for row in table.rows), *published, chance]


def published_cells(table: Table, row: Published) -> list[str]:
    """A published row of the very protocol of the table: it has no interval."""
    several = [", ".join(row.subjects) or "-"] if len(table.subjects) > 1 else []
    values = [(row.scores.get(column.metric), column) for column in table.columns]
    shown = ["-" if value is None else number(value, column) for value, column in values]
    return [published_label(row), *several, str(row.n_images), *shown]


def _sections(table: Table) -> list[tuple[str, list[str]]]:
    """Return what follows the grid: heading and lines."""
    paired = [difference_line(difference, table) for difference in table.differences]
    return [
        (PAIRED, paired),
        ("Notes", table.notes),
    ]


def _aligned(grid: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    lines = [
        f"  {line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))
        for line in grid
    ]
    lines.insert(1, "  " + "-" * (len(lines[0]) - 2))
    return lines


def text(table: Table) -> str:
    """Return the table as aligned plain text."""
    lines = _aligned(_grid(table, with_half_width))
    lines.insert(len(lines) - 1, lines[1])
    caption = table.caption.replace("95% bootstrap intervals", "± half the 95% bootstrap interval")
    body = [table.title, caption, "", *lines]
    for block in blocks(table):
        body += ["", block.heading, *_aligned(block.grid), *(f"  {note}" for note in block.notes)]
    for heading, items in _sections(table):
        body += ["", heading, *(f"  {item}" for item in items)] if items else []
    return "\n".join(body) + "\n"


def _piped(grid: list[list[str]]) -> list[str]:
    head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in grid]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(line) + " |" for line in [head, rule, *rows]]


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    body = [f"### {table.title}", "", table.caption, "", *_piped(_grid(table, with_interval))]
    for block in blocks(table):
        body += ["", f"{block.heading}:", "", *_piped(block.grid)]
        body += ["", *(f"- {note}" for note in block.notes)] if block.notes else []
    for heading, items in _sections(table):
        body += ["", f"{heading}:", "", *(f"- {item}" for item in items)] if items else []
    return "\n".join(body) + "\n"


def latex(table: Table) -> str:
    """Return the table as a LaTeX ``table`` for the booktabs package; every block is a ``table`` of its own."""
    grid = _grid(table, with_interval)
    notes = "; ".join([*table.notes, *(difference_line(d, table) for d in table.differences)])
    whole = _tabular(grid[:-1], grid[-1:], f"{table.title}. {table.caption} {notes}")
    return "\n".join([whole, *(_latex_block(block) for block in blocks(table))])


def _latex_block(block: Block) -> str:
    return _tabular(block.grid, [], f"{block.heading}. {'; '.join(block.notes)}")


def _tabular(grid: list[list[str]], last: list[list[str]], caption: str) -> str:
    """A table whose last lines stand below a rule of their own."""
    head, *rows = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in grid]
    below = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in last]
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}", r"\toprule"]
    lines += [head, r"\midrule", *rows, *([r"\midrule", *below] if below else []), r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, rf"\caption{{{_tex(caption)}}}", r"\end{table}"]) + "\n"


def _tex(plain: str) -> str:
    escaped = plain.translate(TEX_ESCAPES)
    for symbol, command in TEX_SYMBOLS.items():
        escaped = escaped.replace(symbol, command)
    return escaped


def comma_separated(table: Table) -> str:
    """Return one CSV line per row, subject and metric, with everything that makes rows comparable."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for row in table.rows:
        run = row.run
        for metric, score in run.scores.items():
            chance = "" if score.chance is None else score.chance
            values = (metric, score.mean, score.lo, score.hi, chance, score.better, run.n_images, run.n_repeats)
            facts = (run.protocol, run.test_set, run.simulated, run.oracle, run.control, row.folder.run_id)
            writer.writerow((table.spec.name, row.row.label, row.row.role, row.subject, *values, *facts))
    return out.getvalue()


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``<table>.md``, ``.csv`` and ``.tex``; returns the paths.

    Comparisons, means and published rows have CSV files of their own, so that no column holds numbers of two kinds.
    """
    shapes: dict[str, Callable[[Table], str]] = {".md": markdown, ".csv": comma_separated, ".tex": latex}
    shapes |= {f"-{kind}.csv": sheet for kind, sheet in sheets_of(table).items()}
    paths = [folder / f"{table.spec.name}{suffix}" for suffix in shapes]
    for path, shape in zip(paths, shapes.values(), strict=True):
        write_text(path, shape(table))
    return paths
