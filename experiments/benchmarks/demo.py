"""The whole demo from an empty folder: what `make demo` takes once its environment is there, and how much memory.

command   make bench ARGS="--only demo"
time      14 minutes of processor time and more, once
disk      200 MB in a temporary folder
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from command_line import command
from rows import CPU_TIME, MEASURED, WALL_TIME, Asked, Row

VERBS = ("run", "table", "report")


def measure(asked: Asked) -> list[Row]:
    """Time the three commands of the demo, one after the other."""
    small = ["debug=fast"] if asked.quick else []
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for verb in VERBS[: asked.pick(1, 3)]:
            begun = time.monotonic()
            times[verb] = command([verb, "experiment=scenes", *small], Path(folder))
            print(
                f"nd {verb}: {times[verb][0]:.0f} s by the clock, {time.monotonic() - begun:.0f} s in all", flush=True
            )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    rows = [
        Row(case=f"demo: nd {verb} experiment=scenes", unit="s", ours=[took], clock=clock)
        for verb, both in times.items()
        for clock, took in zip((WALL_TIME, CPU_TIME), both, strict=True)
    ]
    return [*rows, Row(case="demo: peak memory of one process", unit="GB", ours=[peak], clock=MEASURED)]
