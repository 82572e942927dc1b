"""The runs of a sweep: points of a table or grid, those that are the same run together, each with how far it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from nd.config.sweeps import Point
from nd.run import rows_at
from nd.runs.chain import STATES, Step, failure_of, state_of, steps_of
from nd.runs.identity import run_id
from nd.sweeps.work import is_taken
from nd.tables.specs import Entry

Values = dict[str, str]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep and the points that it stands for: the swept keys' values, each with its row of the table."""

    id: str
    points: tuple[tuple[Values, Entry], ...]

    @property
    def entry(self) -> Entry:
        """Its row; of several that are the same run the first."""
        return self.points[0][1]

    @property
    def steps(self) -> list[Step]:
        """What leads to its scores."""
        return steps_of(self.entry.cfg)

    @property
    def state(self) -> str:
        """One of ``STATES``."""
        return state_of(self.steps)

    @property
    def taken(self) -> bool:
        """Whether another process is making it."""
        return is_taken(self.steps)

    @property
    def label(self) -> str:
        """Its first point, for people."""
        values, entry = self.points[0]
        words = [f"{key}={value}" for key, value in values.items()]
        return " ".join([entry.label, *words] if entry.cfg.table or not words else words)


def runs_of(points: Sequence[Point]) -> list[SweepRun]:
    """Return the runs behind some points, in their order; a point that names a table stands for all its rows."""
    found: dict[str, list[tuple[Values, Entry]]] = {}
    for values, entry in rows_at(points):
        found.setdefault(run_id("evaluate", entry.cfg), []).append((values, entry))
    return [SweepRun(name, tuple(those)) for name, those in found.items()]


def listed(runs: Sequence[SweepRun], costs: Mapping[str, str]) -> str:
    """Return the runs as a table for the terminal, each with what is still to be paid for it, in words by its id."""
    states = {run.id: run.state for run in runs}
    lines = [[run.id, run.label, states[run.id], costs.get(run.id, "")] for run in runs]
    table = tabulate(lines, headers=["run", "point", "state", "cost"], tablefmt="simple", disable_numparse=True)
    failures = [f"{run.label} failed: {failure_of(run.steps)}" for run in runs if states[run.id] == "failed"]
    return "\n".join([table, "", counted(states.values(), sum(len(run.points) for run in runs)), *failures])


def counted(states: Iterable[str], n_points: int) -> str:
    """Say how many runs are in which state.

    >>> counted(["done", "missing", "done"], 4)
    '4 points, 3 runs: 2 done, 1 missing; points that are the same run are done once'
    """
    found = Counter(states)
    parts = [f"{found[state]} {state}" for state in STATES if found[state]]
    n_runs = sum(found.values())
    same = "; points that are the same run are done once" if n_runs < n_points else ""
    return f"{n_points} points, {n_runs} runs: {', '.join(parts)}{same}"
