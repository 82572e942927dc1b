"""One thing that a run needs, and how sizes are said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Need:
    """One thing a run needs.

    ``state``: "ok", "made" (absent, but made by nd itself), "wrong" (there, but of no use), "missing",
    or "hint" (only a remark). ``brief`` is added to its name where all that is missing is said in one line.
    """

    what: str
    state: str
    where: str
    note: str = ""
    brief: str = ""

    @property
    def name(self) -> str:
        """Its name with the brief remark."""
        return f"{self.what} ({self.brief})" if self.brief else self.what


def size_text(path: Path) -> str:
    """Return the size of a file or of everything in a folder, e.g. ``12.3 MB``."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return byte_text(sum(file.stat().st_size for file in files))


def byte_text(n_bytes: float) -> str:
    """Return a number of bytes with a unit that fits it."""
    for unit, size, least in (("GB", 1e9, 1e9), ("MB", 1e6, 1e5)):
        if n_bytes >= least:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"
