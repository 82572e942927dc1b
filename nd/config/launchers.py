"""Where the jobs of a sweep run: Hydra's launchers, what each needs, and which settings do not go with it.

Without one jobs run here, one after the other. ``joblib`` runs several side by side on this machine, ``submitit_slurm``
hands each to a cluster, ``submitit_local`` tries that out on this machine.
"""

from __future__ import annotations

import importlib.util
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nd.config.conf_files import conf_dir
from nd.config.loading import HYDRA_VERSION_BASE
from nd.config.overrides import quoted
from nd.config.schema import Config
from nd.errors import UserError
from nd.launch import n_processes

LOCAL = "basic"
GRID = "basic"  # Hydra's sweeper, which runs all combinations
PLUGINS = {  # launcher: the package that brings it, its module, our extra
    "joblib": ("hydra-joblib-launcher", "hydra_plugins.hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra-submitit-launcher", "hydra_plugins.hydra_submitit_launcher", "slurm"),
}
LOOK_S = 0.5  # between looks at jobs that still run
QUIET = "hydra.hydra_logging.root.level=WARNING"  # Hydra's own lines about jobs say nothing of them

Task = Callable[[DictConfig], Any]


def chosen_launcher(overrides: Sequence[str]) -> str:
    """Return the launcher that overrides for Hydra choose."""
    return _last(overrides, "hydra/launcher", LOCAL)


def has_own_sweeper(overrides: Sequence[str]) -> bool:
    """Return whether overrides for Hydra choose a sweeper of the user's, which finds the jobs of a sweep itself."""
    return _last(overrides, "hydra/sweeper", GRID) != GRID


def _last(overrides: Sequence[str], key: str, default: str) -> str:
    values = [text.partition("=")[2] for text in overrides if text.lstrip("+").partition("=")[0] == key]
    return values[-1].strip("'\"") if values else default


def launcher_problems(overrides: Sequence[str], cfgs: Sequence[Config]) -> list[str]:
    """Return why the chosen launcher cannot run some jobs, each with what to do instead; overrides: those for Hydra."""
    name = chosen_launcher(overrides)
    if name in PLUGINS and not _there(PLUGINS[name][1]):
        package, _, extra = PLUGINS[name]
        return [
            f"hydra/launcher: {name} is a launcher of the package {package}, which is not installed. Install it with"
            f" `pip install nd[{extra}]`, or leave hydra/launcher out: jobs then run here, one after the other."
        ]
    return list(dict.fromkeys(problem for cfg in cfgs for problem in _unsafe(name, overrides, cfg)))


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # no package of hydra_plugins at all
        return False


def _unsafe(name: str, overrides: Sequence[str], cfg: Config) -> Iterator[str]:
    if name == LOCAL:
        return
    devices = n_processes(cfg.trainer)  # may look for GPUs, which takes seconds
    one_after_the_other = "Leave hydra/launcher out: jobs then run one after the other"
    tasks = _last(overrides, "hydra.launcher.tasks_per_node", "1")
    n_jobs = _last(overrides, "hydra.launcher.n_jobs", "-1")
    if name.startswith("submitit") and tasks not in ("1", str(cfg.trainer.devices)):
        yield (
            f"hydra.launcher.tasks_per_node: {tasks} tasks of trainer.devices={cfg.trainer.devices} would each be a"
            " whole run, all of the same folder. Give as many tasks as devices, or leave tasks_per_node out."
        )
    if name in ("joblib", "submitit_local") and n_jobs != "1":
        if devices > 1:
            yield (
                f"trainer.devices: with hydra/launcher={name} jobs run side by side, and each of them would take the"
                f" same {devices} devices. {one_after_the_other}, each on all devices; or give trainer.devices=1."
            )
        elif _on_a_gpu(cfg):
            yield (
                f"hydra/launcher: {name} would run jobs side by side on one GPU, where they share memory and gain"
                f" nothing. {one_after_the_other}; on a cluster hydra/launcher=submitit_slurm"
                " hydra.launcher.gpus_per_node=1 gives each its own; on CPUs add trainer.accelerator=cpu."
            )


def _on_a_gpu(cfg: Config) -> bool:
    from nd.machine import pick_device

    return cfg.trainer.accelerator != "cpu" and pick_device(cfg.trainer.accelerator).type != "cpu"


def lost_job(error: Exception) -> UserError | None:
    """Return what to say of a job whose process was killed, by what its launcher raises; None for any other error."""
    if type(error).__module__.partition(".")[0] not in ("joblib", "submitit"):
        return None
    return UserError(
        f"a job of this sweep has lost its process ({type(error).__name__}), so others may not have run. Systems end"
        " processes when memory runs out: then run fewer jobs at once. What was finished is kept; the same command"
        " again goes on from there."
    )


def wait_for_others(error: Exception) -> None:
    """Return once no job of a submitit launcher is waiting or at work any more.

    Args:
        error: what the launcher raised when it found that one of them had been killed.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):  # it hands its jobs to nobody
        jobs = frame.f_locals.get("jobs")
        for job in jobs if isinstance(jobs, list) and frame.f_code.co_name == "launch" else ():
            while not job.done():
                time.sleep(LOOK_S)


def at_once(overrides: Sequence[str]) -> int:
    """Return how many jobs a launcher may be given together, 0 for any: submitit's local one starts all it is given."""
    return (os.cpu_count() or 1) if chosen_launcher(overrides) == "submitit_local" else 0


def launch(task: Task, n_jobs: int, overrides: Sequence[str], folder: Path) -> None:
    """Run a task once for every job where the chosen launcher runs jobs; ``HydraConfig`` has the number of its job.

    Args:
        task: what a job does; it must be picklable, and what it returns is not seen.
        n_jobs: number of jobs.
        overrides: those for Hydra, the launcher's among them.
        folder: for what the launcher writes, on a cluster visible from everywhere.

    Raises:
        UserError: the launcher refuses its settings.
        Exception: what a launcher raises when one of its processes was killed; other jobs may or may not have run.
    """
    words = [*overrides, QUIET, f"hydra.sweep.dir={quoted(str(folder.absolute()))}", "hydra.job.name=nd"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        own = GlobalHydra.instance().hydra
        assert own is not None
        try:
            config = own.compose_config("config", words, RunMode.MULTIRUN, from_shell=False)
            context = HydraContext(config_loader=own.config_loader, callbacks=Callbacks(config))
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(" ".join(str(error).split())) from error
        launcher.launch([[]] * n_jobs, initial_job_idx=0)


class JobFailed(Exception):  # noqa: N818 - a fact about a job, carried past Hydra
    """A job of a sweep has ended with another exit code than 0."""
