"""HDF5 files opened with a clear message, and datasets laid out so that a killed writer leaves nothing broken.

HDF5 reports what it cannot do in its own words, layer by layer; users are told which file it is, and what to do.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.errors import UserError, is_raised_in
from nd.files import unreadable
from nd.hdf5_texts import WRITE_AGAIN, check_texts

log = logging.getLogger(__name__)

NAMED = re.compile(r"object '([^']+)' doesn't exist")  # in HDF5's own message
PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)  # a truth is an enumeration


@contextmanager
def open_h5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Args:
        path: of the file.
        options: of h5py.File.

    Raises:
        UserError: it is missing or does not open, or h5py fails on it in the body: it names the file.
    """
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{path} does not exist. Run the verb that writes it first (`nd prepare`, `nd extract`).")
    try:
        handle = h5py.File(path, "r", **options)
    except Exception as error:  # of damaged files h5py raises whatever its layers trip over
        raise bad_h5(path, error) from None
    try:
        with handle:
            check_texts(handle, path)
            yield handle
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if not is_raised_in("h5py", error.__traceback__) or _is_of_writing(error):
            raise
        log.debug("h5py fails on %s", path, exc_info=error)
        raise UserError(f"{path} is damaged: {_part_of(error)} cannot be read. {WRITE_AGAIN}") from None


def _is_of_writing(error: Exception) -> bool:
    """Whether the system refused to write another file meanwhile."""
    return any(f"errno = {code}" in str(error) for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))


def _part_of(error: Exception) -> str:
    """Return what an error of h5py was about: the object it names, else some part of the file."""
    named = NAMED.search(str(error))
    return named[1] if named else "a part of it"


def bad_h5(path: Path, error: Exception) -> UserError:
    """Return what is said of an HDF5 file that does not open: held by another process, out of reach, or damaged.

    HDF5 words all of these alike, so the reason is looked for in its text too.
    """
    text = str(error)
    if isinstance(error, BlockingIOError) or "is already open" in text or "unable to lock file, errno = 11" in text:
        return UserError(
            f"{path} is open for writing elsewhere (another process, a notebook, MATLAB), and need not be damaged. "
            "Close it there, or wait, and run this again. Where the program that wrote it was killed, `h5clear -s` "
            "opens it again."
        )
    if "unable to lock file" in text:
        return UserError(
            f"{path} lies on a file system without locks. Set HDF5_USE_FILE_LOCKING=FALSE, and let nobody write the "
            "file meanwhile."
        )
    if not path.is_file() or isinstance(error, PermissionError):
        return unreadable(path, error if isinstance(error, OSError) else OSError(errno.EIO, text))
    reasons = {"truncated file": "truncated", "signature not found": "it does not begin as one does, or is truncated"}
    reason = next((said for words, said in reasons.items() if words in text), "damaged or truncated")
    log.debug("h5py does not open %s", path, exc_info=error)
    return UserError(f"{path} is not a whole HDF5 file ({reason}). {WRITE_AGAIN}")


def is_plain(item: h5py.h5a.AttrID | h5py.h5d.DatasetID) -> bool:
    """Whether an attribute or dataset holds numbers, truths or texts.

    A damaged file may claim lists of any length or pointers, over which the library ends the whole process, or texts
    whose characters have gigabytes each, for which it makes room.
    """
    kind = item.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str() and kind.get_super().get_size() != 1:
        return False
    return kind.get_class() in PLAIN


def attributes_of(handle: h5py.File) -> dict[str, Any]:
    """Return the attributes of an open file as plain values, those alone that ``is_plain``."""
    return {str(name): plain(handle.attrs[name]) for name in handle.attrs if is_plain(handle.attrs.get_id(name))}


def plain(value: Any) -> Any:
    """Return an attribute as a plain value: text, number, truth, or a list of them."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if hasattr(value, "tolist") else value


def names_in(handle: h5py.Group) -> str:
    """Return the names of what a file or group holds, for messages; those of damaged files may be no text."""
    return ", ".join(sorted(str(name) for name in handle)) or "nothing"


def allocate(handle: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    """Add a contiguous dataset whose place in the file is fixed at once; return it.

    Filling it changes no structure, so a killed writer never leaves a broken file behind, and its rows can be read
    through a memory map. The disk gives room as rows are written.
    """
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)  # the same content gives the same bytes
    if "/" in name:
        handle.require_group(name.rpartition("/")[0])
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    h5py.h5d.create(handle.id, name.encode(), kind, h5py.h5s.create_simple(shape), settings)
    return handle[name]
