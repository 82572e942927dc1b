"""`nd sweep TABLE`: all runs of a table, or of a grid of values, that are not done yet; ends with one table of them.

TABLE is a spec (`experiments/<table>.yaml`) or its name; `key=1,2` adds a grid to it, or is one by itself (`table=`).
Finished runs are skipped, interrupted ones go on, failed ones are tried again. `dry_run=true` lists the runs with their
state and likely cost. A run that fails does not stop the others (with `fail_fast=true` it does): its traceback is in
its run folder at once and below the table, its message on the terminal, and the exit code is 1. Runs that another
process is making are left to it, and waited for at the end.

Runs are made here one after the other, with what points of guidance share sampled once; side by side on this machine
with `hydra/launcher=joblib hydra.launcher.n_jobs=2`, on a cluster with `hydra/launcher=submitit_slurm`, and so on this
machine with `hydra/launcher=submitit_local`.

The table is written as results/sweep-<id>.md and .csv, of one or two swept keys also as .png.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from textwrap import indent

from nd.config.application import Command, read_command
from nd.config.overrides import quoted
from nd.config.sweeps import Point, grouped, set_up_logging
from nd.config.words import verb_of_command
from nd.errors import UserError
from nd.run import name_group, rows_at, sum_up
from nd.runs.catalogue import known_runs
from nd.runs.chain import check_finished, traceback_of
from nd.runs.folder import RunFolder
from nd.sweeps.cost import cost_texts, costs, total_cost
from nd.sweeps.launch import Sweep
from nd.sweeps.listing import SweepRun, counted, listed, runs_of
from nd.sweeps.work import Outcome, duration, first_line
from nd.tables.loggers import announce_table, check_logger, log_scores
from nd.tables.specs import rows_of

FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p")  # Hydra's, whose value follows


def sweep(words: list[str]) -> int:
    """Do what is missing of a table or grid; returns the exit code."""
    command = read_command("sweep", named(words), rows_of)
    points = command.points()
    cfg, runs = points[0].cfg, runs_of(points)
    if kept := kept_by_rows(points):
        print(kept)
    if not (cfg.table or command.reading.sweeps):
        raise UserError(
            "nothing to sweep: name a table (nd sweep experiments/<table>.yaml), or give several values of a field "
            "(nd sweep guidance.kappa=1,2)."
        )
    if cfg.dry_run:
        found = costs(runs, known_runs(Path(cfg.paths.runs)))
        print(f"{listed(runs, cost_texts(found))}\n{total_cost(found)}")
        return 0
    check_logger(cfg)
    set_up_logging(command.reading.hydra)
    return carried_out(in_a_group(command, points), command.reading.hydra)


def kept_by_rows(points: Sequence[Point]) -> str:
    """Say which rows set a swept key themselves; empty where none does."""
    rows = [entry.row for _, entry in rows_at(points[:1])] if points[0].cfg.table else []
    own = {key: [getattr(row, "of", row.label) for row in rows if key in row.keys] for key in points[0].values}
    said = [f"{key}: {', '.join(dict.fromkeys(labels))}" for key, labels in own.items() if labels]
    return f"rows that set a swept key themselves keep their own value ({'; '.join(said)})" if said else ""


def in_a_group(command: Command, points: list[Point]) -> list[Point]:
    """Return the points with the group in which a logger shows them: that of the grid, or their table."""
    if not command.reading.sweeps:
        announce_table(points[0].cfg, [run.entry.cfg for run in runs_of(points)])
        return points
    own = grouped(command.reading, command.compose, name_group)
    return replace(command, own=own).points() if own else points


def carried_out(points: list[Point], hydra: Sequence[str]) -> int:
    """Do what is missing of some points and sum all of them up; returns the exit code."""
    begun, runs = time.monotonic(), runs_of(points)
    states = {run.id: run.state for run in runs}
    print(counted(states.values(), sum(len(run.points) for run in runs)))
    finished = {run.id: looked_at(run) for run in runs if states[run.id] == "done"}
    left = [run for run in runs if run.id not in finished]
    outcomes = finished | Sweep(left, hydra, points[0].cfg.fail_fast).do()
    sum_up(points)
    return close(runs, outcomes, time.monotonic() - begun)


def named(words: Sequence[str]) -> list[str]:
    """Return the words of the command line, a table's name or file as ``table=``."""
    of_flags = {after for flag, after in pairwise(words) if flag in FLAGS_WITH_VALUE}
    bare = [word for word in words if "=" not in word and not word.startswith("-") and word not in of_flags]
    if len(bare) > 1:
        raise UserError(f"one table was wanted, {len(bare)} were given: {', '.join(bare)}.")
    return [f"table={quoted(word)}" if word in bare else word for word in words]


def looked_at(run: SweepRun) -> Outcome:
    """Return what a finished run is worth: one made from other inputs than those of now is a failure."""
    try:
        check_finished(run.steps)
    except UserError as error:
        return Outcome("failed", message=str(error))
    log_scores(run.entry.cfg, RunFolder.open(run.entry.cfg, "evaluate"))
    return Outcome("done")


def close(runs: Sequence[SweepRun], outcomes: dict[str, Outcome], seconds: float) -> int:
    """Print what did not go well with its traceback, and how to go on; returns the exit code."""
    failed = [run for run in runs if run.id in outcomes and outcomes[run.id].state != "done"]
    left = [run for run in runs if run.id not in outcomes]
    shown = set[str]()
    for run in failed:
        print(f"{outcomes[run.id].state.upper()} {run.id} {run.label}: {first_line(outcomes[run.id].message)}")
        trace = traceback_of(run.steps)
        if trace and trace not in shown:  # of runs that failed alike once
            print(indent(trace, "    "))
        shown.add(trace)
    n_done = len(runs) - len(failed) - len(left)
    print(f"{n_done} of {len(runs)} runs done, {len(failed)} failed, {len(left)} not begun, in {duration(seconds)}")
    if failed or left:
        print("The same command does what is missing.")
    return 1 if failed or left else 0


main = verb_of_command(sweep)

if __name__ == "__main__":
    main(None)
