"""`nd run`: the whole chain from data to scores, doing only what is missing.

With a table (`table=scenes`, or the experiment's own) every row of its spec is run for its subjects, and steps that
rows share are done once. Without one (`table=`) the composed configuration is run. A row that fails is reported at
once; the others go on, and the exit code is 1. `table=default` is the table of whatever is composed: the method, its
ceiling, its control and floors.

A sweep (`-m`) ends with one table of its points, results/sweep-<id>.md and .csv, and as .png a curve over one swept
key or a heat map over two.
"""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path

from nd.config import Config
from nd.config.application import derive, verb
from nd.config.sweeps import Point
from nd.errors import UserError
from nd.runs.chain import Action, Chain, StepFailed, failure_of, steps_of
from nd.runs.folder import RunFolder
from nd.runs.groups import members_of
from nd.tables.loggers import announce_sweep, announce_table, check_logger, log_scores, log_sweep
from nd.tables.specs import Entry, Row, expand, rows_of, spec_of
from nd.tables.wandb_runs import where_all

ACTIONS = ("prepare", "extract", "train", "predict", "reconstruct", "evaluate")


def run(cfg: Config) -> int:
    """Run every row and print where its scores lie; returns the exit code."""
    check_logger(cfg)
    begun, entries = time.monotonic(), entries_of(cfg)
    announce_table(cfg, [entry.cfg for entry in entries])
    finished = [entry for entry in entries if RunFolder.open(entry.cfg, "evaluate").done]
    if cfg.table and len(finished) < len(entries):
        from nd.doctor.absent import refuse_absent

        refuse_absent([entry.cfg for entry in entries if entry not in finished])
    failures = run_rows(entries, print, quiet=len(entries) > 1)
    for entry in finished:  # those that were run now have been shown by then
        log_scores(entry.cfg, RunFolder.open(entry.cfg, "evaluate"))
    print_summary(entries, failures, time.monotonic() - begun)
    if cfg.logger.name == "wandb" and (text := where_all(cfg)):
        print(text)
    if len(finished) == len(entries):
        print("all of them were finished; nothing to do")
    return 1 if failures else 0


def run_rows(entries: Sequence[Entry], say: Callable[[str], None], quiet: bool) -> dict[str, str]:
    """Do what is missing of every row and return what went wrong, by label.

    Args:
        entries: the rows.
        say: takes a line for every row that begins and every step that has ended.
        quiet: leave out what the steps print of their own.

    Raises:
        UserError: a mistake in the only row, or in what all rows share.
    """
    chain, failures = chain_of(say, quiet), dict[str, str]()
    for entry in entries:
        say(entry.label)
        try:
            chain.run_row(steps_of(entry.cfg))
        except StepFailed as failure:
            if len(entries) == 1 and isinstance(failure.__cause__, UserError):
                raise failure.__cause__ from None
            failures[entry.label] = str(failure)
    return failures


def share_jobs(cfgs: list[Config]) -> None:
    """Do what the jobs of a sweep have in common, as ``share`` does."""
    share([entry.cfg for cfg in cfgs for entry in entries_of(cfg)], chain_of())


def share(rows: Sequence[Config], chain: Chain) -> None:
    """Do what rows that differ in guidance alone have in common: the steps up to the predictions, then the sampling.

    What fails is left to its own row to report.
    """
    from nd.reconstruct import sample_sweeps, sweeps

    for group in sweeps(rows):
        with suppress(Exception):
            steps = [step for step in steps_of(group[0]) if step.verb not in ("reconstruct", "evaluate")]
            chain.run_row(steps)
            sample_sweeps(group)


def entries_of(cfg: Config) -> list[Entry]:
    """Return the rows to run: those of the table, or the one composed configuration."""
    if cfg.table:
        return expand(spec_of(cfg), cfg, derive)
    return [Entry(Row(label=cfg.method.name), cfg.subject.name, cfg)]


def rows_at(points: Sequence[Point]) -> list[tuple[dict[str, str], Entry]]:
    """Return every row at every point of a sweep, with the swept values that hold for it, each once.

    What a row sets itself wins over what is swept: of such a key it has no value, and no second row at another one.
    """
    found: dict[tuple[str, ...], tuple[dict[str, str], Entry]] = {}
    for point in points:
        for entry in entries_of(point.cfg):
            values = {key: value for key, value in point.values.items() if key not in entry.row.keys}
            name = (entry.label, *(f"{key}={value}" for key, value in values.items()))
            found.setdefault(name if entry.cfg.table else (*name, str(len(found))), (values, entry))
    return list(found.values())


def chain_of(say: Callable[[str], None] = print, quiet: bool = True) -> Chain:
    """Return a chain of all steps.

    Args:
        say: takes a line for every step that has ended.
        quiet: leave out the verbs' own closing lines: of many rows, a line per step says enough.
    """
    return Chain({name: action_of(name, quiet) for name in ACTIONS}, say)


def action_of(name: str, quiet: bool) -> Action:
    """Return what does a verb: its function, loaded when first needed."""

    def act(cfg: Config) -> None:
        with redirect_stdout(io.StringIO()) if quiet else nullcontext():
            getattr(importlib.import_module(f"nd.{name}"), name)(cfg)

    return act


def print_summary(entries: list[Entry], failures: dict[str, str], seconds: float) -> None:
    """Print every row with the folder of its scores, and the failures once more."""
    print(f"\n{len(entries) - len(failures)} of {len(entries)} rows done in {seconds:.0f} s")
    for entry in entries:
        state = "FAILED" if entry.label in failures else str(RunFolder.open(entry.cfg, "evaluate").path)
        print(f"  {entry.label:<40}{state}")
    for label, failure in failures.items():
        print(f"{label} failed at {failure}")


def sum_up(points: list[Point]) -> None:
    """Print the scores of a sweep that has ended as one table, and write it into paths.results."""
    from nd.tables.sweep import sweep_table, write_sweep

    swept = sweep_table(rows_at(points))
    written = write_sweep(swept, Path(points[0].cfg.paths.results))
    print(f"\n{swept.text}")
    for rows in swept.runs.values():
        if rows[0].state == "failed":
            print(f"{rows[0].folder.run_id} failed: {failure_of(steps_of(rows[0].entry.cfg))}")
    for path in written:
        print(f"wrote {path}")
    log_sweep(points[0].cfg, swept, written)


def name_group(points: list[Point]) -> str:
    """Return the logger's group of a sweep, which is the name of its table; empty where nothing is logged."""
    from nd.tables.sweep import sweep_table

    entries = rows_at(points)
    members = members_of(entry.cfg for _, entry in entries)
    return announce_sweep(points[0].cfg, members, sweep_table(entries).name)


main = verb(run, together=share_jobs, rows=rows_of, after=sum_up, group=name_group)

if __name__ == "__main__":
    main()
