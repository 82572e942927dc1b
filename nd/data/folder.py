"""A prepared folder appears whole or not at all, and says what it was made from.

Files are written into a hidden folder beside the final one, which then takes its name in a single rename. A killed
process leaves only the hidden folder, and the next attempt removes it. One process at a time writes; others wait.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from nd.errors import UserError
from nd.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

Settings = dict[str, Any]


def make_folder(folder: Path, settings: Settings, write: Callable[[Path], None], record: dict[str, Any]) -> bool:
    """Let ``write`` fill ``folder`` unless it already holds what these settings make; return whether it was written.

    Args: ``settings`` is everything the files depend on; ``record`` is added to the manifest. Raises UserError where
    the folder cannot be written, was made with other settings, or is damaged; nothing is left behind then.
    """
    try:
        if is_prepared(folder, settings):  # before locking, so that a read-only folder of a colleague can be used
            return False
        with _locked(folder):
            if is_prepared(folder, settings):
                return False
            _write_and_rename(folder, settings, write, record)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {folder}: {reason}. Free some space or set paths.data to another folder."
        ) from error
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; after a failure remove it and the parent folders that were made for it."""
    absent = [parent for parent in folder.parents if not parent.exists()]
    lock = folder.with_name(f".{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            yield
        except BaseException:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: somebody else writes there
                for parent in absent:
                    parent.rmdir()
            raise


def _write_and_rename(folder: Path, settings: Settings, write: Callable[[Path], None], record: dict[str, Any]) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed attempt left; the lock says nobody is writing it
    temporary.mkdir()
    try:
        write(temporary)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"format": FORMAT_VERSION, "settings": settings, "files": files, **record})
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_prepared(folder: Path, settings: Settings) -> bool:
    """Say whether ``folder`` holds all files that these settings make. A folder of other origin is a UserError.

    A setting whose value is an empty string is unknown to the caller and is not compared.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} exists but holds no {MANIFEST}, so `nd prepare` did not write it. "
            "Set paths.data to another folder, or move that one away."
        )
    manifest = read_json(folder / MANIFEST)
    _check_settings(folder, manifest.get("settings", {}), settings)
    _check_files(folder, manifest.get("files", {}))
    return True


def _check_settings(folder: Path, made: Settings, asked: Settings) -> None:
    differing = [
        f"{name}: made with {made.get(name)}, asked for {value}"
        for name, value in asked.items()
        if value != "" and made.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{folder} was prepared with other settings ({'; '.join(differing)}). "
            "Set paths.data to another folder, or remove that one to prepare it again."
        )


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise UserError(f"{path} {state}: it was changed or truncated. Remove {folder} and run `nd prepare` again.")


def folder_megabytes(folder: Path) -> float:
    """Size of a prepared folder's files, MB (10^6 bytes)."""
    return sum(p.stat().st_size for p in folder.iterdir()) / 1e6
