"""Lightning without its advertisements, in the processes that this command starts, with plain answers to errors."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nd.config import TrainerConfig
from nd.errors import LeakError, UserError
from nd.launch import away_from_launchers

# Device listings, tips and advertisements arrive as INFO records of these loggers.
LIGHTNING_LOGGERS = (
    "pytorch_lightning",
    "lightning.pytorch",
    "lightning_fabric",
    "pytorch_lightning.utilities.rank_zero",
)


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
def lightning(cfg: TrainerConfig) -> Iterator[None]:
    """Make and run a ``Trainer`` inside: quiet, with plain errors, blind to what other launchers left behind."""
    with quiet_lightning(), plain_errors(), away_from_launchers(cfg):
        yield


@contextmanager
def plain_errors() -> Iterator[None]:
    """Hand on the UserError that another process died of, or say how it was ended; and Ctrl-C as KeyboardInterrupt."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException  # torch takes seconds to import

    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"Lightning cannot work with these trainer settings: {error}") from error
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
