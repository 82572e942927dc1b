"""Settings chosen on validation images: what is tried is what was typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nd.config import Config
from nd.errors import UserError
from nd.tune import tune

Compose = Callable[[Mapping[str, str]], Config]


def test_values_are_tried_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is a number, and a text that needs quotes keeps them."""
    seen = list[tuple[float, str]]()

    def search(study: Any, space: Any, composed: Compose, *_: Any) -> None:
        for values in zip(*(one.values for one in space), strict=True):
            cfg = composed({one.key: value for one, value in zip(space, values, strict=True)})
            seen.append((cfg.guidance.eta, cfg.subject.roi))
        raise UserError("enough")

    monkeypatch.setattr("nd.tune.search", search)
    words = ["experiment=scenes", f"paths.root={tmp_path}", "guidance.eta=0.2,1", "subject.roi=early,'early+ventral'"]
    with pytest.raises(UserError, match="enough"):
        tune(words)
    assert seen == [(0.2, "early"), (1.0, "early+ventral")]
