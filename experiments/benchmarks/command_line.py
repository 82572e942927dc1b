"""How long the command line takes to start: its help, and a run that has nothing to do.

    command   make bench ARGS="--only command_line"
    time      2 minutes on one core, most of it for the run that is there before
    disk      10 MB in a temporary folder

Each command is a process of its own, as a user starts it. A run with nothing to do is `nd run experiment=scenes` in
small (debug=fast), given again: composing the configuration and finding every step finished takes the same at any size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rows import CPU_TIME, WALL_TIME, Asked, Row

SMALL_RUN = ("run", "experiment=scenes", "debug=fast")
LIMITS = {("--help",): 1.0, SMALL_RUN: 3.0}  # seconds that a user is promised, on a machine that does nothing else
NAMES = {("--help",): "nd --help", SMALL_RUN: "nd run, nothing to do"}


def measure(asked: Asked) -> list[Row]:
    """Time the commands by both clocks."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for words, limit in list(LIMITS.items())[: asked.pick(1, 2)]:
            command(words, Path(folder))  # the first time it has everything to do
            turns = [command(words, Path(folder)) for _ in range(asked.pick(2, 5))]
            for clock, seconds in zip((WALL_TIME, CPU_TIME), zip(*turns, strict=True), strict=True):
                rows.append(Row(case=NAMES[words], unit="s", ours=seconds, peer="limit", theirs=[limit], clock=clock))
    return rows


def command(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return the seconds of a command on the clock, and of processors."""
    before, begun = children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "nd", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"nd {' '.join(words)} ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
    return time.perf_counter() - begun, children() - before


def children() -> float:
    """Return the processor seconds of all processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system
