"""One writer per run folder: an operating-system lock, which the system frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nd.errors import UserError

_HELD: set[int] = set()  # descriptors of the locks this process holds


def _forget_in_child() -> None:
    # A forked worker shares the lock; were it to outlive a killed parent, the folder would stay locked.
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def holder(path: Path) -> str:
    """Return who holds the lock, as written by the holder: process, host and time."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquire(path: Path) -> int | None:
    """Open and lock the file; None when another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        try:  # the file may have been removed, with its folder, between opening and locking: then lock the new one
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs; a ``UserError`` names the holder when it is taken."""
    descriptor = _acquire(path)
    if descriptor is None:
        raise UserError(
            f"{what} is being written by {holder(path)}. Wait until it has finished, or stop it: "
            "the same command then goes on from what it left."
        )
    _HELD.add(descriptor)
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode(), 0)
    try:
        yield
    finally:
        _HELD.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even where a child that is starting still shares it
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Say whether a live process holds the lock file."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
