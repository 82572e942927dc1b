"""Commands run in forks of this process, where everything is imported already, so that a disturbance meets their work.

A fork costs no start of Python: a command can be killed at any of its file operations, or at any time, hundreds of
times over.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from nd.cli import main
from nd.digests import digest_bytes

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
PATIENCE_S = 1800.0
torch.set_num_threads(1)  # OpenMP's threads do not come along into a fork, which would wait for them without end


def remember_compositions(folder: Path) -> None:
    """Let Hydra compose the same words in the same place once: composing takes longer than the work of most verbs.

    Files of the project are read and checked as ever; only what Hydra makes of the unchanging ``conf/`` is kept.
    """
    compose = ConfigLoaderImpl.load_configuration
    folder.mkdir(exist_ok=True)

    def remembered(
        loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *args: Any, **more: Any
    ) -> Any:
        key = repr([config_name, overrides, args, more, loader.get_sources(), str(Path.cwd())])
        place = folder / digest_bytes(key.encode())
        if not place.exists():
            made = compose(loader, config_name, overrides, *args, **more)
            own = place.with_suffix(f".{os.getpid()}")
            with suppress(OSError):  # a disturbed process may not be allowed to
                own.write_bytes(pickle.dumps(made))
                own.replace(place)
            return made
        return pickle.loads(place.read_bytes())

    ConfigLoaderImpl.load_configuration = remembered


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, minus the signal that ended it, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def well(self) -> bool:
        """Whether it did what it was asked for."""
        return self.code == 0

    @property
    def bare(self) -> bool:
        """Whether a user met a bare traceback."""
        return "Traceback (most recent call last)" in self.err


@dataclass
class Fork:
    """A command that is running."""

    pid: int
    log: Path

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed, and its code says so."""
        end = time.monotonic() + PATIENCE_S
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return Ended(code, _text(self.log.with_suffix(".out")), _text(self.log.with_suffix(".err")))
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"a command hangs; its output is in {self.log}")
            time.sleep(0.002)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def started(words: Sequence[str], cwd: Path, log: Path, first: Callable[[], None] = lambda: None) -> Fork:
    """Start ``nd WORDS`` in a fork.

    Args:
        words: of the command line.
        cwd: where it runs.
        log: its output goes to this name with .out and .err.
        first: done in the fork before the command.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Fork(pid, log)
    code = 1
    try:
        for number, suffix in ((1, ".out"), (2, ".err")):
            handle = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(handle, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        first()
        with chdir(cwd):
            main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # what Python would print of it
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def ended(words: Sequence[str], cwd: Path, log: Path, first: Callable[[], None] = lambda: None) -> Ended:
    """Run ``nd WORDS`` in a fork to its end."""
    return started(words, cwd, log, first).wait()


def counted_events(words: Sequence[str], cwd: Path, log: Path) -> tuple[int, float]:
    """Return how many file operations below its folder a command makes, and how many seconds it takes.

    What it imports is imported here too, so that the next fork finds it.
    """
    counter, imports = log.with_suffix(".count"), log.with_suffix(".imports")

    def count() -> None:
        seen = [0]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if _concerns(event, arguments, cwd):
                seen[0] += 1
                os.pwrite(handle, f"{seen[0]:12d}".encode(), 0)
            elif event == "import":
                os.write(names, f"{arguments[0]}\n".encode())

        names = os.open(imports, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        handle = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(hook)

    begun = time.monotonic()
    done = ended(words, cwd, log, count)
    if not done.well:
        raise RuntimeError(f"nd {' '.join(words)}: {done.err}")
    took = time.monotonic() - begun
    for name in imports.read_text(encoding="utf-8").splitlines():
        with suppress(Exception):  # what there is not was not imported there either
            import_module(name)
    return int(counter.read_text(encoding="utf-8").strip() or 0), took


def dies_at(event_number: int, cwd: Path) -> Callable[[], None]:
    """Return what lets a fork kill itself at one of its file operations, counted from 1."""

    def arm() -> None:
        seen = [0]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if _concerns(event, arguments, cwd):
                seen[0] += 1
                if seen[0] == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def _concerns(event: str, arguments: tuple[object, ...], cwd: Path) -> bool:
    return event in EVENTS and bool(arguments) and str(arguments[0]).startswith(str(cwd))
