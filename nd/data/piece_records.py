"""What the manifest of a prepared folder says of its files, and whether they are still so.

An entry holds size, time, hash and settings of a file as it was written; of one that was added to later also what was
added, and what the file was before (``former``): a process that is killed while it adds leaves that one in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import h5py
from typing_extensions import TypedDict

from nd.errors import UserError
from nd.files import misfit, read_json, write_json
from nd.locks import locked
from nd.sealed import content_digest, recorded_of

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
REMAKE = "Remove its folder and run `nd prepare` again."


class PieceFacts(TypedDict):
    """What the manifest records of a piece."""

    bytes: int
    mtime_ns: int
    sha256: str
    settings: dict[str, Any]
    content: NotRequired[str]
    added: NotRequired[dict[str, str]]
    former: NotRequired[dict[str, Any]]


class PreparedManifest(TypedDict):
    """What the manifest of a prepared folder holds."""

    files: dict[str, PieceFacts]


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. UserError where there is none or it is of another version."""
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} exists but holds no {MANIFEST}, so `nd prepare` did not write it. "
            "Set paths.data to another folder, or move that one away."
        )
    manifest = read_json(folder / MANIFEST, again=REMAKE)
    if manifest.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{folder} was prepared by another version of nd (format {manifest.get('format')}, now {FORMAT_VERSION}). "
            "Remove it and run `nd prepare` again."
        )
    if problem := misfit(manifest, PreparedManifest):
        raise UserError(f"{folder / MANIFEST} does not hold what it should: {problem}. {REMAKE}")
    return dict(manifest)


def record_piece(folder: Path, name: str, entry: dict[str, Any]) -> None:
    path = folder / MANIFEST
    with locked(folder / f".{MANIFEST}.lock", str(path), wait=True):
        manifest: dict[str, Any] = {"format": FORMAT_VERSION, "files": {}}
        if path.exists():
            manifest = read_json(path, PreparedManifest, REMAKE)
        manifest["files"][name] = entry
        write_json(path, manifest)


def check_piece(path: Path) -> None:
    """Make sure that a file of a prepared folder is the one that `nd prepare` wrote there.

    What it holds is compared when it is read; this tells whether it is the right file. Files that are in no manifest
    pass: people write their own.

    Raises:
        UserError: it is another one.
    """
    if entry := entry_of(path):
        check_content(path, entry)


def entry_of(path: Path) -> Any:
    """What the manifest beside a file says of it as it lies there; an empty dict where it says nothing."""
    manifest = path.parent / MANIFEST
    entry = read_json(manifest, PreparedManifest, REMAKE)["files"].get(path.name, {}) if manifest.is_file() else {}
    former = entry.get("former")
    if former and path.is_file() and _unchanged(path, former):
        return former
    return entry


def _unchanged(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and time that are recorded."""
    state = path.stat()
    return bool((entry["bytes"], entry["mtime_ns"]) == (state.st_size, state.st_mtime_ns))


def added_to(path: Path) -> dict[str, str]:
    """Return the hash of everything that was added to a prepared file after it was written, by name."""
    return dict(entry_of(path).get("added", {}))


def check_content(path: Path, entry: PieceFacts) -> None:
    if not path.is_file() or (h5py.is_hdf5(path) and not recorded_of(path).seal):
        return  # gone, or changed on purpose: whoever reads it says so, or compares contents where it matters
    if "content" in entry and content_digest(path) != entry["content"]:
        raise UserError(
            f"{path} is not the file that `nd prepare` wrote, or was changed since. Remove it and run `nd prepare` "
            "again, or give back what was there."
        )


def recorded_hash(path: Path) -> str | None:
    """The hash that a prepared file had when it was written; None where it may have changed since, or is none."""
    entry = entry_of(path)
    if entry and (_unchanged(path, entry) or ("added" in entry and content_digest(path) == entry["content"])):
        return str(entry["sha256"])
    return None
