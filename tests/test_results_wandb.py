"""Loggers: nothing unless asked for; W&B offline, one run per run id, finished whatever happens; only rank 0 speaks."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_results import config

from nd.config import Config
from nd.errors import UserError
from nd.runs.folder import RunFolder
from nd.tables.wandb import changed_keys, log_scores

SCORES = {"pixcorr": 0.5, "ssim": 0.25}


class FakeRun:
    """Records what a W&B run would get."""

    def __init__(self, fail: bool) -> None:
        self.fail, self.finished, self.got = fail, False, {}
        self.summary = SimpleNamespace(update=self.update)

    def update(self, values: dict[str, Any]) -> None:
        if self.fail:
            raise OSError("disk full")
        self.got = values

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    cfg = config(tmp_path)
    cfg.logger.name = "wandb"
    return cfg


def fake(monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> tuple[FakeRun, dict[str, Any]]:
    run, settings = FakeRun(fail), {}

    def init(**given: Any) -> FakeRun:
        settings.update(given)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return run, settings


def log(cfg: Config) -> None:
    log_scores(cfg, RunFolder.open(cfg, "evaluate"), SCORES)


def test_nothing_is_logged_unless_asked_for(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg.logger.name = "none"
    log(cfg)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_known_by_its_id_and_grouped_by_its_table(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = fake(monkeypatch)
    cfg.table, cfg.guidance.kappa, cfg.trainer.devices = "scenes", 2.0, 8
    log(cfg)
    assert (settings["id"], settings["group"]) == (RunFolder.open(cfg, "evaluate").run_id, "scenes")
    assert (settings["mode"], settings["name"], settings["resume"]) == ("offline", "guidance.kappa=2.0", "allow")
    assert settings["config"]["guidance"]["kappa"] == 2.0
    assert (run.got["pixcorr"], run.got["simulated"], run.finished) == (0.5, True, True)


def test_a_run_is_finished_even_when_logging_fails(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = fake(monkeypatch, fail=True)
    with pytest.raises(OSError, match="disk full"):
        log(cfg)
    assert run.finished


def test_other_ranks_log_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings = fake(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    log(cfg)
    assert settings == {}


def test_without_the_package_the_message_says_what_to_do(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="logger=wandb needs the wandb package: pip install wandb"):
        log(cfg)


def test_csv_lines_add_up(cfg: Config) -> None:
    cfg.logger.name = "csv"
    log(cfg)
    log(cfg)
    with open(Path(cfg.paths.results) / "scores-log.csv", newline="", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert [line["metric"] for line in lines] == ["pixcorr", "ssim"] * 2
    assert float(lines[0]["value"]) == 0.5


def test_the_default_run_has_a_name_too() -> None:
    assert changed_keys(Config(), "evaluate") == "scenes-subj01-neuraldiffuser-guided"
