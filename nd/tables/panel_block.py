"""The validity panel as a block: a grid of where methods stand, and the findings in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nd.evaluation.ceiling import VoxelCeiling
from nd.evaluation.diversity import Decoded
from nd.evaluation.panel import Finding, Standing
from nd.tables.block import Block
from nd.tables.specs import Column
from nd.tables.table import Table

HEADING = "Validity panel: methods between their floors and their ceiling"
NONE_FOUND = (
    "nothing found: every method is above its floors and controls, below its oracle, and controls are at chance"
)
DIVERSITY = "Diversity: effective dimension of what was decoded, and of the true features of the same images"
DIVERSITY_HOW = (
    "effective dimension: participation ratio of the eigenvalues of the covariance over images; a decoder that names "
    "one of a few stored answers has few dimensions"
)
HOW = (
    "differences are over the same images, positive where the row named first is better, with uncorrected 95% "
    "intervals; no better: the interval holds 0; share of the way: from the best floor (0%) to the best oracle (100%)"
)


def panel_blocks(table: Table) -> list[Block]:
    """Return the panel of a table and the diversity of what was decoded.

    Empty where no row is a floor, an oracle or a control.
    """
    panel = table.panel
    if not panel.standings:
        return []
    several = len(table.subjects) > 1
    head = ["", *(["subject"] if several else []), "score", "best floor", "method", "oracle", "share of the way"]
    lines = [_line(standing, table.columns, several) for standing in panel.standings]
    findings = _sentences(panel.findings, table.columns, several) or [NONE_FOUND]
    ceilings = [_ceiling(ceiling) for ceiling in panel.ceilings]
    return [Block(HEADING, [head, *lines], [*findings, HOW, *ceilings]), *_diversity(panel.decoded, several)]


def _ceiling(found: VoxelCeiling) -> str:
    return (
        f"noise ceiling of {found.subject}'s {found.n_voxels} voxels, the explainable share of the variance of means "
        f"over {found.n_trials:.3g} trials: median {found.median:.2f}, 95th percentile {found.high:.2f}"
    )


def _diversity(decoded: Sequence[Decoded], several: bool) -> list[Block]:
    if not decoded:
        return []
    head = [
        "decoded for",
        *(["subject"] if several else []),
        "target",
        "images",
        "predicted",
        "true",
        "predicted / true",
    ]
    lines = [
        [
            ", ".join(one.labels),
            *([one.subject] if several else []),
            one.target,
            str(one.diversity.n),
            *(f"{value:.1f}" for value in (one.diversity.predicted, one.diversity.true)),
            f"{one.diversity.ratio:.2f}",
        ]
        for one in decoded
    ]
    return [Block(DIVERSITY, [head, *lines], [DIVERSITY_HOW])]


def _line(standing: Standing, columns: Sequence[Column], several: bool) -> list[str]:
    column = _column(standing.metric, columns)
    values = [_value(value, column) for value in (standing.floor, standing.score, standing.oracle)]
    share = "-" if math.isnan(standing.share) else f"{standing.share:.0%}"
    return [standing.label, *([standing.subject] if several else []), column.title, *values, share]


def _value(value: float, column: Column) -> str:
    return "-" if math.isnan(value) else column.shown(value)


def _sentences(findings: Sequence[Finding], columns: Sequence[Column], several: bool) -> list[str]:
    """One line for each thing said of a row, with the metrics it holds for."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        together.setdefault((one.label, one.subject, one.text), []).extend(_numbers(one, columns))
    return [
        f"{label}{f', {subject}' if several else ''}: {text}" + (f" ({'; '.join(numbers)})" if numbers else "")
        for (label, subject, text), numbers in together.items()
    ]


def _numbers(finding: Finding, columns: Sequence[Column]) -> list[str]:
    if finding.difference is None:
        return []
    column, found = _column(finding.metric, columns), finding.difference
    return [f"{column.title} {column.shown(found.mean)} [{column.shown(found.lo)}, {column.shown(found.hi)}]"]


def _column(metric: str, columns: Sequence[Column]) -> Column:
    return next(column for column in columns if column.metric == metric)
