"""A prepared folder is made of pieces, each whole or absent, and says what every one of them was made from.

A piece is one file. It is written under a hidden name beside its final one and then takes that name in a single rename;
``manifest.json`` records its size, hash and settings. A killed process leaves only the hidden file: a piece that can be
resumed goes on from it, any other starts again. One process at a time writes a piece; others wait. Pieces are added as
they are asked for (another subject, say) and never overwritten. What a piece may be given later (captions, ROIs) is
added to a copy that takes its place.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from nd.data.links import moved, relink
from nd.data.piece_records import MANIFEST, PieceFacts, check_content, entry_of, manifest_of, record_piece
from nd.errors import UserError
from nd.files import (
    atomic_path,
    check_space,
    partial_path,
    sha256_file,
    system_errors,
)
from nd.locks import locked
from nd.sealed import again, content_digest, seal

LOG = logging.getLogger(__name__)

ADVICE = "Free some space or set paths.data to another folder."

Settings = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """One file of a prepared folder.

    ``settings`` is everything its content depends on (an empty string is unknown to the caller and not compared);
    ``write`` fills the file at the path it is given; ``resumable``: it goes on from what an interrupted attempt left
    there; ``n_bytes``: what it will take on disk, as far as known; ``links``: where the files lie now from which it
    reads datasets in place, by dataset; ``additions``: what adds a setting, by its name, to a file made without it.
    """

    name: str
    settings: Settings
    write: Callable[[Path], None]
    resumable: bool = False
    n_bytes: int = 0
    links: Mapping[str, Path] = field(default_factory=dict)
    additions: Mapping[str, Callable[[h5py.File], None]] = field(default_factory=dict)

    def lacking(self, made: Settings) -> dict[str, Any]:
        """Return the settings that are to be added to a file that was made with others."""
        return {name: self.settings[name] for name in self.additions if not made.get(name) and self.settings[name]}


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
        return _added(folder, piece) or _relinked(folder, piece)
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
        record_piece(folder, piece.name, entry | {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns})
    for name, file in places.items():
        LOG.info("%s reads %s from %s now", path, name, file)
    return True


def _added(folder: Path, piece: Piece) -> bool:
    """Add to a finished piece what it was made without; whether anything had to be done.

    Its recorded hash stays, since what earlier runs read is as it was; later runs record what was added beside it.
    """
    path = folder / piece.name
    if not piece.lacking(entry_of(path)["settings"]):  # before locking, as above
        return False
    with locked(folder / f".{piece.name}.lock", str(path), wait=True):
        entry = entry_of(path)
        lacking = piece.lacking(entry["settings"])
        with atomic_path(path, alone=True, advice=ADVICE) as copy:
            shutil.copyfile(path, copy)
            with h5py.File(copy, "r+") as handle:
                for name in lacking:
                    piece.additions[name](handle)
                seal(handle, again(path))
            state, former = copy.stat(), {name: value for name, value in entry.items() if name != "former"}
            now = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "content": content_digest(copy)}
            now |= {"settings": entry["settings"] | lacking, "added": entry.get("added", {}) | lacking}
            record_piece(folder, piece.name, entry | now | {"former": former})
    return bool(lacking)


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
        record_piece(folder, piece.name, entry | record)


def is_prepared(folder: Path, piece: Piece) -> bool:
    """Say whether ``folder`` holds this piece. A folder of other origin, other settings or damage is a UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder. Set paths.data to another folder.")
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    if not visible:
        return False
    path = folder / piece.name
    manifest_of(folder)
    entry = entry_of(path)
    if not entry:
        if path.exists():
            raise UserError(
                f"{path} is not in {MANIFEST}, so `nd prepare` did not write it. Move it away, or set paths.data to "
                "another folder."
            )
        return False
    later = piece.lacking(entry["settings"])
    _check_settings(path, entry["settings"], {key: one for key, one in piece.settings.items() if key not in later})
    return _is_whole(path, entry)


def _check_settings(path: Path, made: Settings, asked: Settings) -> None:
    differing = [
        f"{name}: made {f'with {made[name]}' if made.get(name) not in ('', None) else 'without'}, asked for {value}"
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
    check_content(path, entry)
    return True


def folder_megabytes(folder: Path) -> float:
    """Size of a prepared folder's files, MB (10^6 bytes)."""
    return sum(p.stat().st_size for p in folder.iterdir() if not p.name.startswith(".")) / 1e6
