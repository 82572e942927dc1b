"""Plots of a report: scores with their intervals, learning curves, and the tuning curve of guidance.

Drawn as SVG, without a display.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from nd.tables.learning_curves import TOTAL, Curve, Learning, Series
from nd.tables.specs import Column
from nd.tables.table import Table

ROLE_COLOURS = {
    "method": "#1f6fb2", "reference": "#c27c0e", "oracle": "#2c8a57", "control": "#b5423c", "floor": "#7a7f87",
}  # fmt: skip
TERM_COLOURS = {
    "tokens": "#1f6fb2", "prior": "#c27c0e", "contrast": "#2c8a57", "latent": "#b5423c", "aux": "#7a4fb3",
}  # fmt: skip
# What is shown of the scores on validation images, and in which colour.
SHOWN_SCORES = {"correlation": "#1f6fb2", "retrieval": "#2c8a57"}
INK, FAINT, OTHER_COLOUR = "#2b2f36", "#c9ced6", "#7a7f87"
STYLE: Any = {
    "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "nd",
    "text.parse_math": False,
}  # fmt: skip


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG; equal figures give equal bytes."""
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return out.getvalue()


def score_plot(table: Table) -> Figure:
    """One panel per column of the table: each row's mean and interval, and the level of chance as a dashed line."""
    columns = table.columns
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 2.5 * across, down * (0.75 + 0.24 * len(table.rows))), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharey=True)
        for panel, column in zip(panels.flat, columns, strict=False):
            _draw_scores(panel, table, column)
        for panel in panels.flat[len(columns) :]:
            panel.set_visible(False)
    return figure


def _draw_scores(panel: Any, table: Table, column: Column) -> None:
    scale = 100.0 if column.percent else 1.0
    for line, row in enumerate(table.rows):
        score = row.run.scores.get(column.metric)
        if score is None:
            continue
        colour = ROLE_COLOURS[row.row.role]
        panel.plot([scale * score.lo, scale * score.hi], [line, line], color=colour, linewidth=2.2, alpha=0.55)
        panel.plot([scale * score.mean], [line], "o", color=colour, markersize=5)
    chance = table.chance(column)
    if chance is not None:
        panel.axvline(scale * chance, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    names = [row.row.label + (f" {row.subject}" if len(table.subjects) > 1 else "") for row in table.rows]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="x", color=FAINT, linewidth=0.5)
    panel.tick_params(length=0)
    panel.set_axisbelow(True)
    panel.set_title(table.arrow(column) + (" (%)" if column.percent else ""), fontsize=10, loc="left")


def tuning_plot(tuning: dict[str, Any]) -> Figure:
    """The score on validation images over kappa, one line per eta, with the chosen point marked.

    Args:
        tuning: as in ``tuning.json``: ``metric``; ``points``, each with ``kappa``, ``eta`` and the metric; ``chosen``
            with ``kappa`` and ``eta``; ``n_images``; and perhaps ``oracle_points``, the same for true features.
    """
    metric, chosen = tuning["metric"], tuning["chosen"]
    series = {"decoded features": tuning["points"], "true features (oracle)": tuning.get("oracle_points", [])}
    series = {title: points for title, points in series.items() if points}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 4.2 * len(series), 3.2), layout="constrained")
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for panel, (title, points) in zip(panels, series.items(), strict=True):
            _draw_tuning(panel, points, metric, chosen)
            panel.set_title(title, fontsize=10, loc="left")
        panels[0].set_ylabel(f"{metric}, {tuning['n_images']} validation images")
        panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_tuning(panel: Any, points: list[dict[str, Any]], metric: str, chosen: dict[str, float]) -> None:
    guided = [point for point in points if point["kappa"] > 0]
    etas = sorted({point["eta"] for point in guided})
    for k, eta in enumerate(etas):
        line = sorted((point["kappa"], point[metric]) for point in guided if point["eta"] == eta)
        colour = mpl.colormaps["viridis"](0.1 + 0.75 * k / max(1, len(etas) - 1))
        panel.plot(*zip(*line, strict=True), "o-", color=colour, markersize=4, label=f"eta {eta:g}")
    for unguided in [point[metric] for point in points if point["kappa"] == 0][:1]:
        panel.axhline(unguided, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="no guidance")
    best = [p[metric] for p in points if (p["kappa"], p["eta"]) == (chosen["kappa"], chosen["eta"])]
    label = f"chosen: kappa {chosen['kappa']:g}, eta {chosen['eta']:g}"
    kappas = [chosen["kappa"]] * len(best)
    panel.plot(kappas, best, "o", markersize=12, fillstyle="none", color=INK, linestyle="none", label=label)
    panel.set_xscale("log")
    panel.set_xticks(sorted({point["kappa"] for point in guided}))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_xlabel("kappa, guidance scale")
    panel.grid(color=FAINT, linewidth=0.5)


def learning_plot(learnings: Sequence[Learning]) -> Figure:
    """Loss in training and scores on validation images over epochs: a line of panels per target, stages side by side.

    Every fold of the split is a line; a ring marks the weights that were kept. Scores that none has are left out.
    """
    curves = [curve for learning in learnings for stage in learning.stages for curve in stage.curves]
    scores = [name for name in SHOWN_SCORES if any(name in curve.scores for curve in curves)]
    n_stages = max(len(learning.stages) for learning in learnings)
    with mpl.rc_context(STYLE):
        size = ((1 + len(scores)) * (0.8 + 1.6 * n_stages), 0.2 + 2.4 * len(learnings))
        figure = Figure(figsize=size, layout="constrained")
        groups = figure.subfigures(len(learnings), 1 + len(scores), squeeze=False)
        for line, learning in enumerate(learnings):
            _draw_losses(groups[line][0], learning)
            for group, name in zip(groups[line][1:], scores, strict=True):
                _draw_validation(group, learning, name)
    return figure


def _stage_panels(group: Any, learning: Learning, label: str) -> list[tuple[Any, list[Curve]]]:
    """Panels of one quantity with a common scale, one for each stage, and the curves that belong there."""
    panels = group.subplots(1, len(learning.stages), sharey=True, squeeze=False)[0]
    for panel, stage in zip(panels, learning.stages, strict=True):
        panel.set_title(stage.title, fontsize=8, loc="left")
        panel.set_xlabel("epochs")
        panel.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        panel.grid(color=FAINT, linewidth=0.5)
        panel.tick_params(length=0)
        panel.set_axisbelow(True)
    panels[0].set_ylabel(f"{learning.target}: {label}")
    return [(panel, stage.curves) for panel, stage in zip(panels, learning.stages, strict=True)]


def _draw_losses(group: Any, learning: Learning) -> None:
    panels = _stage_panels(group, learning, "training loss")
    for panel, curves in panels:
        for fold, curve in enumerate(curves):
            for name, series in curve.losses.items():
                width, colour = (1.6, INK) if name == TOTAL else (1.0, TERM_COLOURS.get(name, OTHER_COLOUR))
                panel.plot(*_xy(series), color=colour, linewidth=width, label=None if fold else name)
    last = panels[-1][0]
    if len(last.get_legend_handles_labels()[0]) > 1:
        last.legend(frameon=False, fontsize=7, loc="upper right")


def _draw_validation(group: Any, learning: Learning, name: str) -> None:
    ring = {"markersize": 9, "fillstyle": "none", "color": INK, "linestyle": "none", "label": "kept"}
    for panel, curves in _stage_panels(group, learning, f"validation {name}"):
        for curve in curves:
            series = curve.scores.get(name, [])
            panel.plot(*_xy(series), "o-", color=SHOWN_SCORES[name], markersize=2.5, linewidth=1.2)
            panel.plot(*_xy([point for point in series if point[0] == curve.kept]), "o", **ring)


def _xy(series: Series) -> tuple[list[int], list[float]]:
    return [n_epochs for n_epochs, _ in series], [value for _, value in series]
