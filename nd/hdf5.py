"""HDF5 files opened with a clear message, and datasets laid out so that a killed writer leaves nothing broken.

HDF5 reports what it cannot do in its own words, layer by layer; users are told which file it is, and what to do.
"""

from __future__ import annotations

import errno
import logging
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nd.errors import UserError, is_raised_in
from nd.files import unreadable

log = logging.getLogger(__name__)

NAMED = re.compile(r"object '([^']+)' doesn't exist")  # in HDF5's own message
WRITE_AGAIN = "Fetch or write it again."
SEARCHED = 64 << 20  # bytes of a file that are searched for heaps: 37 ms of one core
PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)  # a truth is an enumeration
SEARCHED_AT_ONCE = 4 << 20  # bytes that are searched sooner than it is asked what is to be passed by
HEAP = b"GCOL\x01\0\0\0"  # begins a global heap, which holds texts; then its size in 8 bytes, and its objects


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
            _check_heaps(handle, path)
            yield handle
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if not is_raised_in("h5py", error.__traceback__) or _is_of_writing(error):
            raise
        log.debug("h5py fails on %s", path, exc_info=error)
        raise UserError(f"{path} is damaged: {_part_of(error)} cannot be read. {WRITE_AGAIN}") from None


def _check_heaps(handle: h5py.File, path: Path) -> None:
    """Raise UserError where HDF5 would read a text of an open file without end: an empty object steps nowhere.

    Contiguous datasets are passed by, so that of large files little is read; where much is left, nothing is.
    """
    place, size = 0, path.stat().st_size
    large = _contiguous(handle) if size > SEARCHED_AT_ONCE else ()
    passed = sorted((begin, end) for begin, end in large if end <= size)
    if size - sum(end - begin for begin, end in passed) > SEARCHED:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for begin, end in [*passed, (size, size)]:
            while (place := content.find(HEAP, place, begin)) >= 0:
                if not _is_sound(content, place):
                    raise UserError(f"{path} is damaged: texts in it cannot be read. {WRITE_AGAIN}")
                place += len(HEAP)
            place = end


def _contiguous(handle: h5py.File) -> Iterator[tuple[int, int]]:
    """Yield first byte and end of each contiguous dataset of a file; damaged ones are told when they are read."""
    for name in handle:
        with suppress(Exception):
            found = handle[name].id
            if isinstance(found, h5py.h5d.DatasetID) and found.get_offset():
                yield found.get_offset(), found.get_offset() + found.get_storage_size()


def _is_sound(content: mmap.mmap, place: int) -> bool:
    """Whether going through the objects of a global heap comes to its end.

    HDF5 counts in 64 bits: an object that claims to reach far beyond the heap would lead it back to where it was.
    """
    end = min(place + int.from_bytes(content[place + 8 : place + 16], "little"), len(content))
    place += 16
    while place + 16 <= end:
        number, size = int.from_bytes(content[place : place + 2], "little"), content[place + 8 : place + 16]
        n_bytes = int.from_bytes(size, "little")
        step = 16 + -(-n_bytes // 8) * 8 if number else n_bytes
        if not 0 < step <= end - place:
            return False
        place += step
    return True


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
