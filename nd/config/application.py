"""From what was given on the command line to a checked ``Config``, and from a function to a verb.

Before Hydra runs and anything is written, everything given is checked in one pass, and all problems are one message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from nd.config.command_line import command_line, parse, searched
from nd.config.composition import assemble, composed_once, printed
from nd.config.conf_files import conf_dir, search_folders, search_path
from nd.config.launchers import LOCAL, JobFailed, chosen_launcher, has_own_sweeper, launcher_problems, lost_job
from nd.config.loading import HYDRA_VERSION_BASE, reading_once
from nd.config.overrides import Reading, read
from nd.config.rules import contradictions, without_effect
from nd.config.schema import Config
from nd.config.sweeps import NameGroup, Point, grouped, interval_problems, own_folder, points_of, set_up_logging
from nd.errors import UserError, report
from nd.launch import check_alone, is_rank_zero
from nd.terminal import NOTE, exit_with

# Groups on whose choice the rules between fields hang: where it was no option, only the fields are checked.
DECISIVE = {"data", "experiment", "method", "protocol", "backbone"}

Verb = Callable[[Config], Path | list[Path] | int | None]
Compose = Callable[..., Config]  # a configuration and further overrides to a configuration
Rows = Callable[[Config, Compose], list[Config]]  # the rows of a table that a verb works on, none without a table


def compose(overrides: Sequence[str] = (), rows: Rows | None = None) -> Config:
    """Compose and check a configuration.

    Args:
        overrides: as on the command line, e.g. ``["experiment=scenes", "guidance.kappa=0.5"]``.
        rows: gives the rows of a table. Where overrides that name one do not suit the composed configuration, its rows
            are checked instead, as by a verb that works on them; composing them all takes too long to do it always.

    Returns:
        A fresh ``Config`` with ``overrides`` filled in.

    Raises:
        UserError: with every problem of the overrides, of the files of conf/ and between fields.
    """
    reading = read(overrides, search_folders(overrides))
    found = _examine(reading.single(), reading)
    if rows is not None and found.config.table and (found.problems or found.foreign):
        found = _examine(reading.single(), reading, rows_of=rows)
    if problems := [*reading.problems, *found.problems, *found.foreign.values()]:
        raise UserError(report(problems))
    return found.config


def _compose(overrides: Sequence[str], name: str = "", rows: Rows | None = None) -> Config:
    """Compose one job; fields of another choice are passed over, which rows and jobs may share.

    Where ``rows`` are those of a table, ``check`` has examined them, and none is of the composed configuration.
    """
    reading = read(overrides, search_folders(overrides))
    found = _examine(reading.single(), reading, name, rows_of=rows and (lambda *_: []))
    if problems := [*reading.problems, *found.problems]:
        raise UserError(report(problems))
    return found.config


@dataclass
class Examined:
    """One combination of what was given: its configuration, problems, warnings, and given fields of another choice."""

    config: Config
    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)


def _examine(
    overrides: list[str], reading: Reading, name: str = "", multirun: bool = False, rows_of: Rows | None = None
) -> Examined:
    """Compose one combination of what was read and check it.

    A verb that works on a table composes every row of it anew, so its rows are examined instead.
    """
    made = assemble(overrides + search_path(reading.hydra))
    found = Examined(made.config, made.problems, foreign=made.foreign)
    if reading.lost & DECISIVE or any(problem.startswith("conf:") for problem in made.problems):
        return found
    rows = [made.config]
    if rows_of is not None:
        shown, foreign = _rows(made.config, rows_of, found.problems)
        if shown or made.config.table:
            rows, found.foreign = shown, foreign
    found.problems += [problem for row in rows for problem in contradictions(row, name, multirun)]
    if not found.problems and rows:
        warnings = [without_effect(row, [one.key for one in reading.given], name) for row in rows]
        found.warnings = [one for one in warnings[0] if all(one in others for others in warnings)]
    return found


def _rows(config: Config, rows_of: Rows, problems: list[str]) -> tuple[list[Config], dict[str, str]]:
    """Compose every row of the table a configuration names; return them with given fields that no row has."""
    foreign: list[dict[str, str]] = []

    def loosely(cfg: Config, *extra: str) -> Config:
        row = read([*cfg.overrides, *extra], search_folders(cfg.overrides))
        made = assemble(row.single() + search_path(row.hydra))
        own = {text.partition("=")[0] for text in extra}
        problems.extend([*row.problems, *made.problems])
        problems.extend(said for key, said in made.foreign.items() if key in own)
        foreign.append(made.foreign)
        return made.config

    try:
        rows = rows_of(config, loosely)
    except UserError as error:
        problems.append(str(error))
        return [], {}
    nowhere = [key for key in (foreign[0] if foreign else {}) if all(key in one for one in foreign)]
    return rows, {key: foreign[0][key] for key in nowhere}


def derive(cfg: Config, *extra: str) -> Config:
    """Compose again from the overrides of ``cfg`` and further ones, which win."""
    return _compose([*cfg.overrides, *extra])


def verb(
    function: Verb,
    together: Callable[[list[Config]], None] | None = None,
    rows: Rows | None = None,
    after: Callable[[list[Point]], None] | None = None,
    group: NameGroup | None = None,
) -> Callable[..., NoReturn]:
    """Make a command of a function of the configuration: a Hydra application with the checks of this module.

    ``together`` may do, before the jobs of a grid sweep run one by one, what several of them have in common; each job
    then finds its result. It is left out where a launcher runs the jobs elsewhere. ``rows`` gives the rows of a table
    that the verb works on, which are then checked in place of the composed configuration. ``after`` sums up the points
    of a grid sweep that has ended, well or not. ``group`` names the group in which a logger shows one.

    The command takes its arguments from ``sys.argv`` unless given a list, and exits with 0, with the number the
    function returned, with 2 after a ``UserError`` (message on stderr), or with 130 after an interruption.
    """

    def main(argv: list[str] | None = None) -> NoReturn:
        name, words = function.__name__, list(sys.argv[1:] if argv is None else argv)
        exit_with(name, composed_once()(lambda: _run(name, function, together, rows, after, group, words)))

    return main


def check(name: str, overrides: Sequence[str], multirun: bool = False, rows: Rows | None = None) -> Reading:
    """Check everything given to the verb ``name``, every value of a sweep included; warn of what has no effect.

    Args:
        name: of the verb.
        overrides: as given on the command line.
        multirun: whether several values of a field are jobs of a sweep.
        rows: gives the rows of a table that the verb works on.

    Raises:
        UserError: all problems in one message.
    """
    reading = read(overrides, search_folders(overrides), multirun)
    every = [_examine(combination, reading, name, multirun, rows) for combination in reading.combinations()]
    problems = [*reading.problems, *(problem for one in every for problem in one.problems)]
    if multirun and not problems:
        problems += interval_problems(name, reading) or launcher_problems(reading.hydra, [one.config for one in every])
    problems += [said for key, said in every[0].foreign.items() if all(key in one.foreign for one in every)]
    if problems:
        raise UserError(report(problems))
    check_alone(name, every[-1].config.trainer)
    warnings = dict.fromkeys(warning for one in every for warning in one.warnings)
    if warnings and NOTE not in os.environ and is_rank_zero(every[-1].config.trainer):  # others would only repeat it
        for warning in warnings:
            print(f"nd {name}: warning: {warning}", file=sys.stderr)
    return reading


@dataclass(frozen=True)
class Command:
    """A command line of which every combination of values is sound; `own` are overrides that every job gets besides."""

    name: str
    reading: Reading
    rows: Rows | None = None
    own: Sequence[str] = ()

    def compose(self, overrides: Sequence[str]) -> Config:
        """Return the configuration of one combination."""
        return _compose([*overrides, *self.own, *search_path(self.reading.hydra)], self.name, rows=self.rows)

    def points(self) -> list[Point]:
        """Return all combinations, each with its configuration."""
        return points_of(self.reading, self.compose)


def read_command(name: str, argv: Sequence[str], rows: Rows | None = None) -> Command:
    """Read and check the command line of a verb that takes several values of a field for several jobs.

    Raises:
        UserError: all problems in one message; or a flag (``--cfg``), which would be passed over and everything run.
    """
    args, flags = parse(name, list(argv))
    if flags:
        raise UserError(
            f"{flags[0]}: nd {name} does many runs and takes no flags but --help and --config-dir. `nd run --cfg job`"
            " prints one configuration."
        )
    return Command(name, check(name, args.overrides, True, rows), rows)


def _run(
    name: str,
    function: Verb,
    together: Callable[[list[Config]], None] | None,
    rows: Rows | None,
    after: Callable[[list[Point]], None] | None,
    group: NameGroup | None,
    argv: list[str],
) -> int:
    """Answer one command line: help, a printed configuration, or a checked Hydra run."""
    if "-h" in argv or "--help" in argv:
        from nd.config.help import verb_help

        print(verb_help(name, [text for text in argv if not text.startswith("-")]))
        return 0
    args, flags = parse(name, argv)
    if args.hydra_help or args.shell_completion or args.info:
        return _run_hydra(function, rows, [*flags, *args.overrides])
    multirun = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    flags = ["--multirun"] if multirun and not args.cfg else flags
    reading = check(name, args.overrides, multirun, rows)
    if args.cfg == "job" and not multirun:
        print(printed(_compose(reading.single() + reading.hydra, name, rows=rows)), end="")
        return 0
    others = [text for text in reading.hydra if not text.startswith("hydra.searchpath=")]
    words = [*flags, *(one.text for one in reading.given), *searched(reading), *others]
    if not multirun or args.cfg:
        return _run_hydra(function, rows, words)
    set_up_logging(reading.hydra)  # and whatever Hydra refuses is said before anything is written
    command = Command(name, reading, rows)
    own_sweeper = has_own_sweeper(reading.hydra)
    own = grouped(reading, command.compose, group) if group is not None and reading.sweeps and not own_sweeper else []
    command = replace(command, own=own)
    if together is not None and not own_sweeper and chosen_launcher(reading.hydra) == LOCAL:
        together([command.compose(one) for one in reading.combinations()])
    with own_folder(reading, first := command.compose(reading.single())) as named:
        try:
            return _run_hydra(function, rows, [*words, *own, *named])
        finally:
            if after is not None and reading.sweeps and not own_sweeper and is_rank_zero(first.trainer):
                after(command.points())


def _run_hydra(function: Verb, rows: Rows | None, argv: list[str]) -> int:
    """Run a verb's function under Hydra, once or as a sweep, and return the exit code."""
    given = list(sys.argv)
    codes, errors = list[int](), list[UserError]()

    def task(composed: DictConfig) -> None:
        sys.argv = given  # Lightning starts further processes of a job with it
        choices = HydraConfig.get()
        overrides = [*search_path(choices.overrides.hydra), *choices.overrides.task]
        try:
            result = function(_compose(overrides, function.__name__, rows=rows))
            codes.append(result if isinstance(result, int) else 0)
            if codes[-1] and choices.mode == RunMode.MULTIRUN:
                raise JobFailed(codes[-1])  # which reaches us from wherever the job ran
        except UserError as error:
            if choices.mode == RunMode.MULTIRUN:  # said at once: Hydra goes on with the other jobs, then raises
                given_here = " ".join(text.lstrip("+") for text in overrides)
                print(f"job {choices.job.num} ({given_here}): {error}", file=sys.stderr)
                raise
            errors.append(error)

    with command_line([given[0], *argv]), reading_once():
        try:
            hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf_dir()), config_name="config")(task)()
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from error
        except JobFailed as failed:
            codes.append(failed.args[0])
        except Exception as error:
            if (lost := lost_job(error)) is None:
                raise
            raise lost from error
    if errors:
        raise errors[0]
    return max(codes, default=0)
