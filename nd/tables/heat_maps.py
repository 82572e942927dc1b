"""Maps of kappa by eta: the scores of rows, or of a tuning record, that lie on a grid of the two.

The page shows a map as a table with coloured cells, so that every number is text.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np

from nd.config import Config
from nd.runs.identity import identity_of
from nd.tables.rows import TableRow
from nd.tables.specs import Column
from nd.tables.table import Table

KAPPA, ETA = "guidance.kappa", "guidance.eta"
INKS = ("#000000", "#ffffff")
Place = tuple[float, float]  # kappa, eta


@dataclass(frozen=True)
class Cell:
    """One point: its value and interval as text, its colour, that of the text on it, and whether it is the best."""

    text: str
    colour: str
    ink: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A grid of etas (down) by kappas (across); a point that is not there is None."""

    title: str
    etas: list[float]
    kappas: list[float]
    cells: list[list[Cell | None]]


def table_maps(table: Table) -> list[HeatMap]:
    """Return a map per column for all rows of a table that differ in kappa and eta alone; none without a grid."""
    groups: dict[str, list[TableRow]] = defaultdict(list)
    for row in table.rows:
        if (rest := without_guidance(row.entry.cfg)) is not None:
            groups[rest].append(row)
    grids = [rows for rows in groups.values() if is_grid([place_of(row.entry.cfg) for row in rows])]
    maps = (_table_map(table, column, rows, len(grids) > 1) for rows in grids for column in table.columns)
    return [one for one in maps if one is not None]


def place_of(cfg: Config) -> Place:
    """Return kappa and eta of a configuration."""
    return float(cfg.guidance.kappa), float(cfg.guidance.eta)


def without_guidance(cfg: Config) -> str | None:
    """Return what a row's images depend on beside kappa, eta and the subject; None where nothing is guided."""
    identity = identity_of("reconstruct", cfg)
    if identity.get("guidance") == "off" or place_of(cfg)[0] == 0:
        return None
    return json.dumps({k: v for k, v in identity.items() if k not in (KAPPA, ETA, "subject.name")}, sort_keys=True)


def is_grid(places: Sequence[Place]) -> bool:
    """Whether points vary in both kappa and eta.

    >>> is_grid([(1, 0.2), (1, 0.4), (2, 0.2)]), is_grid([(1, 0.2), (2, 0.2)])
    (True, False)
    """
    return all(len({place[k] for place in places}) > 1 for k in (0, 1))


def _table_map(table: Table, column: Column, rows: Sequence[TableRow], several: bool) -> HeatMap | None:
    """The map of one column: of one subject with intervals, of several the mean of their means."""
    found: dict[Place, list[Any]] = defaultdict(list)
    for row in rows:
        if (score := row.run.scores.get(column.metric)) is not None:
            found[place_of(row.entry.cfg)].append(score)
    values = {place: float(np.mean([score.mean for score in scores])) for place, scores in found.items()}
    alone = {place: scores[0] for place, scores in found.items() if len(scores) == 1}
    intervals = {place: f"{column.shown(one.lo)} – {column.shown(one.hi)}" for place, one in alone.items()}
    who = f", mean over {len(table.subjects)} subjects" if len(table.subjects) > 1 else ""
    of = f"{rows[0].row.label}: " if several else ""
    lower = table.arrow(column).endswith("↓")
    return heat_map(f"{of}{table.arrow(column)}{who}", values, column, lower=lower, intervals=intervals)


def tuning_maps(tuning: Mapping[str, Any]) -> list[HeatMap]:
    """Return the maps of a tuning record: of decoded features and, where it has them, of true ones.

    Raises:
        KeyError, TypeError, ValueError: it is no tuning record.
    """
    metric = str(tuning["metric"])
    titles = {"points": "decoded features", "oracle_points": "true features (oracle)"}
    maps = []
    for name, title in titles.items():
        points = [point for point in tuning.get(name, []) if point["kappa"] > 0]
        values = {(float(p["kappa"]), float(p["eta"])): float(p[metric]) for p in points}
        if is_grid(list(values)):
            shown = heat_map(f"{metric}, {title}", values, Column(metric=metric))
            maps += [shown] if shown else []
    return maps


def heat_map(
    title: str,
    values: Mapping[Place, float],
    column: Column,
    *,
    lower: bool = False,
    intervals: Mapping[Place, str] | None = None,
) -> HeatMap | None:
    """Return the map of values by kappa and eta; None where there are no values.

    Args:
        title: of the map.
        values: by kappa and eta.
        column: says how a value is shown.
        lower: whether lower is better.
        intervals: as text, by kappa and eta.
    """
    known = {place: value for place, value in values.items() if math.isfinite(value)}
    if not known:
        return None
    low, high = min(known.values()), max(known.values())
    best = low if lower else high
    kappas, etas = (sorted({place[k] for place in known}) for k in (0, 1))

    def cell(place: Place) -> Cell | None:
        if place not in known:
            return None
        share = (known[place] - low) / (high - low) if high > low else 0.5
        colour = mpl.colors.to_hex(mpl.colormaps["viridis"](1 - share if lower else share))
        shown = column.shown(known[place])
        return Cell(shown, colour, ink_on(colour), (intervals or {}).get(place, ""), known[place] == best)

    return HeatMap(title, etas, kappas, [[cell((kappa, eta)) for kappa in kappas] for eta in etas])


def ink_on(colour: str) -> str:
    """Return black or white, whichever is easier to read on a colour.

    >>> ink_on("#fde725"), ink_on("#440154")
    ('#000000', '#ffffff')
    """
    return max(INKS, key=lambda ink: contrast(ink, colour))


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio").

    >>> round(contrast("#ffffff", "#000000"), 1)
    21.0
    """
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, 0 to 1 (WCAG 2.2, "relative luminance")."""
    channels = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in mpl.colors.to_rgb(colour)]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))
