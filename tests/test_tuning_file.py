"""The file of a study of `nd tune`: one that cannot be read or written is one message."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from nd.errors import UserError
from nd.sweeps.tuning import opened


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "tune-0.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    wanted = r"tune-0\.db, the study, cannot be read or written: .*(database|malformed).*remove it\. Runs that are done"
    with pytest.raises(UserError, match=wanted), opened(path, 0):
        pass


def test_a_disk_that_is_full_meanwhile(tmp_path: Path) -> None:
    full = OperationalError("INSERT", {}, Exception("database or disk is full"))
    with pytest.raises(UserError, match=r"written: database or disk is full\. Make room"), opened(tmp_path / "a.db", 0):
        raise full
    with opened(tmp_path / "a.db", 0) as study:
        assert study.trials == []
