"""One writer at a time: a lock on a file, which the system frees when its holder dies, however it dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nd.errors import BusyError, UserError
from nd.files import system_errors

log = logging.getLogger(__name__)

# What a file system without locks answers (some network file systems and mounts). Any other failure is one.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
PATIENCE_S = 0.3  # for whoever only asks whether a lock is held, or removes a folder, and is gone in a moment


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs; where the file system has no locks, warn and go on.

    Args:
        path: lock file; it is made, with its folder, and left in place.
        what: is being written, for messages.
        wait: until another process has finished, instead of refusing.

    Raises:
        BusyError: another process holds the lock; the message names it.
        UserError: the lock file cannot be written.
    """
    lock = _acquired(path, what, wait)
    if lock is None:
        yield
        return
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        path.write_text(json.dumps(who), encoding="utf-8")
        yield
    finally:
        lock.release()


def _acquired(path: Path, what: str, wait: bool) -> FileLock | None:
    """Return the lock, held; None where the file system has none."""
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed holder
    while True:
        with system_errors(path.parent, "Choose another folder."):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE_S)
            return lock
        except FileNotFoundError:  # the folder was removed meanwhile, by a process that wrote nothing
            continue
        except Timeout:
            if not wait:
                raise BusyError(
                    f"{what} is being written by {holder(path)}. Wait until it has finished, or stop it: "
                    "the same command then goes on from what it left.",
                    path,
                ) from None
            log.info("waiting for %s, which is being written by %s", what, holder(path))
            lock.acquire()
            return lock
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"cannot write {path}: {error.strerror}. Choose another folder.") from error
            log.warning(
                "%s lies on a file system without locks (%s): see to it that one command writes there at a time",
                path.parent, error.strerror,
            )  # fmt: skip
            return None


def holder(path: Path) -> str:
    """Return who holds the lock, as written by the holder: process, host and time."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def wait_until_free(path: Path) -> None:
    """Return once no live process holds the lock file."""
    while is_locked(path):
        time.sleep(PATIENCE_S)


def is_locked(path: Path) -> bool:
    """Say whether a live process holds the lock file; False where that cannot be told."""
    if not path.exists():
        return False
    try:
        with FileLock(path, fallback_to_soft=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
