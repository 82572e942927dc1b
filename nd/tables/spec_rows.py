"""What a table spec lists: columns, rows and the points of their grids, pairs, and rows that are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score: its key in ``scores.json`` and how it is shown."""

    metric: str
    name: str = ""
    percent: bool = False  # shown times 100
    decimals: int = 3

    def shown(self, value: float) -> str:
        """Return a value as the column shows it."""
        return f"{100 * value:.{max(0, self.decimals - 2)}f}%" if self.percent else f"{value:.{self.decimals}f}"

    def with_interval(self, score: Any) -> str:
        """Return ``mean [lo, hi]`` of what has these; a dash for None."""
        return "-" if score is None else f"{self.shown(score.mean)} [{self.shown(score.lo)}, {self.shown(score.hi)}]"

    def with_half_width(self, score: Any) -> str:
        """Return ``mean ±half`` of the interval, narrow enough for a terminal; a dash for None."""
        return "-" if score is None else f"{self.shown(score.mean)} ±{self.shown((score.hi - score.lo) / 2)}"

    @property
    def title(self) -> str:
        """The name shown."""
        return self.name or self.metric


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: overrides on top of the experiment, and what the row is for."""

    label: str
    overrides: list[str] = field(default_factory=list)
    role: str = "method"
    note: str = ""
    grid: dict[str, list[str]] = field(default_factory=dict)  # of a row at one point: the value of each key alone

    @property
    def keys(self) -> set[str]:
        """The keys that the row sets itself, whatever the command line says."""
        return {item.lstrip("+~").partition("=")[0] for item in self.overrides}

    @property
    def point(self) -> dict[str, str]:
        """Where the row lies on its grid: values by key, as they are written in the spec."""
        return {key: values[0] for key, values in self.grid.items()}

    def points(self) -> Iterator[Row]:
        """Yield the row at every point of its grid, the last key fastest; without a grid the row itself."""
        for values in product(*(enumerate(values) for values in self.grid.values())):
            point = {key: text for key, (_, text) in zip(self.grid, values, strict=True)}
            label = self.label
            for key, text in point.items():
                label = label.replace(f"{{{key.rpartition('.')[2]}}}", text)
            yield Point(
                label=label,
                overrides=[*self.overrides, *(f"{key}={text}" for key, text in point.items())],
                role=self.role,
                note=self.note,
                grid={key: [text] for key, text in point.items()},
                of=self.label,
                place=max((place for place, _ in values), default=0),
            )


@dataclass(frozen=True, kw_only=True)
class Point(Row):
    """A row at one point of its grid.

    Attributes:
        of: the label that the points share, with the names of keys in braces.
        place: the largest place of its values in their lists.
    """

    of: str = ""
    place: int = 0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows compared image by image: the interval of the difference ``a - b``."""

    a: str
    b: str
    metrics: list[str] = field(default_factory=list)  # none: all that both rows have


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Rows that differ in their seed alone, whose scores are averaged within an image."""

    label: str
    rows: list[str]


def grid_problems(row: Row) -> list[str]:
    """Return what is wrong with a row's grid: keys without values, values twice, a label that says less."""
    unsaid = [key for key in row.grid if f"{{{key.rpartition('.')[2]}}}" not in row.label]
    found = [f"row {row.label!r}: grid names {key} without a value" for key, values in row.grid.items() if not values]
    found += [
        f"row {row.label!r}: grid names a value of {k} twice" for k, v in row.grid.items() if len(set(v)) < len(v)
    ]
    return found + [f"row {row.label!r}: its label lacks {{{k.rpartition('.')[2]}}}, a key of its grid" for k in unsaid]
