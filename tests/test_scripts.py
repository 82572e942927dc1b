"""Every script of experiments/ can be loaded: what it imports is there, by the names it uses."""

from __future__ import annotations

import json

import pytest
from helpers_scripts import EXPERIMENTS, load_script

from nd.config.application import compose

PACKAGE = "backbone_training"  # imported by others, and tested by itself
SCRIPTS = sorted(str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.py") if PACKAGE not in path.parts)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_loads_and_says_what_it_is(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS / path.split("/")[0])  # as Python does for a script
    script = load_script(path)
    assert script.__doc__


@pytest.mark.parametrize("target", ["z", "c"])
def test_the_curve_of_one_network_for_two_targets_takes_no_other_ones_place(target: str) -> None:
    script = load_script("scenes-mappers/compare.py")
    base = [*script.BASE, f"target={target}", *script.BOTH]
    alone, shared = compose(base), compose([*base, "network.share=all"])
    assert script.curve_name(alone, alone) == f"curve-{target}-all-from-chance.jsonl"
    assert script.curve_name(shared, shared) == f"curve-{target}-all-from-chance-shared.jsonl"


def test_a_curve_that_is_kept_is_of_what_its_name_says() -> None:
    kept = sorted((EXPERIMENTS / "scenes-mappers").glob("curve-*.jsonl"))
    assert len(kept) > 10
    for path in kept:
        scored = {
            target for line in path.read_text(encoding="utf-8").splitlines() for target in json.loads(line)["val"]
        }
        assert scored == ({"z", "c"} if path.stem.endswith("-shared") else {path.stem.split("-")[1]}), path.name
