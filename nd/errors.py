"""Problems a user can mend, said in one clear message.

A message says what arrived, what was wanted and what to do. Verbs print it and leave with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

UNWRITTEN = "Can't decrement id ref count"  # h5py, of a part of a file that the system refused
# What PyTorch, its allocators and NumPy say; also where another process's traceback ends with it.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "Unable to allocate")


class UserError(ValueError):
    """A mistake in what the user gave (configuration, files, data), never a bug of this package."""


class LeakError(UserError):
    """Test stimuli or test targets were asked for by code that must never see them."""


class UnwrittenError(UserError):
    """The system refused a part of an HDF5 file. HDF5 writes it once more when Python ends, and crashes."""


class BusyError(UserError):
    """A live process is writing what is asked for: once that has ended it is there, or free.

    Attributes: ``lock`` is the file that the other process holds.
    """

    def __init__(self, message: str, lock: Path = Path()) -> None:  # copied between processes without the lock
        """Take what to say, and the lock."""
        super().__init__(message)
        self.lock = lock


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed name, or an empty string when none is near."""
    near = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that is not among the allowed ones: lists them and offers the nearest.

    Args:
        kind: what the name should be of, as in "target".
        name: as it was given.
        allowed: all names there are.

    Returns:
        The error, to be raised.
    """
    names = sorted(str(a) for a in allowed)
    return UserError(f"unknown {kind} {name!r}.{did_you_mean(name, names)} Allowed: {', '.join(names)}.")


def report(problems: Sequence[str]) -> str:
    """Join problems, each said once, into one message."""
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0]
    return "\n".join([f"{len(unique)} problems:", *(f"  {i}. {text}" for i, text in enumerate(unique, start=1))])


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error, perhaps another process's, is that there is no memory left."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def is_raised_in(package: str, trace: TracebackType | None) -> bool:
    """Say whether an error comes from inside a package."""
    while trace is not None:
        if package in Path(trace.tb_frame.f_code.co_filename).parts:
            return True
        trace = trace.tb_next
    return False
