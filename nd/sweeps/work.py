"""One run of a sweep, done here or in a process elsewhere, and what became of it.

Elsewhere a job leaves notes in a folder that the sweep reads: a lock that it holds while it lives, and its outcome. So
nothing is lost of the others when a launcher loses one of its processes.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nd.config import Config
from nd.config.application import derive
from nd.errors import UserError
from nd.files import read_json, write_json
from nd.locks import is_locked, locked
from nd.run import chain_of
from nd.runs.chain import Chain, Step, StepFailed, steps_of
from nd.runs.folder import RunFolder

log = logging.getLogger(__name__)

STOP = "stop"  # a file that keeps further jobs from beginning


@dataclass(frozen=True)
class Outcome:
    """What became of a run: done, failed, taken (another process is at it), or lost (its process was killed)."""

    state: str
    seconds: float = 0.0
    message: str = ""


def do(cfg: Config, chain: Chain, wait: bool = False) -> Outcome:
    """Do what is missing of a run. Nothing that goes wrong is raised: the other runs of a sweep do not depend on it.

    Args:
        cfg: of the run.
        chain: remembers steps that runs share.
        wait: for another process that is at it, instead of leaving the run to that one.
    """
    steps, begun = steps_of(cfg), time.monotonic()
    if not wait and is_taken(steps):
        return Outcome("taken")
    try:
        chain.run_row(steps)
    except (StepFailed, UserError) as error:
        return Outcome("failed", time.monotonic() - begun, str(error))
    except Exception as error:  # outside of any step, which would have recorded it
        return Outcome("failed", time.monotonic() - begun, _recorded(RunFolder.open(cfg, "evaluate"), error))
    return Outcome("done", time.monotonic() - begun)


def _recorded(folder: RunFolder, error: Exception) -> str:
    """Return what to say of an error; its traceback goes to the run folder, unless an earlier attempt has left one."""
    where, new = "", folder.status == "new"
    with suppress(UserError):  # on a full disk the first error is the one to show
        folder.fail(error)
        where = f" (traceback: {folder.path / 'status'})" if new and folder.failed else ""
    log.debug("run failed", exc_info=error)
    return f"{type(error).__name__}: {error}{where}"


def is_taken(steps: Sequence[Step]) -> bool:
    """Whether a live process is making the images or scores of a run; steps that runs share are waited for instead."""
    last = [step.folder for step in steps[-2:] if step.folder is not None]
    return not last[-1].done and any(folder.busy for folder in last)


def quiet_chain() -> Chain:
    """Return a chain that prints nothing of its own."""
    return chain_of(lambda line: None)


@dataclass(frozen=True)
class Notes:
    """Where jobs leave what became of them, by their number."""

    folder: Path

    def lock(self, k: int) -> Path:
        """What a job holds while it lives; it is there from the moment the job begins."""
        return self.folder / f"{k}.lock"

    def outcome(self, k: int) -> Outcome | None:
        """Return what became of a job; None where it has not begun, lives or was killed."""
        path = self.folder / f"{k}.json"
        return Outcome(**read_json(path)) if path.is_file() else None

    def alive(self, k: int) -> bool:
        """Whether a job has begun and its process lives."""
        return is_locked(self.lock(k))

    def begun(self, k: int) -> bool:
        """Whether a job has begun."""
        return self.lock(k).is_file()

    @property
    def stopped(self) -> bool:
        """Whether no further job may begin."""
        return (self.folder / STOP).exists()

    def stop(self) -> None:
        """Let no further job begin."""
        (self.folder / STOP).touch()


@dataclass(frozen=True)
class Jobs:
    """What Hydra's launchers are given: each job does the run of its number. Picklable."""

    overrides: Sequence[Sequence[str]]
    notes: Notes
    fail_fast: bool

    def __call__(self, _: DictConfig) -> Any:
        """Do one run, and note what became of it."""
        k = int(HydraConfig.get().job.num)
        if self.notes.stopped:
            return
        with locked(self.notes.lock(k), f"job {k}"), redirect_stdout(io.StringIO()):
            outcome = self._outcome(k)
            if outcome.state == "failed" and self.fail_fast:
                self.notes.stop()
            write_json(self.notes.folder / f"{k}.json", asdict(outcome))

    def _outcome(self, k: int) -> Outcome:
        try:  # as rows are composed: what was given for other rows alone is passed over
            return do(derive(Config(overrides=list(self.overrides[k]))), quiet_chain())
        except Exception as error:  # no job may take a launcher with it
            return Outcome("failed", message=f"{type(error).__name__}: {error}")


def first_line(text: str) -> str:
    """Return the first line of a message.

    >>> first_line("a\\nb")
    'a'
    """
    return text.strip().partition("\n")[0]


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it.

    >>> duration(90), duration(8000)
    ('1.5 min', '2.2 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
