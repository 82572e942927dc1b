"""The jobs of a multirun as points: the values of its swept keys, each with its configuration; and Hydra's folder.

Run folders hold what jobs make. Hydra makes a folder for every sweep and job beside them, which is of use only where a
launcher writes its logs there.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nd.config.conf_files import conf_dir
from nd.config.grammar import parsed
from nd.config.launchers import has_own_sweeper
from nd.config.loading import HYDRA_VERSION_BASE
from nd.config.overrides import Reading, quoted
from nd.config.schema import Config
from nd.errors import UserError

NOTES = "jobs"  # in a folder of a sweep: what its jobs note for it
HYDRAS_OWN = "multirun.yaml"  # what Hydra writes into every folder of a sweep


@dataclass(frozen=True)
class Point:
    """One job of a sweep: the swept keys with their values as typed, and its configuration."""

    values: dict[str, str]
    cfg: Config


SEARCHES = "tune"  # the verb that takes intervals

NameGroup = Callable[[list[Point]], str]


def interval_problems(name: str, reading: Reading) -> list[str]:
    """Say that nothing tries the values of an interval, but `nd tune` and a sweeper of the user's own."""
    if name == SEARCHES or has_own_sweeper(reading.hydra):
        return []
    return [
        f"{one.text.lstrip('+')}: an interval is searched by nd {SEARCHES} alone; "
        f"give values to try instead ({one.key}={','.join(one.values)})."
        for one in reading.given
        if len(one.values) > 1 and isinstance(parsed(one.text).value(), IntervalSweep)
    ]


def points_of(reading: Reading, compose: Callable[[list[str]], Config]) -> list[Point]:
    """Return all jobs of a grid in Hydra's order."""
    swept = [one.key for one in reading.given if len(one.values) > 1]
    found = []
    for combination in reading.combinations(limit=math.inf):
        pairs = (text.partition("=") for text in combination)
        values = {key: value.strip("'\"") for key, _, value in pairs if key in swept}
        found.append(Point(values, compose(combination)))
    return found


def grouped(reading: Reading, compose: Callable[[list[str]], Config], name_group: NameGroup) -> list[str]:
    """Return the override that tells every job of a sweep its logger's group; none where nothing is logged.

    Args:
        reading: what was given.
        compose: overrides of a job to its configuration.
        name_group: the points to a name; empty for none.
    """
    if compose(reading.single()).logger.name == "none":
        return []
    name = name_group(points_of(reading, compose))
    return [f"++logger.group={name}"] if name else []


@contextmanager
def own_folder(reading: Reading, cfg: Config) -> Iterator[list[str]]:
    """Yield the override that names a folder for Hydra's files of a sweep; when it has ended, an empty one is removed.

    One that was given (``hydra.sweep.dir=``) is left alone.
    """
    if any(text.startswith("hydra.sweep.dir=") for text in reading.hydra):
        yield []
        return
    with new_folder(cfg) as folder:
        yield [f"hydra.sweep.dir={quoted(str(folder))}"]


@contextmanager
def new_folder(cfg: Config) -> Iterator[Path]:
    """Yield a folder of a sweep below ``paths.runs``, not yet made; afterwards one in which nothing lies is removed."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(now))
    folder = Path(cfg.paths.runs).absolute() / "multirun" / f"{stamp}-{int(now % 1 * 1e6):06d}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder / NOTES, ignore_errors=True)
        if folder.is_dir() and is_empty_sweep(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other sweeps lie beside it
                folder.parent.rmdir()


def is_empty_sweep(folder: Path) -> bool:
    """Whether a folder of a sweep holds nothing but empty folders, notes, and what Hydra writes into every one."""
    files = (item for item in folder.rglob("*") if not item.is_dir())
    return all(item == folder / HYDRAS_OWN or item.parent == folder / NOTES for item in files)


def set_up_logging(overrides: Sequence[str]) -> None:
    """Show log lines before the first job too; Hydra sets logging up as each job begins."""
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            settings = hydra.compose("config", list(overrides), return_hydra_config=True).hydra
        configure_log(settings.job_logging, settings.verbose)
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from error
    except OmegaConfBaseException:
        return  # a log file in the folder of a job, which has no name yet
