"""What a benchmark gives: rows, each one thing measured in several turns, beside the same by others where there is one.

    python experiments/benchmarks/rows.py ridge [--quick] [--threads 2] [--cuda] [--device cpu] --out FILE.json

runs one benchmark in this process and writes its rows; `make bench` does so for each of them (see __main__.py). Every
script here has ``measure(asked) -> list[Row]``.

On a CPU time is this process's processor time, one thread, so that other work on the machine moves it little (by shared
caches and memory, up to a third); ``clock`` says so in every row. On a GPU it is time on the clock. So it is with
``--threads``, which says what a user of an idle machine waits for: batches keep several threads busy, single images
do not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = (
    "nd", "torch", "numpy", "scipy", "h5py", "diffusers", "transformers", "open_clip_torch", "hydra-core",
    "himalaya", "scikit-learn", "scikit-image", "fastl2lir",
)  # fmt: skip
CPU_TIME, WALL_TIME = "processor", "clock"
MEASURED, COUNTED = "measured", "counted"  # no time: memory of a process; operations, or bytes of what has no contents


@dataclass(frozen=True)
class Asked:
    """How a benchmark is run.

    Attributes:
        quick: at sizes that show that it works; its figures mean nothing.
        cuda: what is measured on a GPU, instead of what is measured on a CPU.
        device: of PyTorch; with ``cuda`` it is "cpu" where that is only rehearsed.
        threads: of PyTorch, timed on the clock; 0: one, and its processor time.
    """

    quick: bool = False
    cuda: bool = False
    device: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.cuda and self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise SystemExit("--cuda: PyTorch sees no GPU here. Leave it out, or rehearse it: --cuda --device cpu")

    def pick(self, quick: Any, full: Any) -> Any:
        """Return one of two sizes."""
        return quick if self.quick else full

    @property
    def clock(self) -> str:
        """Which time is measured."""
        return WALL_TIME if self.device == "cuda" or self.threads else CPU_TIME

    def seconds(self, work: Callable[..., Any], *given: Any) -> float:
        """Return the seconds of some work, by the clock that is used here."""
        return seconds_of(work, *given, clock=self.clock)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured.

    Attributes:
        case: what, in words.
        unit: of the figures.
        ours: this package's figures, one a turn.
        peer: what it is held against; empty where there is nothing.
        theirs: the peer's figures, one a turn of ours, or one for all turns.
        more: whether more is better.
        clock: "processor" or "clock" of a time; "measured" or "counted" of what is none.
        note: what a reader must know besides.
    """

    case: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    more: bool = False
    clock: str = CPU_TIME
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """How many times better ours is than the peer, turn by turn; empty without a peer.

        >>> Row(case="fit", unit="s", ours=[2.0, 4.0], peer="other", theirs=[4.0, 4.0]).ratios
        [2.0, 1.0]
        """
        theirs = list(self.theirs) * (len(self.ours) if len(self.theirs) == 1 else 1)
        if not theirs:
            return []
        pairs = zip(self.ours, theirs, strict=True)
        return [mine / other if self.more else other / mine for mine, other in pairs]

    def fields(self) -> dict[str, Any]:
        """Return the columns of the CSV that are this row's own; figures are medians over the turns."""
        found: dict[str, Any] = {"case": self.case, "unit": self.unit, "clock": self.clock, "turns": len(self.ours)}
        found |= spread("ours", self.ours) | {"peer": self.peer}
        found |= spread("theirs", self.theirs) | spread("ratio", self.ratios)
        return found | {"better": "more" if self.more else "less", "note": self.note}


def spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return median, least and most of some values under names; empty texts where there are none.

    >>> spread("ours", [3.0, 1.0, 2.0])
    {'ours': 2.0, 'ours_min': 1.0, 'ours_max': 3.0}
    """
    found = (median(values), min(values), max(values)) if values else ("", "", "")
    return dict(zip((name, f"{name}_min", f"{name}_max"), found, strict=True))


def seconds_of(work: Callable[..., Any], *given: Any, clock: str = CPU_TIME) -> float:
    """Return the seconds of some work: this process's processor time, or on the clock, a GPU's share included."""
    now = time.process_time if clock == CPU_TIME else time.perf_counter
    begun = now()
    work(*given)
    if clock == WALL_TIME and "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return now() - begun


def in_turns(
    turns: int, seconds: Callable[..., float], *works: Callable[[], Any], warm: bool = True
) -> list[list[float]]:
    """Return the seconds of some works that take turns, so that whatever else the machine does meets all of them.

    Args:
        turns: how often each is timed.
        seconds: ``Asked.seconds``.
        works: what is timed.
        warm: do each once before.
    """
    for work in works if warm else ():
        work()
    found: list[list[float]] = [[] for _ in works]
    for _ in range(turns):
        for times, work in zip(found, works, strict=True):
            times.append(seconds(work))
    return found


def peak_gb() -> float:
    """Return the most memory this process has held so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_row(case: str = "peak memory of the process") -> Row:
    """Return the row of ``peak_gb``."""
    return Row(case=case, unit="GB", ours=[peak_gb()], clock=MEASURED)


# ---- where it was measured ------------------------------------------------------------------------------------------


def versions() -> str:
    """Return the versions of the packages that figures hang on, and Python's."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def machine(device: str) -> str:
    """Return processor, cores and memory, and the GPU where one was used; no name of a host."""
    found = f"{processor()}, {os.cpu_count()} cores, {platform.system()}"
    if device == "cuda":
        import torch

        found = f"{torch.cuda.get_device_name()}; {found}"
    return found


def processor() -> str:
    """Return the processor's name as the system gives it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def busy() -> float:
    """Return how many processes wanted a core, on average over the last minute; 0 where the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


# ---- one benchmark in this process -----------------------------------------------------------------------------------


def run(name: str, asked: Asked) -> dict[str, Any]:
    """Return the rows of a benchmark with what they were measured on."""
    load, begun = busy(), time.perf_counter()
    measure = importlib.import_module(name).measure
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(asked.threads or 1)
    rows = measure(asked)
    if not rows:
        raise SystemExit(f"{name} gave no row")
    known = {"size": "quick" if asked.quick else "full", "device": asked.device, "load": max(load, busy())}
    threads = f"{asked.threads} threads" if asked.threads > 1 else "one thread"
    known |= {"machine": f"{machine(asked.device)}, {threads}", "versions": versions()}
    seconds = round(time.perf_counter() - begun, 1)
    return {
        "asked": asdict(asked),
        "seconds": seconds,
        "rows": [{"benchmark": name} | row.fields() | known for row in rows],
    }


def main(given: Sequence[str] | None = None) -> None:
    """Run one benchmark and write its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", required=True)
    found = parser.parse_args(given)
    asked = Asked(found.quick, found.cuda, found.device or ("cuda" if found.cuda else "cpu"), found.threads)
    from nd.files import write_json

    write_json(Path(found.out), run(found.name, asked))


if __name__ == "__main__":
    from rows import main as imported_main  # one class Row, this module's and that of the benchmarks

    imported_main()
