"""Configurations composed and run from Python: the commands of the shell as functions.

In a notebook ``nd run experiment=scenes guidance.kappa=0.5`` is::

    cfg = nd.compose("experiment=scenes", "guidance.kappa=0.5")
    runs = nd.execute(cfg)
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module

from nd.config import Config, application
from nd.errors import UserError, unknown
from nd.interface.finished_run import FinishedRun, read_run
from nd.tables.specs import rows_of, spec_of

VERBS = ("run", "prepare", "extract", "train", "predict", "reconstruct", "evaluate")
Say = Callable[[str], None]


def compose(*overrides: str) -> Config:
    """Return the checked configuration that a command with these arguments would have.

    Args:
        overrides: as on the command line, ``group=option`` or ``group.field=value``.

    Returns:
        A fresh configuration, to be read as ``cfg.guidance.kappa``. Compose again to change it: a row of a table is
        composed anew from ``cfg.overrides``, so with ``table=`` a field may be one that only its rows have.

    Raises:
        UserError: with every problem of the overrides, and the nearest name of what is unknown.

    >>> import nd
    >>> cfg = nd.compose("experiment=scenes", "guidance.kappa=0.5")
    >>> cfg.data.name, cfg.guidance.kappa
    ('scenes', 0.5)
    >>> nd.compose("guidance.kapa=0.5")
    Traceback (most recent call last):
    ...
    nd.errors.UserError: guidance.kapa: unknown key. Did you mean 'guidance.kappa'? ...
    """
    cfg = application.compose(overrides, rows_of)
    if cfg.table:
        spec_of(cfg)  # an unknown or broken table is refused here, as by the command
    return cfg


def execute(cfg: Config, verb: str = "run", *, progress: Say | None = print) -> list[FinishedRun]:
    """Do what ``nd VERB`` does with a configuration; what is finished already is not done again.

    Args:
        cfg: of ``compose``.
        verb: ``run``, the chain from data to scores, of every row where ``cfg.table`` names a table; or one step of it.
        progress: called with a line whenever a row begins and a step has ended; None: nothing is printed. Bars of long
            steps are shown on stderr unless ``trainer.progress=false`` was composed.

    Returns:
        The finished run of the verb; for ``run`` the evaluate run of every row; none for prepare and extract, which
        write no run folder.

    Raises:
        UserError: a mistake in the configuration, or it was changed after ``compose``.
        StepFailed: (``nd.runs.chain``) rows of a table failed; the others are finished.
    """
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    application.check(verb, cfg.overrides, rows=rows_of if verb == "run" else None)
    if compose(*cfg.overrides) != cfg:
        raise UserError(
            "the configuration was changed after it was composed, and the steps compose it anew. Give the change to "
            f"compose instead: nd.compose({', '.join(map(repr, cfg.overrides))}, 'group.field=value')."
        )
    return _run(cfg, progress) if verb == "run" else _step(cfg, verb, progress)


def _run(cfg: Config, progress: Say | None) -> list[FinishedRun]:
    from nd.run import entries_of, run_rows
    from nd.runs.chain import StepFailed
    from nd.runs.folder import RunFolder

    entries = entries_of(cfg)
    failures = run_rows(entries, progress or _silence, quiet=True)
    if failures:
        raise StepFailed("\n".join(f"{label} failed at {failure}" for label, failure in failures.items()))
    return [read_run(RunFolder.open(entry.cfg, "evaluate").path) for entry in entries]


def _step(cfg: Config, verb: str, progress: Say | None) -> list[FinishedRun]:
    from nd.runs.identity import VERBS as WITH_FOLDER

    printed = io.StringIO()
    with redirect_stdout(printed):
        path = getattr(import_module(f"nd.{verb}"), verb)(cfg)
    for line in printed.getvalue().splitlines():
        (progress or _silence)(line)
    return [read_run(path)] if verb in WITH_FOLDER else []


def _silence(line: str) -> None:
    """Say nothing."""
