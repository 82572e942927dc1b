"""Texts of an HDF5 file, looked at in its bytes before the library reads them: it trusts what a damaged file claims.

A text lies in a global heap. Where it is used, in an attribute or a dataset, there are its length in 4 bytes and its
place (HDF5 File Format Specification 3.0: Global Heap, Datatype and Attribute Message). The library makes room for that
length, which can be 4 GB, and goes through a heap by the sizes of its objects, without end where one leads it back.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from nd.errors import UserError

WRITE_AGAIN = "Fetch or write it again."
SEARCHED = 64 << 20  # bytes of a file that are searched: some 40 ms of one core for each thing sought
SEARCHED_AT_ONCE = 4 << 20  # bytes that are searched sooner than it is asked what is to be passed by
HEAP = b"GCOL\x01\0\0\0"  # begins a global heap; then its size in 8 bytes, and its objects
TEXT_TYPE = b"\x19\x01\x01\0\x10\0\0\0"  # of UTF-8 of any length, as h5py writes texts
REFERENCE = np.dtype([("length", "<u4"), ("place", "V12")])
NULL_SHAPE = (2, 2)  # version and kind of a shape without any value
LONGEST_NAME = 256

Spans = Sequence[tuple[int, int]]


def check_texts(handle: h5py.File, path: Path) -> None:
    """Refuse an open file whose texts HDF5 would read without end, or that claim more than the file holds.

    Contiguous datasets are passed by, so that of large files little is read; where much is left, nothing is.

    Raises:
        UserError: a text is damaged.
    """
    size = path.stat().st_size
    passed = sorted(_contiguous(handle, size)) if size > SEARCHED_AT_ONCE else []
    if size - sum(end - begin for begin, end in passed) > SEARCHED:
        return
    between = list(zip([0, *(end for _, end in passed)], [*(begin for begin, _ in passed), size], strict=True))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        texts = [*_of_attributes(content, between), *_contiguous(handle, size, texts=True)]
        if all(_is_sound(content, place) for place in _found(content, HEAP, between)) and all(
            _longest(content[begin:end]) <= size for begin, end in texts
        ):
            return
    raise UserError(f"{path} is damaged: texts in it cannot be read. {WRITE_AGAIN}")


def _contiguous(handle: h5py.File, size: int, texts: bool = False) -> Iterator[tuple[int, int]]:
    """Yield first byte and end of each contiguous dataset; damaged ones are told when they are read.

    One that is linked may lie in another file.
    """
    for name in handle:
        with suppress(Exception):
            if not isinstance(handle.get(name, getlink=True), h5py.HardLink):
                continue
            found = handle[name].id
            if isinstance(found, h5py.h5d.DatasetID) and found.get_offset() and (not texts or _is_text(found)):
                begin, end = found.get_offset(), found.get_offset() + found.get_storage_size()
                if end <= size:
                    yield begin, end


def _is_text(found: h5py.h5d.DatasetID) -> bool:
    kind = found.get_type()
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


def _found(content: mmap.mmap, sought: bytes, spans: Spans) -> Iterator[int]:
    """Yield where some bytes lie within spans of a file."""
    for begin, end in spans:
        place = content.find(sought, begin, end)
        while place >= 0:
            yield place
            place = content.find(sought, place + len(sought), end)


def _of_attributes(content: mmap.mmap, spans: Spans) -> Iterator[tuple[int, int]]:
    """Yield first byte and end of what each attribute of texts refers to them with."""
    for place in _found(content, TEXT_TYPE, spans):
        with suppress(struct.error, ValueError):  # the file ends there
            if value := _value(content, place):
                yield value


def _value(content: mmap.mmap, place: int) -> tuple[int, int] | None:
    """Return where the value lies of the attribute whose type is described at a place; None: it is of no attribute.

    An attribute is its version, the sizes of its name, type and shape, then these three and its value. In version 1
    each is filled up to 8 bytes; version 3 has the encoding of the name between the sizes and the name.
    """
    end = place
    while end > max(0, place - 8) and content[end - 1] == 0:
        end -= 1
    name = 1 + max(content.rfind(edge, max(0, end - LONGEST_NAME), end) for edge in (b"\0", b"\x01"))
    for version, head, unit in ((3, 9, 1), (2, 8, 1), (1, 8, 8)):
        begin = name - head
        if begin < 0 or content[begin] != version:
            continue
        sizes = [-(-n // unit) * unit for n in struct.unpack_from("<HHH", content, begin + 2)]
        if name + sizes[0] == place:
            shape = place + sizes[1]
            value = shape + sizes[2]
            return value, min(value + REFERENCE.itemsize * _number(content, shape), len(content))
    return None


def _number(content: mmap.mmap, place: int) -> int:
    """Return how many values an attribute has whose shape is described at a place."""
    version, rank, _, kind = content[place : place + 4]
    if (version, kind) == NULL_SHAPE:
        return 0
    return math.prod(struct.unpack_from(f"<{rank}Q", content, place + (8 if version == 1 else 4)))


def _longest(references: bytes) -> int:
    """Return the bytes of the longest of some texts, as claimed where they are used."""
    whole = len(references) // REFERENCE.itemsize * REFERENCE.itemsize
    return int(np.frombuffer(references[:whole], REFERENCE)["length"].max(initial=0))


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
