"""Command lines: run inside the process of the tests, where everything is imported already, or in one of their own."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from nd.cli import main

ROOT = Path(__file__).parent.parent
# One subject and method in the smallest size, each image in a batch of its own.
ONE_ROW = ["run", "experiment=scenes", "debug=fast", "table=", "trainer.batch_size=2", "trainer.progress=false"]


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def nd(*words: str, cwd: Path) -> Done:
    """Run ``nd WORDS`` in the folder ``cwd``, in this process."""
    return ended(lambda: main(list(words)), cwd)


def program(script: str, *words: str, cwd: Path) -> Done:
    """Run ``python SCRIPT WORDS`` in the folder ``cwd``, in this process."""
    with mock.patch.object(sys, "argv", [script, *words]):
        return ended(lambda: runpy.run_path(script, run_name="__main__"), cwd)


def ended(call: Callable[[], object], cwd: Path) -> Done:
    """Return how a call ended in the folder ``cwd``, and what it printed."""
    with chdir(cwd), redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            call()
        except SystemExit as end:
            return Done(int(end.code or 0), out.getvalue(), err.getvalue())
    return Done(0, out.getvalue(), err.getvalue())


def succeed(*words: str, cwd: Path) -> Done:
    """Run ``nd WORDS`` in this process; fail with what it printed where it fails."""
    done = nd(*words, cwd=cwd)
    assert done.code == 0, f"nd {' '.join(words)}\n{done.out}\n{done.err}"
    return done


def environment() -> dict[str, str]:
    """Surroundings of a process that runs this working tree's ``nd``."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def apart(*words: str, cwd: Path, program: tuple[str, ...] = ("-m", "nd")) -> subprocess.CompletedProcess[str]:
    """Run ``python PROGRAM WORDS`` in the folder ``cwd``, in a process of its own."""
    command = [sys.executable, *program, *words]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280)
