"""Loggers: nothing unless asked for; W&B offline, one run per run id; asked before the work, a warning after it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_results import config
from nd.tables.wandb import changed_keys, check_logger, log_scores

from nd.config import Config
from nd.errors import UserError
from nd.runs.folder import RunFolder

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


class Refused(Exception):  # noqa: N818 - stands in for wandb.Error
    """No key."""


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    cfg = config(tmp_path)
    cfg.logger.name = "wandb"
    return cfg


def fake(monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> tuple[FakeRun, dict[str, Any]]:
    run, settings = FakeRun(fail), {}

    def init(**given: Any) -> FakeRun:
        settings.update(given)
        return run

    def login() -> bool:
        raise Refused("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, login=login, Error=Refused))
    return run, settings


def log(cfg: Config) -> None:
    """Log a finished run."""
    folder = RunFolder.open(cfg, "evaluate")
    folder.path.mkdir(parents=True, exist_ok=True)
    summary = {"metrics": {name: {"mean": value} for name, value in SCORES.items()}, "retrieval": {}}
    (folder.path / "scores.json").write_text(json.dumps(summary), encoding="utf-8")
    log_scores(cfg, folder)


def test_nothing_is_logged_unless_asked_for(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg.logger.name = "none"
    log(cfg)
    check_logger(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_is_known_by_its_id_and_grouped_by_its_table(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = fake(monkeypatch)
    cfg.table, cfg.guidance.kappa, cfg.trainer.devices = "scenes", 2.0, 8
    log(cfg)
    assert (settings["id"], settings["group"]) == (RunFolder.open(cfg, "evaluate").run_id, "scenes")
    assert (settings["mode"], settings["name"], settings["resume"]) == ("offline", "guidance.kappa=2.0", "allow")
    assert settings["config"]["guidance"]["kappa"] == 2.0
    assert (run.got["pixcorr"], run.got["simulated"], run.finished) == (0.5, True, True)


def test_a_view_that_fails_is_a_warning_and_tried_again_when_asked_again(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = fake(monkeypatch, fail=True)
    log(cfg)
    assert run.finished
    assert "could not show the scores" in caplog.text
    assert "OSError: disk full" in caplog.text
    run, _ = fake(monkeypatch)
    log(cfg)
    assert run.got["pixcorr"] == 0.5


@pytest.mark.parametrize(
    ("surroundings", "mode", "wanted"),
    [
        ({}, "offline", "offline"),
        ({"WANDB_MODE": "disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "dryrun"}, "online", "offline"),
        ({"WANDB_DISABLED": "true"}, "online", "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "offline", "disabled"),
        ({"WANDB_DISABLED": "false"}, "online", "online"),
        ({"WANDB_MODE": "online"}, "offline", "online"),
    ],
)
def test_the_variables_of_wandb_are_respected_and_a_missing_key_is_said_before_the_work(
    surroundings: dict[str, str], mode: str, wanted: str, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = fake(monkeypatch)
    cfg.logger.mode = mode
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    if wanted == "online":
        with pytest.raises(UserError, match=r"does not let this machine in: No API key configured\. Run `wandb login`"):
            check_logger(cfg)
    else:
        check_logger(cfg)
    log(cfg)
    assert settings["mode"] == wanted


def test_a_mode_that_wandb_does_not_know_is_said(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"unknown W&B mode \(WANDB_MODE\) 'ofline'\. Did you mean 'offline'"):
        check_logger(cfg)


@pytest.mark.parametrize("verb", ["evaluate", "run"])
def test_verbs_ask_before_they_work(verb: str, cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    fake(monkeypatch)
    cfg.logger.mode = "online"
    with pytest.raises(UserError, match="does not let this machine in"):
        getattr(importlib.import_module(f"nd.{verb}"), verb)(cfg)


def test_other_ranks_log_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings = fake(monkeypatch)
    monkeypatch.setattr("nd.tables.wandb.is_rank_zero", lambda trainer: False)
    log(cfg)
    assert settings == {}


def test_without_the_package_the_message_says_what_to_do(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="logger=wandb needs the wandb package: pip install wandb"):
        check_logger(cfg)


def test_csv_holds_each_line_once(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg.logger.name = "csv"
    log(cfg)
    log(cfg)
    monkeypatch.setitem(SCORES, "ssim", 0.75)  # the run was removed and made again
    log(cfg)
    with open(Path(cfg.paths.results) / "scores-log.csv", newline="", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert [(line["metric"], float(line["value"])) for line in lines] == [
        ("pixcorr", 0.5), ("ssim", 0.25), ("ssim", 0.75),
    ]  # fmt: skip


def test_the_default_run_has_a_name_too() -> None:
    assert changed_keys(Config(), "evaluate") == "scenes-subj01-neuraldiffuser-guided"
