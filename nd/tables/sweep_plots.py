"""The plot of a sweep: curves with intervals over one swept key, heat maps over two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nd.tables.sweep import SweepRow, SweepTable, number

INK, FAINT = "#2b2f36", "#c9ced6"
STYLE: Any = {
    "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "nd",
    "text.parse_math": False,
}  # fmt: skip
LOG_FROM = 20.0  # largest by smallest value of a key that is drawn on a logarithmic axis
PANELS = 12
DARK = 0.5  # share of a colour map below which text on it is white


def sweep_plot(table: SweepTable) -> Figure | None:
    """Return a panel per score of a sweep over one or two keys; of several rows one for each, of the first score.

    Returns:
        None where more keys are swept, nothing has scores, or scores do not compare.
    """
    if len(table.keys) not in (1, 2) or not table.metrics or not table.comparable or not _swept(table):
        return None
    whole = _swept(table)
    if len(table.keys) == 1 or len(whole) == 1:
        panels = [(metric, metric, [row for rows in whole.values() for row in rows]) for metric in table.metrics]
    else:
        panels = [(f"{label}: {table.metrics[0]}", table.metrics[0], rows) for label, rows in whole.items()]
    panels = panels[:PANELS]
    draw = _draw_curves if len(table.keys) == 1 else _draw_map
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 3.6 * across, 0.4 + 2.9 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False)
        for axis, (title, metric, rows) in zip(axes.flat, panels, strict=False):
            draw(axis, table, metric, rows)
            axis.set_title(title.replace(metric, table.heading(metric)), fontsize=10, loc="left")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        if len(table.keys) == 1 and len(whole) > 1:
            axes.flat[0].legend(frameon=False, fontsize=7)
    return figure


def _swept(table: SweepTable) -> dict[str, list[SweepRow]]:
    """Return the rows of a table that have all swept keys, over all points, by label."""
    keys = {*table.keys}
    return {label: rows for label, rows in table.series.items() if all(row.values.keys() >= keys for row in rows)}


def _draw_curves(axis: Any, table: SweepTable, metric: str, rows: Sequence[SweepRow]) -> None:
    """Means with their intervals over one key, a curve for each row of a table."""
    key = table.keys[0]
    numbers = [number(row.values[key]) for row in rows]
    names = list(dict.fromkeys(row.values[key] for row in rows))
    plain = bool(np.isfinite(numbers).all())
    for label, series in _swept(table).items():
        found = [(row.values[key], score) for row in series if (score := row.score(metric)) is not None]
        places = [number(value) if plain else float(names.index(value)) for value, _ in found]
        order = np.argsort(places, kind="stable")
        mean, lo, hi = (np.array([getattr(score, name) for _, score in found])[order] for name in ("mean", "lo", "hi"))
        sides = np.maximum(0, [mean - lo, hi - mean])
        axis.errorbar(np.array(places)[order], mean, yerr=sides, fmt="o-", markersize=4, capsize=2, label=label or None)
    if not plain:
        axis.set_xticks(range(len(names)), names)
    elif min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_FROM:
        axis.set_xscale("log")
    axis.set_xlabel(key)
    axis.grid(color=FAINT, linewidth=0.5)
    axis.set_axisbelow(True)


def _draw_map(axis: Any, table: SweepTable, metric: str, rows: Sequence[SweepRow]) -> None:
    """A cell for each pair of values, with its mean; a point without a score is left empty."""
    down, across = ([*dict.fromkeys(row.values[key] for row in rows)] for key in table.keys)
    grid = np.full((len(down), len(across)), np.nan)
    for row in rows:
        score = row.score(metric)
        if score is not None:
            grid[down.index(row.values[table.keys[0]]), across.index(row.values[table.keys[1]])] = score.mean
    lower = any(score.better == "lower" for row in rows if (score := row.score(metric)))
    drawn = axis.imshow(grid, cmap="viridis_r" if lower else "viridis", aspect="auto")
    shade = drawn.norm(np.ma.masked_invalid(grid))
    for (line, place), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = (shade[line, place] < DARK) != lower
            axis.text(place, line, f"{value:.3f}", ha="center", va="center", color="white" if dark else INK)
    axis.set_xticks(range(len(across)), across)
    axis.set_yticks(range(len(down)), down)
    axis.set_ylabel(table.keys[0])
    axis.set_xlabel(table.keys[1])
    axis.tick_params(length=0)
