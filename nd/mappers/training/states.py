"""The states that an interrupted training goes on from: only one that is as it was written."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from typing_extensions import TypedDict

from nd.digests import digest_file
from nd.errors import UserError
from nd.files import read_json, write_json

log = logging.getLogger(__name__)


class States(TypedDict):
    """Digests of the state on disk: of the newest, and of the one before, which it may still be."""

    digests: list[str]


def record_state(path: Path, temporary: Path) -> None:
    """Record the digest of a state that is about to get its name."""
    record, known = path.with_suffix(".json"), []
    with suppress(UserError):
        known = read_json(record, States)["digests"]
    write_json(record, {"digests": [digest_file(temporary), *known[:1]]})


def whole_state(path: Path) -> Path | None:
    """Return the state that a training goes on from; None where there is none that is whole, with a warning."""
    if not path.is_file():
        return None
    record = path.with_suffix(".json")
    with suppress(UserError):
        if not record.exists() or digest_file(path) in read_json(record, States)["digests"]:
            return path
    log.warning("%s is damaged; the training begins anew", path)
    return None
