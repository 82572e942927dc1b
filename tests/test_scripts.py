"""Every script of experiments/ can be loaded: what it imports is there, by the names it uses."""

from __future__ import annotations

import pytest
from helpers_scripts import EXPERIMENTS, load_script

PACKAGE = "backbone_training"  # imported by others, and tested by itself
SCRIPTS = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.py") if PACKAGE not in path.parts)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_loads_and_says_what_it_is(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS / path.split("/")[0])  # as Python does for a script
    script = load_script(path)
    assert script.__doc__
