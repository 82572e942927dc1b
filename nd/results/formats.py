"""One table in four shapes: text for the terminal, Markdown, CSV (one line per score) and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from nd.files import write_text
from nd.results.scores import Score
from nd.results.specs import Column, Published
from nd.results.table import Difference, Table, TableRow

TEX_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
TEX_SYMBOLS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"}
CSV_FIELDS = (
    "table", "row", "role", "subject", "metric", "mean", "lo", "hi", "chance", "better",
    "n_images", "n_repeats", "protocol", "test_set", "simulated", "oracle", "control", "run",
)  # fmt: skip


def number(value: float, column: Column) -> str:
    """Return a value as the column shows it."""
    return f"{100 * value:.{max(0, column.decimals - 2)}f}%" if column.percent else f"{value:.{column.decimals}f}"


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
    return f"{difference.a} minus {difference.b}{who}: {column.name or column.metric} {values}{clear}"


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
    return [_head(table), *(_cells(table, row, cell) for row in table.rows), chance]


def published_line(published: Published, table: Table) -> str:
    """Return a published row: its scores, protocol and source."""
    names = {column.metric: column.name or column.metric for column in table.columns}
    scores = ", ".join(f"{names.get(metric, metric)} {value}" for metric, value in published.scores.items())
    return f"{published.label} (published; {published.protocol}): {scores}. Source: {published.source}"


def _sections(table: Table) -> list[tuple[str, list[str]]]:
    """Return what follows the grid: heading and lines."""
    paired = [difference_line(difference, table) for difference in table.differences]
    published = [published_line(row, table) for row in table.spec.published]
    return [
        ("Paired differences over images, with 95% bootstrap intervals", paired),
        ("Published, each under its own protocol: not comparable with the rows above", published),
        ("Notes", table.notes),
    ]


def text(table: Table) -> str:
    """Return the table as aligned plain text."""
    grid = _grid(table, with_half_width)
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    lines = [
        f"  {line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))
        for line in grid
    ]
    lines.insert(1, "  " + "-" * (len(lines[0]) - 2))
    lines.insert(len(lines) - 1, lines[1])
    body = [
        table.title,
        table.caption.replace("95% bootstrap intervals", "± half the 95% bootstrap interval"),
        "",
        *lines,
    ]
    for heading, items in _sections(table):
        body += ["", heading, *(f"  {item}" for item in items)] if items else []
    return "\n".join(body) + "\n"


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in _grid(table, with_interval)]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    body = [f"### {table.title}", "", table.caption, ""]
    body += ["| " + " | ".join(line) + " |" for line in [head, rule, *rows]]
    for heading, items in _sections(table):
        body += ["", f"{heading}:", "", *(f"- {item}" for item in items)] if items else []
    return "\n".join(body) + "\n"


def latex(table: Table) -> str:
    """Return the table as a LaTeX ``table`` for the booktabs package."""
    grid = [[_tex(cell) for cell in line] for line in _grid(table, with_interval)]
    head, *rows, chance = [" & ".join(line) + r" \\" for line in grid]
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}", r"\toprule"]
    lines += [head, r"\midrule", *rows, r"\midrule", chance, r"\bottomrule", r"\end{tabular}"]
    notes = "; ".join([*table.notes, *(difference_line(d, table) for d in table.differences)])
    return "\n".join([*lines, rf"\caption{{{_tex(f'{table.title}. {table.caption} {notes}')}}}", r"\end{table}"]) + "\n"


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
    """Write ``<table>.md``, ``.csv`` and ``.tex``; returns the paths."""
    shapes = {".md": markdown, ".csv": comma_separated, ".tex": latex}
    paths = [folder / f"{table.spec.name}{suffix}" for suffix in shapes]
    for path, shape in zip(paths, shapes.values(), strict=True):
        write_text(path, shape(table))
    return paths
