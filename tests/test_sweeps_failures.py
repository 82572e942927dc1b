"""What a sweep makes of runs that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_sweeps import Place, breaking, copied

from nd.config import Config


@pytest.fixture
def fresh(decoded_scenes: Place, tmp_path: Path) -> Place:
    return copied(decoded_scenes, tmp_path)


FOUR = ["guidance.kappa=1,3", "guidance.eta=0.6,1"]


def test_a_failure_is_kept_at_once_and_the_others_go_on(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = list[str]()

    class Late(list[str]):
        def append(self, name: str) -> None:
            statuses.extend(
                path.read_text(encoding="utf-8") for path in (fresh.own / "runs" / "evaluate").glob("*/status")
            )
            super().append(name)

    seen = Late()
    with monkeypatch.context() as patched:
        breaking(patched, "evaluate", {"1 1": ZeroDivisionError("by zero")}, seen)
        done = fresh.nd(*fresh.grid(*FOUR))
    assert seen == ["1 0.6", "1 1", "3 0.6", "3 1"]
    assert done.code == 1
    assert [text.partition("\n")[0] for text in statuses].count("failed") == 2  # as the third and fourth began
    assert "ZeroDivisionError: by zero\n" in next(text for text in statuses if text.startswith("failed"))
    summary = done.out[done.out.index("### Sweep") :]
    assert "guidance.kappa=1 guidance.eta=1: evaluate" in summary
    assert "    Traceback (most recent call last):" in summary
    assert "raise broken[name]\n    ZeroDivisionError: by zero" in summary
    assert "3 of 4 runs done, 1 failed, 0 not begun" in summary
    assert done.out.count("by zero") < 8
    before = {path: path.stat().st_mtime_ns for path in (fresh.own / "runs" / "evaluate").glob("*/scores.json")}
    again = fresh.succeed(*fresh.grid(*FOUR))
    assert "4 points, 4 runs: 3 done, 1 failed" in again.out
    assert "4 of 4 runs done, 0 failed" in again.out
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(before) == 3


def test_fail_fast_begins_nothing_more(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", {"1 1": ZeroDivisionError("by zero")}, seen)
    done = fresh.nd(*fresh.grid(*FOUR, "fail_fast=true"))
    assert seen == ["1 0.6", "1 1"]
    assert done.code == 1
    assert "1 of 4 runs done, 1 failed, 2 not begun" in done.out


def test_what_stops_all_points_at_once_is_no_failure_of_each(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory together, say: they are sampled alone, and one that has not been tried is not called failed."""
    import nd.reconstruct as verb

    plain, tried = verb.make_images, list[int]()

    def make(cfgs: Sequence[Config], *rest: Any) -> Any:
        tried.append(len(cfgs))
        if len(cfgs) > 1 or len(tried) == 2:
            raise MemoryError("too much")
        return plain(cfgs, *rest)

    monkeypatch.setattr(verb, "make_images", make)
    done = fresh.nd(*fresh.grid(*FOUR, "fail_fast=true"))
    assert tried == [4, 1]
    assert "0 of 4 runs done, 1 failed, 3 not begun" in done.out
    assert "4 runs: 1 failed, 3 interrupted" in fresh.succeed(*fresh.grid(*FOUR, "dry_run=true")).out
    assert "4 of 4 runs done" in fresh.succeed(*fresh.grid(*FOUR)).out
    assert tried == [4, 1, 4, 1, 1, 1, 1]


def test_an_error_outside_of_every_step_takes_no_other_run_with_it(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nd.runs import chain

    plain = chain.check_finished

    def check(steps: Sequence[chain.Step]) -> None:
        if steps[-1].cfg.guidance.kappa == 3:
            raise LookupError("nowhere")
        plain(steps)

    monkeypatch.setattr(chain, "check_finished", check)
    done = fresh.nd(*fresh.grid("guidance.kappa=1,3", "guidance.eta=0.6"))
    assert done.code == 1
    assert "1 of 2 runs done, 1 failed" in done.out
    assert "    LookupError: nowhere" in done.out[done.out.index("### Sweep") :]


def test_a_logger_shows_the_points_as_one_group(fresh: Place) -> None:
    """The names are there before a run begins, as with `nd run -m`."""
    words = ["method=random_image", "seed=1,2"]
    fresh.succeed(*fresh.grid(*words, "logger=csv"))
    ((names),) = (fresh.own / "runs" / "groups").glob("*.json")
    (table,) = (fresh.own / "results").glob("sweep-*.md")
    assert names.stem == table.stem
    assert "seed=1" in names.read_text(encoding="utf-8")
