"""Lightning without its advertisements, and with this project's answers to errors and interruptions."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nd.errors import LeakError, UserError

# Device listings, tips and advertisements arrive as INFO records of these loggers.
LIGHTNING_LOGGERS = (
    "pytorch_lightning",
    "lightning.pytorch",
    "lightning_fabric",
    "pytorch_lightning.utilities.rank_zero",
)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # in the order Lightning reads them


def is_rank_zero() -> bool:
    """Say whether this process is the one that records; the other processes of a distributed run only compute."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's device listings, tips and its warnings about loggers and loader workers off the screen."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|lightning")
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Hand on the UserError that another process died of, or say how it was ended; and Ctrl-C as KeyboardInterrupt."""
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException  # torch takes seconds to import

    try:
        yield
    except ProcessExitedException as error:
        raise killed(error.error_index, error.signal_name, error.exit_code) from error
    except ProcessRaisedException as error:
        raise user_error_of(error) from error
    except SystemExit as exit_:
        # What Lightning makes of Ctrl-C, with further ones ignored; the verbs have their own answer to it.
        if not isinstance(exit_.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def killed(process: int, signal_name: str | None, exit_code: int) -> UserError:
    """Return what to say of a process that ended without an error of its own; the others are stopped by then."""
    how = f"was ended by {signal_name}" if signal_name else f"ended with exit code {exit_code}"
    return UserError(
        f"process {process} of this run {how}, so the others were stopped. Systems send SIGKILL when memory runs out: "
        "then lower trainer.devices, or the need of each process (sampling: trainer.memory_gb). What was finished is "
        "kept; the same command again goes on from there."
    )


def user_error_of(error: Exception) -> Exception:
    """Return the UserError another process died of, or the error itself where it is something else."""
    last = str(error).strip().splitlines()[-1]
    name, _, message = last.partition(": ")
    kinds = {kind.__name__: kind for kind in (UserError, LeakError)}
    kind = kinds.get(name.rpartition(".")[2])
    return kind(message) if kind else error


def strategy_of(strategy: str, devices: int, num_nodes: int) -> str:
    """Return Lightning's strategy: several devices without a chosen one get ``ddp_spawn``.

    It starts the other processes from this one instead of running the whole command once per device; where a launcher
    (torchrun, SLURM) has started them already, ``ddp`` joins them.
    """
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if strategy != "auto" or (devices == 1 and num_nodes == 1):
        return strategy
    launched = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    return "ddp" if launched else "ddp_spawn"
