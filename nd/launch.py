"""Which of a command's processes this one is: decided by what the command launches, devices times nodes.

Launchers and schedulers leave ranks in the environment, of other programs too: a notebook on a cluster node, a batch
script, a worker of ray. Such a variable counts only where a launcher known here says throughout that it started just
the processes that the configuration asks for. Those that a command starts itself (``nd.processes``) are told as
torchrun's are.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nd.config import TrainerConfig
from nd.errors import UserError
from nd.machine import pick_device

BY_HAND = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")  # the same command typed on every machine
VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT",
)  # fmt: skip
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that are a shell, as Lightning takes them
SHARED = ("train", "reconstruct", "evaluate")  # verbs that several processes may do together
TRAINER_SETTINGS = "PL_TRAINER_"
FAMILIES = ("TORCHELASTIC_", "SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "MV2_", "JSM_", "LSB_")


@dataclass(frozen=True)
class Launcher:
    """The variables in which a launcher tells each process of the others.

    Attributes: ``mark`` is there in its processes alone; ``numbers`` hold natural numbers where they are there.
    """

    name: str
    mark: str
    numbers: tuple[str, ...]
    n_processes: tuple[str, ...]
    n_local: str
    n_nodes: str
    rank: str
    local_rank: str
    node_rank: str

    def started(self, n_local: int, n_nodes: int) -> bool:
        """Say whether it started ``n_local`` processes on each of ``n_nodes`` machines, this one among them."""
        given = {**dict.fromkeys(self.n_processes, n_local * n_nodes), self.n_local: n_local, self.n_nodes: n_nodes}
        below = {self.rank: n_local * n_nodes, self.local_rank: n_local, self.node_rank: n_nodes}
        return (
            self.mark in os.environ
            and all(number(name) >= 0 for name in self.numbers if name in os.environ)
            and all(number(name) == value for name, value in given.items())
            and all(0 <= number(name) < value for name, value in below.items())
        )


TORCHRUN = Launcher(
    name="torchrun",
    mark="TORCHELASTIC_RUN_ID",
    numbers=("MASTER_PORT",),
    n_processes=("WORLD_SIZE",),
    n_local="LOCAL_WORLD_SIZE",
    n_nodes="GROUP_WORLD_SIZE",
    rank="RANK",
    local_rank="LOCAL_RANK",
    node_rank="GROUP_RANK",
)
# SLURM_STEP_*: set by srun alone; a batch script that starts the command without srun sees the rest of them too.
SRUN = Launcher(
    name="srun",
    mark="SLURM_STEP_ID",
    numbers=("MASTER_PORT", "SLURM_JOB_ID"),
    n_processes=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    n_local="SLURM_NTASKS_PER_NODE",
    n_nodes="SLURM_NNODES",
    rank="SLURM_PROCID",
    local_rank="SLURM_LOCALID",
    node_rank="SLURM_NODEID",
)


def number(name: str) -> int:
    """Return the natural number that a variable of the environment holds, or -1."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else -1


def n_local(cfg: TrainerConfig) -> int:
    """Return the processes on each machine: one for each device."""
    if cfg.devices != -1:
        return cfg.devices
    import torch

    return max(1, torch.cuda.device_count()) if pick_device(cfg.accelerator).type == "cuda" else 1


def n_processes(cfg: TrainerConfig) -> int:
    """Return how many processes the command consists of."""
    return n_local(cfg) * cfg.num_nodes


def launcher_of(cfg: TrainerConfig) -> Launcher | None:
    """Return the launcher that started every process of this command; None where the command does so itself."""
    if n_processes(cfg) == 1 or os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    return next((one for one in (TORCHRUN, SRUN) if one.started(n_local(cfg), cfg.num_nodes)), None)


def check_alone(verb: str, cfg: TrainerConfig) -> None:
    """Refuse processes of a launcher for a verb that is not shared out among them: each would do all of its work.

    Raises:
        UserError: torchrun or srun has started so many of a verb that is no one of ``SHARED``.
    """
    if verb in SHARED or (launcher := launcher_of(cfg)) is None:
        return
    raise UserError(
        f"{n_processes(cfg)} processes of this command were started by {launcher.name}, but nd {verb} is not shared out"
        f" among processes: each would do all of its work. Start it once, without {launcher.name}; it starts those that"
        f" training and sampling take by itself. (Verbs that {launcher.name} may start: {', '.join(SHARED)}.)"
    )


def rank_of(cfg: TrainerConfig) -> int:
    """Return the number of this process among those of the command; 0 is the one that records."""
    launcher = launcher_of(cfg)
    if launcher:
        return number(launcher.rank)
    return _node_rank(cfg) * n_local(cfg)


def _node_rank(cfg: TrainerConfig) -> int:
    return max(number("NODE_RANK"), 0) if cfg.num_nodes > 1 else 0


def is_rank_zero(cfg: TrainerConfig) -> bool:
    """Say whether this process is the one that records; the others of a distributed run only compute."""
    return rank_of(cfg) == 0


def process_settings(cfg: TrainerConfig) -> dict[str, Any]:
    """Return the arguments of Lightning's ``Trainer`` about devices and processes.

    Raises:
        UserError: a device that is not there, or several machines that nobody coordinates.
    """
    from pytorch_lightning.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    pick_device(cfg.accelerator)  # has the better message
    _check_machines(cfg)
    kinds = {TORCHRUN: TorchElasticEnvironment, SRUN: SLURMEnvironment, None: LightningEnvironment}
    return {
        "accelerator": cfg.accelerator,
        "devices": n_local(cfg),
        "num_nodes": cfg.num_nodes,
        "strategy": _strategy(cfg),
        "plugins": [kinds[launcher_of(cfg)]()],
    }


def _strategy(cfg: TrainerConfig) -> str:
    """Return Lightning's strategy: several devices without a chosen one get ``ddp_spawn``.

    It starts the other processes from this one instead of running the whole command once per device. Where a launcher
    has started them already, or ``nd.processes``, ``ddp`` joins them.
    """
    if n_processes(cfg) == 1:
        return "auto"
    return "ddp" if launcher_of(cfg) else "ddp_spawn"


def _check_machines(cfg: TrainerConfig) -> None:
    """Raise UserError for several machines without a launcher or a place where their processes meet."""
    meets = bool(os.environ.get("MASTER_ADDR")) and number("MASTER_PORT") > 0
    by_hand = meets and 0 <= number("NODE_RANK") < cfg.num_nodes
    if cfg.num_nodes > 1 and launcher_of(cfg) is None and not by_hand:
        raise UserError(
            f"trainer.num_nodes={cfg.num_nodes}, but no launcher has started {n_local(cfg)} processes on each of "
            f"{cfg.num_nodes} machines. Start the command with torchrun or `srun --ntasks-per-node={n_local(cfg)}`, or "
            f"on every machine with {', '.join(BY_HAND)} set."
        )


def environments(cfg: TrainerConfig) -> list[dict[str, str]]:
    """Return the surroundings of the processes that this command starts on this machine, as torchrun's have them.

    Raises:
        UserError: several machines that nobody coordinates.
    """
    _check_machines(cfg)
    left = {name: value for name, value in os.environ.items() if name not in _of_launchers()}
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "" if cfg.num_nodes > 1 else str(_free_port())}
    meets = {name: os.environ[name] if cfg.num_nodes > 1 else value for name, value in alone.items()}
    node, each = _node_rank(cfg), n_local(cfg)
    numbers = {
        **dict.fromkeys(TORCHRUN.n_processes, n_processes(cfg)),
        TORCHRUN.n_local: each, TORCHRUN.n_nodes: cfg.num_nodes, TORCHRUN.node_rank: node,
    }  # fmt: skip
    ranks = [{TORCHRUN.local_rank: k, TORCHRUN.rank: node * each + k} for k in range(each)]
    told = [{name: str(value) for name, value in (numbers | one).items()} for one in ranks]
    return [left | meets | {TORCHRUN.mark: "nd"} | one for one in told]


def _free_port() -> int:
    """A port that nobody listens on; whatever MASTER_PORT says, which may be left from another program."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def away_from_launchers(cfg: TrainerConfig) -> Iterator[None]:
    """Hide what launchers left in the environment while this command starts processes of its own.

    Lightning, PyTorch and others read these variables wherever they find them; so Lightning does settings of its
    ``Trainer``. They come back at the end.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    own = launcher_of(cfg) is None
    kept = BY_HAND if cfg.num_nodes > 1 else ()
    hidden = {name: os.environ.pop(name) for name in _of_launchers() if own and name not in kept}
    hidden |= {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(TRAINER_SETTINGS)}
    if own:
        vars(rank_zero_only)["rank"] = rank_of(cfg)  # Lightning took it from the environment as it was imported
    try:
        yield
    finally:
        if own:
            for name in _of_launchers():
                if name not in kept:
                    del os.environ[name]
        os.environ.update(hidden)


def _of_launchers() -> list[str]:
    return [name for name in os.environ if name in VARIABLES or name.startswith(FAMILIES)]
