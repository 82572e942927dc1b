"""Datasets of a prepared file that lie in another file: followed, compared with what was prepared, led elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py

from nd.errors import UserError
from nd.files import atomic_path, sha256_file
from nd.h5_values import attribute
from nd.hdf5 import open_h5


def link(handle: h5py.File, name: str, file: Path, key: str) -> None:
    """Let dataset ``name`` of a file that is being written be dataset ``key`` of another file, and note its size.

    The path is not resolved: the name that the user knows is said when the file is gone.
    """
    handle[name] = h5py.ExternalLink(str(file.absolute()), key)
    handle.attrs["linked_bytes"] = file.stat().st_size


def links_of(path: Path, handle: h5py.File) -> dict[str, Path]:
    """Return the file behind every dataset of an open prepared file that lies elsewhere."""
    links = {name: handle.get(name, getlink=True) for name in handle}
    return {name: path.parent / one.filename for name, one in links.items() if isinstance(one, h5py.ExternalLink)}


def follow(handle: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return the dataset ``name`` of an open file, wherever it lies.

    Raises:
        UserError: it links to a file that is not there, cannot be read or is open elsewhere, or there is none.
    """
    try:
        found = handle[name]
    except KeyError:
        file = links_of(path, handle).get(name)
        if file is None:
            raise UserError(f"{path} holds no {name}. Write the file again.") from None
        if file.is_file():
            with open_h5(file):  # says why where it does not open
                pass
        raise gone(path, name, file) from None
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{path} holds no dataset {name} but a group of that name. Write the file again.")
    return found


def gone(path: Path, name: str, file: Path) -> UserError:
    """Return what is said of a link whose file is not there."""
    return UserError(
        f"{path} reads {name} from {file}, which is not there or cannot be read. Put it back, or tell `nd prepare` "
        "where the release lies now: the same command as before with data.root=<its new place>."
    )


def check_linked(path: Path, handle: h5py.File) -> None:
    """Refuse a file that links to one of another size than it had when it was prepared; one that is gone passes."""
    recorded = attribute(handle, "linked_bytes", int, -1)
    for file in links_of(path, handle).values():
        if recorded != -1 and file.is_file() and file.stat().st_size != recorded:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, but had {recorded} when {path} was prepared from it. "
                f"Fetch it again, or remove {path} and run `nd prepare` again."
            )


def moved(path: Path, places: Mapping[str, Path]) -> dict[str, Path]:
    """Return the datasets of a prepared file whose linked file is gone, each with the file that it can be read from.

    Args:
        path: the prepared file.
        places: where the files lie now, by dataset.

    Raises:
        UserError: a linked file is gone and is not at its new place either, or is another one.
    """
    if not h5py.is_hdf5(path):
        return {}
    with open_h5(path) as handle:
        check_linked(path, handle)
        lost = {name: file for name, file in links_of(path, handle).items() if not file.is_file()}
        size, content = attribute(handle, "linked_bytes", int, -1), attribute(handle, "linked_sha256", str, "")
    for name, file in lost.items():
        new = places.get(name, file)
        if not new.is_file():
            raise gone(path, name, file)
        if new.stat().st_size != size or (content and sha256_file(new) != content):
            raise UserError(
                f"{new} is not the file {file} that {path} was prepared from ({new.stat().st_size} bytes, wanted "
                f"{size} and the same content). Give the place of that one, or remove {path} and prepare it again."
            )
    return {name: places[name] for name in lost}


def relink(path: Path, copy: Path, places: Mapping[str, Path]) -> None:
    """Write ``copy``, the prepared file ``path`` with the datasets ``places`` read from other files."""
    with atomic_path(copy) as temporary:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+") as handle:
            for name, file in places.items():
                key = handle.get(name, getlink=True).path
                del handle[name]
                handle[name] = h5py.ExternalLink(str(file.absolute()), key)
