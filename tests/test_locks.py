"""One writer: held by another process, waited for, freed by a kill, and file systems that have no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from nd.errors import UserError
from nd.locks import is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from nd.locks import locked
with locked(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / ".lock"


def holding(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is told to let go."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_that_is_held_is_refused_or_waited_for(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = holding(path)
    said = rf"the table is being written by process {process.pid} on .*, since"
    with pytest.raises(UserError, match=said), locked(path, "the table"):
        pytest.fail("two writers")
    assert is_locked(path)

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            process.communicate("\n")

    handler = Release()
    logging.getLogger("nd.locks").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "nd.locks"), locked(path, "the table", wait=True):
            assert process.returncode == 0  # it had let go
    finally:
        logging.getLogger("nd.locks").removeHandler(handler)
    assert f"waiting for the table, which is being written by process {process.pid}" in caplog.text
    assert not is_locked(path)


def test_a_kill_frees_the_lock(path: Path) -> None:
    process = holding(path)
    process.kill()
    process.wait()
    with locked(path, "x"):
        assert is_locked(path)


def refusing(code: int) -> object:
    def flock(descriptor: int, operation: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_process(
    code: int, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    written = []
    for wait in (False, True):
        with locked(path, "x", wait=wait):
            written.append(1)
    assert len(written) == 2
    assert caplog.text.count("lies on a file system without locks") == 2
    assert not is_locked(path)


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_only_these_mean_that_another_process_writes(code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    with pytest.raises(UserError, match="x is being written by another process"), locked(path, "x"):
        pytest.fail("not held")


def test_any_other_failure_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(UserError, match=r"cannot write .*\.lock: Input/output error"), locked(path, "x"):
        pytest.fail("not held")
    blocked = path.parent.parent / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"), locked(blocked / ".lock", "x"):
        pytest.fail("not a folder")
