"""Whether a file is whole, told by its size, its header and its last bytes: quick however large it is.

What passes may still be damaged inside; what does not pass cannot be used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from nd.data.npy import open_npy
from nd.data.nsd.volumes import open_nifti
from nd.errors import UserError
from nd.hdf5 import open_h5

TAR_BLOCK = 512  # tar files are made of whole blocks
GZIP_WRAP = 2**32  # a gzip file ends with its unpacked size modulo this


def fault(path: Path, least: int = 0, unpacked: int = 0) -> str:
    """Why a file cannot be whole, in a few words; '' where nothing speaks against it.

    Args:
        path: a file that is there.
        least: bytes that the whole file has at least; 0: unknown.
        unpacked: bytes that a .nii.gz has when it is unpacked; 0: as its header says.
    """
    try:
        size = path.stat().st_size
        if not size:
            return "it is empty"
        if size < least:
            return f"it has {size:,} bytes; the released file has at least {least:,}"
        if path.name.endswith(".nii.gz"):
            return _nifti(path, unpacked)
        check = CHECKS.get(path.suffix)
        return check(path) if check else ""
    except UserError as error:
        return str(error).removeprefix(f"{path} ")
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def _nifti(path: Path, unpacked: int) -> str:
    image = open_nifti(path)
    wanted = unpacked or image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    with open(path, "rb") as handle:
        handle.seek(-4, os.SEEK_END)
        found = int.from_bytes(handle.read(4), "little")
    if found == wanted % GZIP_WRAP:
        return ""
    said = "NSD's have" if unpacked else "its header asks for"
    return f"cut short or damaged: by its last bytes it unpacks to {found:,} bytes, {said} {wanted:,}"


def _hdf5(path: Path) -> str:
    with open_h5(path):
        return ""


def _npy(path: Path) -> str:
    open_npy(path, "str")
    return ""


def _tar(path: Path) -> str:
    return "cut short: it does not end with a whole block" if path.stat().st_size % TAR_BLOCK else ""


def _json(path: Path) -> str:
    with open(path, "rb") as handle:
        handle.seek(max(0, path.stat().st_size - 64))
        end = handle.read().rstrip()
    return "" if end.endswith((b"}", b"]")) else "cut short: it does not end as JSON does"


CHECKS: dict[str, Callable[[Path], str]] = {".hdf5": _hdf5, ".npy": _npy, ".tar": _tar, ".json": _json}
