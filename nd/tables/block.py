"""What stands beside the scores of a table in a grid of its own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Block:
    """A grid with a heading; its first line names the columns."""

    heading: str
    grid: list[list[str]]
    notes: list[str] = field(default_factory=list)
