"""Give every reader, for some minutes each, files that are nearly its own; watch for errors, crashes, hangs and leaks.

    PYTHONPATH=tests python tests/faults/fuzz.py --minutes 10
    PYTHONPATH=tests python tests/faults/fuzz.py --minutes 10 --engine atheris --readers stimuli subject

The readers and their files are those of ``tests/test_fuzz_readers.py``. ``hypothesis`` spoils a whole file in a few
places and shrinks what fails; ``atheris`` (pip install atheris) changes files further that took a new way through
``nd``. Each reader has a process of its own; the file on which one failed is kept.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HANG_S = 60  # the slowest file takes a second
LEAK_BYTES = 48 << 20  # that may be held at the end beyond what was held at a third of the time
ROUND = 400  # files of one seed of hypothesis
NOTED_S = 2.0
PAGE = 4096


@dataclass
class Watched:
    """A reader and the file it is given; notes how many files it read, and what memory was held, beside the file."""

    read: Callable[[Path], Any]
    path: Path
    notes: Path
    n_files: int = 0
    noted: float = field(default_factory=time.monotonic)

    def meets(self, content: bytes) -> None:
        """Have a file read that holds this."""
        from test_fuzz_readers import meets

        self.path.write_bytes(content)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        meets(self.read, self.path)
        self.n_files += 1
        if time.monotonic() > self.noted + NOTED_S:
            self.note()

    def note(self) -> None:
        """Add a line: files read, bytes held."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE
        with self.notes.open("a", encoding="ascii") as handle:
            handle.write(f"{self.n_files} {held}\n")
        self.noted = time.monotonic()


def begun(name: str, folder: Path) -> tuple[Watched, bytes]:
    """Return a reader and what a whole file of it holds, which it reads once."""
    from test_fuzz_readers import READERS, REFUSED_WHOLE

    file, write, read = READERS[name]
    path = folder / file
    write(path)
    if name not in REFUSED_WHOLE:
        read(path)
    return Watched(read, path, folder / "notes"), path.read_bytes()


def by_hypothesis(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Fuzz one reader, in rounds of one seed each."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from test_fuzz_readers import edited, edits

    end = time.monotonic() + seconds
    watched, whole = begun(name, folder)
    while time.monotonic() < end:

        @seeded(seed)
        @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(edits(len(whole)))
        def fuzz(changes: list[tuple[str, int, bytes]]) -> None:
            if time.monotonic() < end:
                watched.meets(edited(whole, changes))

        fuzz()
        seed += 1
    watched.note()


def by_atheris(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Fuzz one reader, led by the lines of ``nd`` that a file reaches; does not return."""
    import atheris

    with atheris.instrument_imports(include=["nd"]):
        import test_fuzz_readers  # noqa: F401
    watched, whole = begun(name, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(whole)
    given = [
        f"-max_total_time={max(1, int(seconds))}", f"-seed={seed + 1}", f"-max_len={2 * len(whole) + 64}", "-timeout=0",
        "-rss_limit_mb=0", "-malloc_limit_mb=0", f"-artifact_prefix={folder}/", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([name, *given, str(corpus)], watched.meets)
    atheris.Fuzz()


ENGINES: dict[str, Callable[[str, Path, float, int], None]] = {"hypothesis": by_hypothesis, "atheris": by_atheris}


def fuzzed(name: str, engine: str, minutes: float, seed: int, kept: Path) -> tuple[bool, str]:
    """Fuzz one reader in a process of its own; return whether it went well, and one line about it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = ["--one", str(folder), "--engine", engine, "--minutes", str(minutes), "--seed", str(seed)]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, *words, "--readers", name], capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        took = time.monotonic() - begin
        notes = (folder / "notes").read_text(encoding="ascii").splitlines() if (folder / "notes").exists() else []
        files, held = (
            zip(*([int(word) for word in line.split()] for line in notes), strict=True) if notes else ([0], [0])
        )
        grown = held[-1] - held[len(held) // 3]
        outcome = "well"
        if done.returncode:
            outcome = "HANG" if "Timeout (" in done.stderr else f"FAILED (exit code {done.returncode})"
        elif grown > LEAK_BYTES:
            outcome = "LEAK"
        if outcome != "well":
            shutil.copytree(folder, kept / name.replace(" ", "-"), dirs_exist_ok=True)
            print(done.stderr[-4000:], file=sys.stderr)
        memory = f"{held[0] / 1e6:.0f} MB held at first, {grown / 1e6:+.1f} MB after a third"
        return outcome == "well", f"{name:<24} {files[-1]:8} files in {took:5.0f} s, {memory}: {outcome}"


def main() -> int:
    """Do what the command line says; the exit code is 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--engine", choices=ENGINES, default="hypothesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", help="default: all")
    parser.add_argument("--kept", type=Path, default=Path("fuzzed"), help="folder for files on which a reader failed")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.engine == "atheris" and not find_spec("atheris"):
        parser.error("atheris is not installed: pip install atheris, or --engine hypothesis")
    if given.one:
        ENGINES[given.engine](given.readers[0], given.one, 60 * given.minutes, given.seed)
        return 0
    from test_fuzz_readers import READERS

    well = True
    for name in given.readers or READERS:
        fine, line = fuzzed(name, given.engine, given.minutes, given.seed, given.kept)
        print(line, flush=True)
        well = well and fine
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
