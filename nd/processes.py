"""The processes of one command that works on several devices: started together, watched, and ended with one message.

``trainer.strategy=ddp`` runs a verb once for every device, in processes that find each other as those of torchrun do.
This one only watches them: a process that is killed takes the others with it, and what stopped them is said once. What
each has to say of that it leaves in a file (``nd.terminal.NOTE``).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nd.config import Config, TrainerConfig
from nd.errors import UserError
from nd.launch import environments, launcher_of, n_processes
from nd.lightning import killed
from nd.terminal import INTERRUPTED, NOTE

EVERY_S, GRACE_S = 0.1, 5.0  # between looks; for processes to end by themselves once one of them has
SHOWN_LINES = 5  # of what a process without a message has printed last


@dataclass(frozen=True)
class Process:
    """One process of a command, the file of its message, and that of what it prints beside, where it is not shown."""

    popen: subprocess.Popen[str]
    note: Path
    printed: Path

    @property
    def said(self) -> str:
        """Why it stopped, in its own words; or what it printed last."""
        if self.note.is_file():
            return self.note.read_text(encoding="utf-8").strip()
        printed = self.printed.read_text(encoding="utf-8", errors="replace") if self.printed.is_file() else ""
        return "\n".join(printed.splitlines()[-SHOWN_LINES:])


def starts_processes(cfg: TrainerConfig) -> bool:
    """Say whether a verb is to be run once for every device, in processes that this one starts.

    In a notebook it is so by default: Lightning cannot spawn there.
    """
    chosen = cfg.strategy == "ddp" or (cfg.strategy == "auto" and hasattr(sys, "ps1"))
    return chosen and n_processes(cfg) > 1 and launcher_of(cfg) is None


def run_in_processes(verb: str, cfg: Config) -> None:
    """Run a verb once for every device, composed anew from its overrides; returns when all have come to their end.

    Raises: as ``run_processes``.
    """
    run_processes([sys.executable, "-m", f"nd.{verb}", *cfg.overrides], environments(cfg.trainer))


def run_processes(command: list[str], surroundings: Sequence[dict[str, str]]) -> None:
    """Run a command of this package once in each of some surroundings; returns when all have come to their end.

    What the first one prints is shown.

    Args:
        command: ends as verbs do (``nd.terminal.exit_with``).
        surroundings: environment of each process.

    Raises:
        UserError: the message of a process, or one of them was killed; all others are stopped by then.
        RuntimeError: a process failed in another way; the text is its traceback.
        KeyboardInterrupt: they were interrupted.
    """
    with TemporaryDirectory() as notes:
        processes = [_start(command, k, own, Path(notes)) for k, own in enumerate(surroundings)]
        showing = threading.Thread(target=_show, args=(processes[0].popen,), daemon=True)
        showing.start()
        with _stopped_at_the_end(processes):
            _watch(processes)
            failed = _failed(processes)
        showing.join(GRACE_S)
        if failed:
            raise failed


def _start(command: list[str], k: int, surroundings: dict[str, str], notes: Path) -> Process:
    """Start the k-th process; what the first one prints is shown, and it ends when this process does."""
    note, printed, first = notes / f"{k}.txt", notes / f"{k}.log", k == 0
    with nullcontext() if first else open(printed, "w", encoding="utf-8") as hidden:
        popen = subprocess.Popen(
            command,
            env=surroundings | {NOTE: str(note)},
            stdin=subprocess.PIPE,  # never written to: it is closed when this process ends, however that happens
            stdout=subprocess.PIPE if first else subprocess.DEVNULL,
            stderr=hidden,
            text=True,
        )
    return Process(popen, note, printed)


def _show(popen: subprocess.Popen[str]) -> None:
    """Print what a process prints, where this process prints to."""
    assert popen.stdout is not None
    for line in popen.stdout:
        print(line, end="", flush=True)


@contextmanager
def _stopped_at_the_end(processes: Sequence[Process]) -> Iterator[None]:
    """Leave no process behind, whatever ends the body."""
    try:
        yield
    finally:
        for one in processes:
            one.popen.terminate()
        end = time.monotonic() + GRACE_S
        for one in processes:
            try:
                one.popen.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.popen.kill()
                one.popen.wait()


def _watch(processes: Sequence[Process]) -> None:
    """Return when all processes have ended, one was killed, or some time after the first that did not end well."""
    end = float("inf")
    while time.monotonic() < end:
        codes = [one.popen.poll() for one in processes]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes) or min(ended, default=0) < 0:
            return
        if end == float("inf") and any(ended):
            end = time.monotonic() + GRACE_S  # the others have messages of their own, or wait for the lost one forever
        time.sleep(EVERY_S)


def _failed(processes: Sequence[Process]) -> Exception | KeyboardInterrupt | None:
    """Return what stopped the processes, of several reasons the one that explains the others."""
    ended = {k: one for k, one in enumerate(processes) if one.popen.returncode}
    codes = {k: one.popen.returncode for k, one in ended.items()}
    for k, code in codes.items():
        if code < 0:
            return killed(k, signal.Signals(-code).name, code)
    if INTERRUPTED in codes.values():
        return KeyboardInterrupt()
    for k, code in codes.items():
        if code == 2 and ended[k].note.is_file():
            return UserError(ended[k].said)
    for k in sorted(codes, key=lambda k: ended[k].note.stat().st_mtime if ended[k].note.is_file() else float("inf")):
        lines = ended[k].said.splitlines() or [f"exit code {codes[k]}"]
        return RuntimeError("\n".join([f"process {k} of this run failed: {lines[-1]}", *lines]))
    return None
