"""`nd tune`: settings chosen by validation images alone; goes on where it was stopped, and tries again what failed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers_sweeps import WORDS, Place, breaking, copied, decoded

from nd.config.application import compose
from nd.evaluation.scores import read_scores
from nd.runs.folder import RunFolder
from nd.sweeps.tuning import OF_PIXELS

GRID = ["guidance.kappa=1,3", "guidance.eta=0.6,1"]
POINTS = ["1 0.6", "1 1", "3 0.6", "3 1"]


@pytest.fixture(scope="module")
def decoded_val(decoded_scenes: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With decoded validation images. Read only."""
    there = copied(decoded_scenes, tmp_path_factory.mktemp("val"))
    return decoded(there, "part=val", "mapper.refit=false")


@pytest.fixture
def fresh(decoded_val: Place, tmp_path: Path) -> Place:
    return copied(decoded_val, tmp_path)


def tune(there: Place, *words: str) -> list[str]:
    return ["tune", *WORDS, *there.paths, *words]


def record(there: Place) -> dict[str, Any]:
    (path,) = (there.own / "results").glob("tune-*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_best_of_a_grid_is_chosen_by_validation_images(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", {}, seen)
    done = fresh.succeed(*tune(fresh, *GRID))
    assert seen == POINTS
    folders = {path.name.rpartition("-")[2]: path for path in (fresh.own / "runs" / "evaluate").iterdir()}
    sums = {name: sum(read_scores(path).scores[one].mean for one in OF_PIXELS) for name, path in folders.items()}
    found = record(fresh)
    assert {one["run"]: one["value"] for one in found["trials"]} == pytest.approx(sums)
    assert len(sums) == 4
    assert found["trials"][0]["run"] == max(sums, key=lambda name: sums[name])
    assert found["part"] == "val"
    assert found["simulated"] is True
    for folder in ("reconstruct", "evaluate"):  # test images took no part
        assert all("-val-" in path.name for path in (fresh.own / "runs" / folder).iterdir())
    assert f"use it: {found['command']}" in done.out
    words = shlex.split(found["command"])
    assert words[:2] == ["nd", "run"]
    chosen = compose([*words[2:], "part=val", "mapper.refit=false"])
    assert RunFolder.open(chosen, "evaluate").run_id == found["trials"][0]["run"]
    assert compose(words[2:]).part == "test"
    again = fresh.succeed(*tune(fresh, *GRID))
    assert seen == POINTS  # nothing was run again
    assert "best of 4 settings" in again.out
    assert record(fresh) == found


def test_an_interrupted_study_goes_on(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    with monkeypatch.context() as patched:
        breaking(patched, "evaluate", {"1 1": KeyboardInterrupt()}, seen)
        assert fresh.nd(*tune(fresh, *GRID)).code == 130
    assert seen == POINTS[:2]
    breaking(monkeypatch, "evaluate", {}, seen)
    done = fresh.succeed(*tune(fresh, *GRID))
    assert seen == [*POINTS[:2], *POINTS[1:]]
    assert "best of 4 settings" in done.out
    assert len({one["run"] for one in record(fresh)["trials"]}) == 4


def test_what_failed_is_tried_again_and_stops_nothing(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    with monkeypatch.context() as patched:
        breaking(patched, "evaluate", {"1 1": ZeroDivisionError("by zero")}, seen)
        done = fresh.nd(*tune(fresh, *GRID))
    assert seen == POINTS
    assert done.code == 1
    assert "guidance.kappa=1 guidance.eta=1 FAILED: evaluate" in done.out
    assert "1 settings failed. The same command tries them again." in done.out
    assert len(record(fresh)["trials"]) == 3
    seen.clear()
    breaking(monkeypatch, "evaluate", {}, seen)
    fresh.succeed(*tune(fresh, *GRID))
    assert seen == ["1 1"]
    assert len(record(fresh)["trials"]) == 4


def test_several_failures_at_the_beginning_end_a_call_but_no_study(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", dict.fromkeys(POINTS[:3], ZeroDivisionError("by zero")), seen)
    done = fresh.nd(*tune(fresh, *GRID))
    assert (done.code, seen) == (2, POINTS[:3])
    assert "3 trials of this call failed" in done.err
    assert "ZeroDivisionError: by zero" in done.err
    assert fresh.nd(*tune(fresh, *GRID)).code == 1
    assert seen == [*POINTS[:3], POINTS[3], *POINTS[:3]]  # what has failed comes last
    assert [one["values"] for one in record(fresh)["trials"]] == [{"guidance.kappa": "3", "guidance.eta": "1"}]


def test_fewer_trials_than_combinations_are_all_different(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", {}, seen)
    for n in (2, 3):
        fresh.succeed(*tune(fresh, *GRID, f"tune.trials={n}"))
        assert len(record(fresh)["trials"]) == n
    assert len(set(seen)) == len(seen) == 3


def test_an_interval_is_searched_and_more_trials_go_on(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", {}, seen)
    words = ["guidance.kappa=tag(log,interval(0.5,50))", "guidance.eta=1", "tune.scores=[pixcorr]"]
    fresh.succeed(*tune(fresh, *words, "tune.trials=1"))
    fresh.succeed(*tune(fresh, *words, "tune.trials=2"))
    found = record(fresh)
    assert len(set(seen)) == len(seen) == len(found["trials"]) == 2
    for one in found["trials"]:
        assert list(one["means"]) == ["pixcorr"]
        assert one["value"] == one["means"]["pixcorr"]
        assert 0.5 <= float(one["values"]["guidance.kappa"]) <= 50
    best = compose([*shlex.split(found["command"])[2:], "part=val", "mapper.refit=false"])
    assert RunFolder.open(best, "evaluate").run_id == found["trials"][0]["run"]  # to the last digit of kappa
    for suffix in (".db", ".png"):
        assert len(list((fresh.own / "results").glob(f"tune-*{suffix}"))) == 1
