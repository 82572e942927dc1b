"""What `nd tune` refuses, and what it tries next: on studies in memory, with runs that are made up."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers_commands import nd
from optuna import Study, create_study
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState

from nd import tune as verb
from nd.config import Config
from nd.config.application import compose
from nd.errors import UserError
from nd.files import read_json
from nd.sweeps import tuning
from nd.sweeps.tuning import MEANS, RUN, VALUES, Swept, completed, search
from nd.sweeps.work import Outcome

Compose = Callable[[Mapping[str, str]], Config]
GRID = [Swept("kappa", ("1", "3")), Swept("eta", ("0.6", "1"))]
POINTS = ["1 0.6", "1 1", "3 0.6", "3 1"]


class Runs:
    """Stands for all runs: notes what is tried, and lets some fail."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.broken: set[str] = set()

    def score(self, values: Mapping[str, str], compose: Any, chain: Any, trial: Trial) -> Outcome:
        """As ``nd.sweeps.tuning.score``: a setting is worth the sum of its values."""
        name = " ".join(values.values())
        self.tried.append(name)
        if name in self.broken:
            trial.study.tell(trial, state=TrialState.FAIL)
            return Outcome("failed", message=f"{name} is broken")
        trial.set_user_attr(RUN, name)
        trial.study.tell(trial, sum(map(float, values.values())))
        return Outcome("done")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(tuning, "score", found.score)
    return found


@pytest.fixture
def study() -> Study:
    return create_study(direction="maximize", sampler=TPESampler(seed=0))


def searched(study: Study, space: list[Swept], n: int) -> tuple[int, list[str]]:
    """Return how many trials failed, and what was said."""
    said = list[str]()
    return search(study, space, lambda values: None, n, said.append), said  # type: ignore[arg-type,return-value]


def test_a_grid_is_tried_in_order_and_once(study: Study, runs: Runs) -> None:
    failed, said = searched(study, GRID, 30)
    assert (failed, runs.tried) == (0, POINTS)
    assert said[-1] == "4 of 4: kappa=3 eta=1: 4.0000 (best 4.0000)"
    assert searched(study, GRID, 30) == (0, [])
    assert runs.tried == POINTS


def test_a_part_of_a_grid_goes_on_to_the_whole(study: Study, runs: Runs) -> None:
    for n in (1, 3, 4):
        assert searched(study, GRID, n)[0] == 0
        assert len(runs.tried) == len(completed(study)) == n
    assert sorted(runs.tried) == POINTS


def test_what_failed_is_tried_again_by_the_next_call(study: Study, runs: Runs) -> None:
    runs.broken = {"1 1"}
    failed, said = searched(study, GRID, 30)
    assert (failed, runs.tried) == (1, POINTS)
    assert "kappa=1 eta=1 FAILED: 1 1 is broken" in said
    runs.broken = set()
    assert searched(study, GRID, 30) == (0, ["4 of 4: kappa=1 eta=1: 2.0000 (best 4.0000)"])
    assert runs.tried == [*POINTS, "1 1"]


def test_a_setting_that_fails_again_leaves_the_study_with_its_best(study: Study, runs: Runs) -> None:
    runs.broken = {"1 1"}
    searched(study, GRID, 30)
    failed, said = searched(study, GRID, 30)
    assert (failed, runs.tried) == (1, [*POINTS, "1 1"])
    assert study.best_trial.user_attrs[RUN] == "3 1"
    assert said == ["kappa=1 eta=1 FAILED: 1 1 is broken"]


def test_failures_before_anything_succeeds_end_a_call(study: Study, runs: Runs) -> None:
    runs.broken = set(POINTS[:3])
    with pytest.raises(UserError, match=r"3 trials of this call failed, all\. The study is kept\. The last: 3 0\.6 is"):
        searched(study, GRID, 30)
    assert runs.tried == POINTS[:3]
    assert searched(study, GRID, 30)[0] == 3
    assert runs.tried[3:] == [POINTS[3], *POINTS[:3]]
    failed, said = searched(study, GRID, 30)
    assert (failed, said[-1]) == (3, "stopped: the first 3 trials of this call have all failed")


def test_an_interval_goes_on_with_other_values(study: Study, runs: Runs) -> None:
    space = [Swept("kappa", low=0.5, high=50, log=True), Swept("steps", low=2, high=9, whole=True)]
    searched(study, space, 3)
    searched(study, space, 8)
    assert len(set(runs.tried)) == len(completed(study)) == 8
    for name in runs.tried:
        kappa, steps = name.split()
        assert 0.5 <= float(kappa) <= 50
        assert steps in "23456789"


# ---- the command


def test_values_are_tried_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is a number, and a text that needs quotes keeps them."""
    seen = list[tuple[float, str]]()

    def search(study: Any, space: Any, composed: Compose, *_: Any) -> None:
        for values in zip(*(one.values for one in space), strict=True):
            cfg = composed({one.key: value for one, value in zip(space, values, strict=True)})
            seen.append((cfg.guidance.eta, cfg.subject.roi))
        raise UserError("enough")

    monkeypatch.setattr(verb, "search", search)
    words = ["experiment=scenes", f"paths.root={tmp_path}", "guidance.eta=0.2,1", "subject.roi=early,'early+ventral'"]
    with pytest.raises(UserError, match="enough"):
        verb.tune(words)
    assert seen == [(0.2, "early"), (1.0, "early+ventral")]


def test_the_command_to_use_names_the_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n", encoding="utf-8")

    def search(study: Study, *_: Any) -> int:
        for eta in ("0.2", "1"):
            trial = study.ask()
            for key, value in ((VALUES, {"guidance.eta": eta}), (MEANS, {"ssim": 0.5}), (RUN, eta)):
                trial.set_user_attr(key, value)
            trial.suggest_categorical("guidance.eta", ("0.2", "1"))
            study.tell(trial, float(eta))
        return 0

    monkeypatch.setattr(verb, "search", search)
    monkeypatch.setattr(verb, "draw", lambda *_: None)
    words = ["--config-dir", str(tmp_path / "own"), "experiment=mine", f"paths.root={tmp_path}", "guidance.eta=0.2,1"]
    assert verb.tune(words) == 0
    (written,) = (tmp_path / "results").glob("tune-*.json")
    given = shlex.split(read_json(written)["command"])
    assert given[:2] == ["nd", "run"]
    cfg = compose(given[2:])
    assert (cfg.seed, cfg.guidance.eta) == (3, 1.0)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["part=test", "seed=1,2"], "part=test: settings are chosen on validation images"),
        (["part=val,test"], "part=val,test: settings are chosen on validation images"),
        (["table=demo", "seed=1,2"], "table=demo: one configuration is tuned, not a table"),
        (["mapper.refit=true", "seed=1,2"], "mapper.refit=true: validation images cannot judge what is fitted again"),
        (["table=", "table=demo", "seed=1,2"], "table=demo: one configuration is tuned, not a table"),
        # of a key given twice the last counts
        (["table=demo", "part=test", "table=", "part=val"], "nothing to choose: give several values"),
        ([], "nothing to choose: give several values"),
        (["guidance.kappa=interval(3,1)"], "guidance.kappa"),
        (["guidance.kappa=tag(log,interval(0,1))"], "guidance.kappa: 0 to 1 is no interval on a logarithmic scale"),
        (["seed=1,2", "tune.trials=0"], "tune.trials: 0 was given, wanted 1 or more"),
    ],
)
def test_what_cannot_be_chosen_is_refused(words: list[str], wanted: str, tmp_path: Path) -> None:
    done = nd("tune", "experiment=scenes", f"paths.root={tmp_path}", *words, cwd=tmp_path)
    assert done.code == 2
    assert wanted in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = nd("tune", "experiment=scenes", f"paths.root={tmp_path}", "seed=1,2", cwd=tmp_path)
    assert done.code == 2
    assert "pip install nd[tune]" in done.err
