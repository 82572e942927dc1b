"""The files that a run has left: recorded in its manifest when it ends, compared when they are read.

A file that is gone is told by whoever needs it: finished chains need their mappers no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from typing_extensions import TypedDict

from nd.errors import UserError
from nd.files import read_json, unreadable
from nd.sealed import content_digest

UNRECORDED = frozenset({"manifest.json", "status"})  # written after the record, or the record itself
LOGS = "-log"  # folders of further loggers, which may still be writing


class Output(TypedDict):
    """Size and digest of one file."""

    bytes: int
    digest: str


class WithOutputs(TypedDict, total=False):
    """What is read here of a manifest."""

    outputs: dict[str, Output]


Outputs = Mapping[str, Output]


def describe_outputs(folder: Path) -> dict[str, Output]:
    """Return what there is to record of the files of a run that ends, by their path in its folder."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": content_digest(path)}
        for path in _files(folder)
    }


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part.endswith(LOGS) for part in inner)
        if path.is_file() and not hidden and str(path.relative_to(folder)) not in UNRECORDED:
            yield path


def changed_sizes(folder: Path, recorded: Outputs) -> list[str]:
    """Return messages on files that are there and have another size than they had; no file is read."""
    found = {name: folder / name for name in recorded if (folder / name).exists()}
    return [
        f"{path} has {path.stat().st_size} bytes, was written with {recorded[name]['bytes']}"
        for name, path in found.items()
        if not path.is_file() or path.stat().st_size != recorded[name]["bytes"]
    ]


def recorded_outputs(folder: Path) -> Outputs:
    """Return what the manifest of a run records of its files: nothing, where an earlier version has written it."""
    path = folder / "manifest.json"
    found: Outputs = read_json(path, WithOutputs).get("outputs", {}) if path.exists() else {}
    return found


def output_of(folder: Path, name: str, again: str = "") -> Path:
    """Return the path of a file of a run, made sure to be what the run has left.

    Args:
        folder: of the run.
        name: of the file, its path in the folder.
        again: what to do otherwise, for messages.

    Raises:
        UserError: the file is gone, cannot be read, or was changed.
    """
    path, recorded = folder / name, recorded_outputs(folder)
    again = again or f"Remove {folder} and run its verb again."
    try:
        if name in recorded and content_digest(path) != recorded[name]["digest"]:
            raise UserError(f"{path} was changed since the run wrote it. {again}")
    except OSError as error:
        raise UserError(f"{unreadable(path, error)} {again}") from None
    return path
