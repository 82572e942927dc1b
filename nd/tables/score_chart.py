"""The chart of a column: each row's mean and interval on one axis, as places in percent for the page to draw.

The page draws them as a table, so that names wrap, numbers are text and every screen size fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from nd.evaluation.scores import Score
from nd.tables.specs import Column
from nd.tables.table import Table

N_TICKS = 5
MARGIN = 0.04  # of the axis beyond the outermost value


@dataclass(frozen=True)
class Axis:
    """A linear axis."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """Return the axis that holds these values with a margin; values that are all one get an axis around it."""
        low, high = min(values), max(values)
        spread = (high - low) or abs(high) or 1.0
        return cls(low - MARGIN * spread, high + MARGIN * spread)

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis.

        >>> Axis(0.0, 2.0).place(0.5)
        25.0
        """
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, n: int = N_TICKS) -> list[float]:
        """Return about ``n`` round values within the axis."""
        found = MaxNLocator(n, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(value) for value in found if self.low <= value <= self.high]


@dataclass(frozen=True)
class Mark:
    """A mean with its interval: whose, both as text, and their places in percent."""

    subject: str
    value: str
    interval: str
    mean: float
    lo: float
    width: float


@dataclass(frozen=True)
class Bar:
    """The marks of one row, one for each subject."""

    label: str
    role: str
    marks: list[Mark]


@dataclass(frozen=True)
class ScoreChart:
    """The chart of one column.

    Attributes:
        title: the column's, with its arrow.
        bars: a row each; one without scores has no marks.
        ticks: place in percent and text.
        chance: place of what chance gives, None where that is not known or lies outside.
        chance_text: its value.
    """

    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    chance: float | None
    chance_text: str


def score_charts(table: Table) -> list[ScoreChart]:
    """Return a chart for every column of a table that any row has scores in."""
    charts = (_chart(table, column) for column in table.columns)
    return [chart for chart in charts if any(bar.marks for bar in chart.bars)]


def _chart(table: Table, column: Column) -> ScoreChart:
    scores = [(row.row.label, row.subject, row.run.scores.get(column.metric)) for row in table.rows]
    known, chance = [score for *_, score in scores if score is not None], table.chance(column)
    values = [value for score in known for value in (score.lo, score.mean, score.hi)]
    axis = Axis.over([*values, *([] if chance is None else [chance])] or [0.0])
    roles = {row.row.label: row.row.role for row in table.rows}
    bars = [
        Bar(label, role, list(_marks(axis, column, [(who, s) for name, who, s in scores if name == label])))
        for label, role in roles.items()
    ]
    return ScoreChart(
        title=table.arrow(column),
        bars=bars,
        ticks=[(axis.place(value), tick_text(value, column)) for value in axis.ticks()],
        chance=None if chance is None else axis.place(chance),
        chance_text="" if chance is None else column.shown(chance),
    )


def _marks(axis: Axis, column: Column, scores: Sequence[tuple[str, Score | None]]) -> Iterator[Mark]:
    for subject, score in scores:
        if score is not None:
            value, interval = column.shown(score.mean), f"[{column.shown(score.lo)}, {column.shown(score.hi)}]"
            width = round(axis.place(score.hi) - axis.place(score.lo), 2)
            yield Mark(subject, value, interval, axis.place(score.mean), axis.place(score.lo), width)


def tick_text(value: float, column: Column) -> str:
    """Return a tick's value as short as it can be said.

    >>> tick_text(0.30000000000000004, Column(metric="x")), tick_text(0.5, Column(metric="x", percent=True))
    ('0.3', '50%')
    """
    scaled = f"{100 * value if column.percent else value:.6g}"
    return f"{scaled}%" if column.percent else scaled
