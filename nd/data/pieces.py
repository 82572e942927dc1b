"""A prepared folder is made of pieces, each whole or absent, and says what every one of them was made from.

A piece is one file. It is written under a hidden name beside its final one and then takes that name in a single rename;
``manifest.json`` records its size, hash and settings. A killed process leaves only the hidden file: a piece that can be
resumed goes on from it, any other starts again. One process at a time writes a piece; others wait. Pieces are added as
they are asked for (another subject, say) and never overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import h5py
from typing_extensions import TypedDict

from nd.data.links import moved, relink
from nd.errors import UserError
from nd.files import (
    atomic_path,
    check_space,
    misfit,
    partial_path,
    read_json,
    sha256_file,
    system_errors,
    write_json,
)
from nd.locks import locked
from nd.sealed import content_digest, recorded_of

LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
REMAKE = "Remove its folder and run `nd prepare` again."
ADVICE = "Free some space or set paths.data to another folder."

Settings = dict[str, Any]


class PieceFacts(TypedDict):
    """What the manifest records of a piece."""

    bytes: int
    mtime_ns: int
    sha256: str
    settings: dict[str, Any]
    content: NotRequired[str]


class PreparedManifest(TypedDict):
    """What the manifest of a prepared folder holds."""

    files: dict[str, PieceFacts]


@dataclass(frozen=True)
class Piece:
    """One file of a prepared folder.

    ``settings`` is everything its content depends on (an empty string is unknown to the caller and not compared);
    ``write`` fills the file at the path it is given; ``resumable``: it goes on from what an interrupted attempt left
    there; ``n_bytes``: what it will take on disk, as far as known; ``links``: where the files lie now from which it
    reads datasets in place, by dataset.
    """

    name: str
    settings: Settings
    write: Callable[[Path], None]
    resumable: bool = False
    n_bytes: int = 0
    links: Mapping[str, Path] = field(default_factory=dict)


def make_pieces(folder: Path, pieces: Sequence[Piece], record: dict[str, Any]) -> list[str]:
    """Write the pieces that ``folder`` does not hold yet; return their names.

    Args: ``record`` is added to the manifest's entry of each. Raises UserError where the folder cannot be written, is
    of other origin, or holds a piece that was made with other settings or is damaged. A piece that fails leaves nothing
    behind, or, where it can be resumed, its hidden file alone.
    """
    with system_errors(folder, ADVICE):
        return [piece.name for piece in pieces if _make(folder, piece, record)]


def _make(folder: Path, piece: Piece, record: dict[str, Any]) -> bool:
    if is_prepared(folder, piece):  # before locking, so that a read-only folder of a colleague can be used
        return _relinked(folder, piece)
    with _cleaned_after_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder / piece.name, piece)
        with locked(folder / f".{piece.name}.lock", str(folder / piece.name), wait=True):
            if is_prepared(folder, piece):
                return False
            _write(folder, piece, record)
    return True


def _relinked(folder: Path, piece: Piece) -> bool:
    """Lead a piece whose linked files have moved to their new place; whether anything had to be done.

    Its recorded hash stays: the content is the same, and runs that read it go on being runs of it.
    """
    path = folder / piece.name
    places = moved(path, piece.links)
    if not places:
        return False
    with (
        locked(folder / f".{piece.name}.lock", str(path), wait=True),
        atomic_path(path, alone=True, advice=ADVICE) as copy,
    ):
        relink(path, copy, places)
        state = copy.stat()
        entry = manifest_of(folder)["files"][piece.name]
        _record(folder, piece.name, entry | {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns})
    for name, file in places.items():
        LOG.info("%s reads %s from %s now", path, name, file)
    return True


@contextmanager
def _cleaned_after_failure(folder: Path) -> Iterator[None]:
    """After a failure remove the locks and, where they are empty then, the folders that were made."""
    absent = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: something was finished, or somebody else writes there
            if absent and not [p for p in folder.iterdir() if p.suffix != ".lock"]:
                for lock in folder.glob(".*.lock"):
                    lock.unlink()
            for one in absent:
                one.rmdir()
        raise


def _check_space(path: Path, piece: Piece) -> None:
    there = partial_path(path)
    left = piece.n_bytes - (there.stat().st_blocks * 512 if piece.resumable and there.exists() else 0)
    check_space(path, left, ADVICE)


def _write(folder: Path, piece: Piece, record: dict[str, Any]) -> None:
    with atomic_path(folder / piece.name, alone=True, resume=piece.resumable, advice=ADVICE) as temporary:
        piece.write(temporary)
        state = temporary.stat()
        entry = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256_file(temporary)}
        entry |= {"settings": piece.settings, "content": content_digest(temporary)}
        # Recorded first: killed between the two, the file is absent and the next attempt makes it.
        _record(folder, piece.name, entry | record)


def _record(folder: Path, name: str, entry: dict[str, Any]) -> None:
    path = folder / MANIFEST
    with locked(folder / f".{MANIFEST}.lock", str(path), wait=True):
        manifest: dict[str, Any] = {"format": FORMAT_VERSION, "files": {}}
        if path.exists():
            manifest = read_json(path, PreparedManifest, REMAKE)
        manifest["files"][name] = entry
        write_json(path, manifest)


def is_prepared(folder: Path, piece: Piece) -> bool:
    """Say whether ``folder`` holds this piece. A folder of other origin, other settings or damage is a UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder. Set paths.data to another folder.")
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    if not visible:
        return False
    entry = manifest_of(folder)["files"].get(piece.name)
    path = folder / piece.name
    if entry is None:
        if path.exists():
            raise UserError(
                f"{path} is not in {MANIFEST}, so `nd prepare` did not write it. Move it away, or set paths.data to "
                "another folder."
            )
        return False
    _check_settings(path, entry["settings"], piece.settings)
    return _is_whole(path, entry)


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


def _check_settings(path: Path, made: Settings, asked: Settings) -> None:
    differing = [
        f"{name}: made with {made.get(name)}, asked for {value}"
        for name, value in asked.items()
        if value != "" and made.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{path} was prepared with other settings ({'; '.join(differing)}). "
            f"Set paths.data to another folder, or remove {path} to prepare it again."
        )


def _is_whole(path: Path, entry: PieceFacts) -> bool:
    if not path.is_file():
        return False
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(
            f"{path} has {size} bytes instead of {entry['bytes']}: it was changed or truncated. Remove {path} and run "
            "`nd prepare` again."
        )
    _check_content(path, entry)
    return True


def check_piece(path: Path) -> None:
    """Make sure that a file of a prepared folder is the one that `nd prepare` wrote there.

    What it holds is compared when it is read; this tells whether it is the right file. Files that are in no manifest
    pass: people write their own.

    Raises:
        UserError: it is another one.
    """
    manifest = path.parent / MANIFEST
    entry = read_json(manifest, PreparedManifest, REMAKE)["files"].get(path.name) if manifest.is_file() else None
    if entry is not None:
        _check_content(path, entry)


def _check_content(path: Path, entry: PieceFacts) -> None:
    if not path.is_file() or (h5py.is_hdf5(path) and not recorded_of(path).seal):
        return  # gone, or changed on purpose: whoever reads it says so, or compares contents where it matters
    if "content" in entry and content_digest(path) != entry["content"]:
        raise UserError(
            f"{path} is not the file that `nd prepare` wrote, or was changed since. Remove it and run `nd prepare` "
            "again, or give back what was there."
        )


def recorded_hash(path: Path) -> str | None:
    """The hash that a prepared file had when it was written; None where it may have changed since, or is none."""
    manifest = path.parent / MANIFEST
    entry = read_json(manifest, PreparedManifest, REMAKE)["files"].get(path.name) if manifest.is_file() else None
    state = path.stat()
    same = entry and (entry["bytes"], entry["mtime_ns"]) == (state.st_size, state.st_mtime_ns)
    return str(entry["sha256"]) if entry and same else None


def folder_megabytes(folder: Path) -> float:
    """Size of a prepared folder's files, MB (10^6 bytes)."""
    return sum(p.stat().st_size for p in folder.iterdir() if not p.name.startswith(".")) / 1e6
