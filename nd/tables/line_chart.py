"""A chart of lines as SVG within a page: it takes the page's colours, and says its numbers to who cannot see it.

Learning curves, losses of an optimisation and scores over a guidance scale are drawn by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator

from nd.tables.score_chart import Axis

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 40
N_COLOURS = 8  # classes c0, c1, ... of the page's style
MOST_DOTS = 40  # of a line: more are a line alone


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: in the legend; lines of one name share a colour.
        points: (x, y), x rising; values that are not finite are left out.
        ring: an x whose point gets a ring.
        level: a line across the whole chart at the y of its first point, dashed.
    """

    name: str
    points: Points
    ring: float | None = None
    level: bool = False


@dataclass(frozen=True)
class LineChart:
    """A chart.

    Attributes:
        title: what is drawn.
        x_label, y_label: of the axes.
        lines: drawn one over the other.
        log_x: powers of ten are equally far apart; needs positive x.
        ring_name: what a ring says.
        y_over: values that the y axis holds beside those drawn, so that charts can share a scale.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    log_x: bool = False
    ring_name: str = "kept"
    y_over: Sequence[float] = ()

    @property
    def names(self) -> dict[str, int]:
        """The legend: names with the number of their colour."""
        return {name: k % N_COLOURS for k, name in enumerate(dict.fromkeys(line.name for line in self.lines))}

    @property
    def said(self) -> str:
        """The numbers of the chart in words."""
        return f"{self.title}. {self.y_label} over {self.x_label}. " + " ".join(map(_said, self.lines))

    @property
    def svg(self) -> Markup:
        """The chart."""
        return Markup("").join(_drawn(self))


def finite(line: Line) -> list[tuple[float, float]]:
    """Return the points of a line that can be drawn."""
    return [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]


def _said(line: Line) -> str:
    points = finite(line)
    if not points:
        return f"{line.name}: no values."
    if line.level:
        return f"{line.name}: {points[0][1]:.4g}."
    (x0, y0), (x1, y1) = points[0], points[-1]
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    ring = "" if line.ring is None else f", marked at {line.ring:g}"
    return f"{line.name}: {y0:.4g} at {x0:g}, {y1:.4g} at {x1:g}, from {lowest:.4g} to {highest:.4g}{ring}."


def _drawn(chart: LineChart) -> Iterator[Markup]:
    tag = Markup('<svg class="lines" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{said}">')
    yield tag.format(w=WIDTH, h=HEIGHT, said=chart.said)
    scale: Callable[[float], float] = math.log10 if chart.log_x else float
    points = [point for line in chart.lines for point in finite(line)]
    if points:
        xs = [scale(x) for line in chart.lines if not line.level for x, _ in finite(line)] or [0.0]
        across, up = Axis.over(xs), Axis.over([*(y for _, y in points), *chart.y_over])

        def x_at(x: float) -> float:
            return round(LEFT + across.place(scale(x)) / 100 * (WIDTH - LEFT - RIGHT), 1)

        def y_at(y: float) -> float:
            return round(HEIGHT - BOTTOM - up.place(y) / 100 * (HEIGHT - TOP - BOTTOM), 1)

        yield from _axes(chart, across, up, x_at, y_at)
        for line in chart.lines:
            yield from _line(line, chart.names[line.name], x_at, y_at)
    yield Markup("</svg>")


Place = Callable[[float], float]


def _axes(chart: LineChart, across: Axis, up: Axis, x_at: Place, y_at: Place) -> Iterator[Markup]:
    low, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in up.ticks(5):
        y = y_at(value)
        yield Markup('<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}" text-anchor="end">{:g}</text>').format(
            LEFT, y, right, LEFT - 6, y + 4, float(f"{value:.6g}")
        )
    for value in x_ticks(chart, across):
        tick = Markup('<text x="{}" y="{}" text-anchor="middle">{:g}</text>')
        yield tick.format(x_at(value), low + 16, float(f"{value:.6g}"))
    label = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    yield label.format((LEFT + right) / 2, HEIGHT - 6, chart.x_label)


def x_ticks(chart: LineChart, across: Axis) -> list[float]:
    """Return the values at which the x axis is marked: of a logarithmic one those drawn, where they are few."""
    if not chart.log_x:
        return [value for value in across.ticks(5) if value == int(value) or across.high - across.low < 3]
    drawn = sorted({x for line in chart.lines if not line.level for x, _ in finite(line)})
    if len(drawn) <= 6:
        return drawn
    return [x for x in LogLocator().tick_values(10**across.low, 10**across.high) if drawn[0] <= x <= drawn[-1]]


def _line(line: Line, colour: int, x_at: Place, y_at: Place) -> Iterator[Markup]:
    points = finite(line)
    if not points:
        return
    name = escape(line.name)
    if line.level:
        level = Markup('<path class="c{} level" d="M{} {}H{}"><title>{}: {:.4g}</title></path>')
        yield level.format(colour, LEFT, y_at(points[0][1]), WIDTH - RIGHT, name, points[0][1])
        return
    path = " ".join(f"{x_at(x)},{y_at(y)}" for x, y in points)
    yield Markup('<polyline class="c{}" points="{}"><title>{}</title></polyline>').format(colour, path, name)
    dot = Markup('<circle class="c{} dot" cx="{}" cy="{}" r="2.5"><title>{}, {:g}: {:.4g}</title></circle>')
    for x, y in points if len(points) <= MOST_DOTS else []:
        yield dot.format(colour, x_at(x), y_at(y), name, x, y)
    ring = Markup('<circle class="ring" cx="{}" cy="{}" r="6"><title>{:g}: {:.4g}</title></circle>')
    for x, y in points:
        if x == line.ring:
            yield ring.format(x_at(x), y_at(y), x, y)
