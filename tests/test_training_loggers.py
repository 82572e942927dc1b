"""What loggers show of a training: live, resumed, interrupted, afterwards; each stage in W&B a run of its own."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_training import SMALL, curve_of
from helpers_wandb import Logged, offline_runs

from nd.config import Config
from nd.config.application import compose
from nd.mappers.training.callbacks import values_of
from nd.mappers.training.fit import Checkpoints
from nd.runs.chain import pretrain_of
from nd.runs.folder import RunFolder
from nd.tables.loggers import log_training
from nd.tables.training_history import History, training_loggers
from nd.train import train

HERE = Path(__file__).parent
# Runs `nd train` and, at the end of an epoch of fine-tuning, does what Ctrl-C in a terminal does: all processes get it.
INTERRUPTED = """
import os, signal, sys
from nd.mappers.training.fit import Checkpoints
from nd.train import main
write = Checkpoints.on_train_epoch_end
def interrupt(self, trainer, module):
    write(self, trainer, module)
    if module.config.stage == "finetune" and trainer.current_epoch == 1:
        os.killpg(0, signal.SIGINT)
Checkpoints.on_train_epoch_end = interrupt
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B with nobody where its servers would be."""
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    epochs = ["training.epochs=3", "training.pretrain_epochs=2", "training.validate_every=1"]
    return [*linear_world, *SMALL, *epochs, "target=c", "trainer.checkpoint_minutes=0"]


def made(given: list[str], root: Path, *more: str) -> Config:
    return compose([*given, f"paths.runs={root}", *more])


def stages(cfg: Config) -> dict[str, RunFolder]:
    return {"pretrain": RunFolder.open(pretrain_of(cfg), "train"), "finetune": RunFolder.open(cfg, "train")}


def assert_shows(run: Logged, folder: Path, epochs: int = 0) -> None:
    """A run holds the curve of a folder, or the first epochs of it."""
    lines = curve_of(folder)[: epochs or None]
    assert lines
    wanted = [values_of({**line, "samples_per_s": 0}) for line in lines]
    for name in wanted[-1].keys() - {"samples_per_s"}:
        shown = [(line["step"], values[name]) for line, values in zip(lines, wanted, strict=True) if name in values]
        assert run.curve(name) == [(step, pytest.approx(value)) for step, value in shown], name


# ---- off, csv, TensorBoard


def test_nothing_is_opened_when_off(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for more in (["logger=none"], ["logger=wandb", "logger.mode=disabled"]):
        cfg = made(given, tmp_path, *more)
        with training_loggers(cfg, RunFolder.open(cfg, "train"), 1) as make:
            assert make(0) is False
    assert list(tmp_path.iterdir()) == []


def test_csv_logger_shows_the_curve(given: list[str], tmp_path: Path) -> None:
    path = train(made(given, tmp_path, "logger=csv", "training.pretrain=false", "training.validate_every=2"))
    with open(path / "training" / "fold-00-log" / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curve = curve_of(path)
    assert [float(row["train/loss"]) for row in rows] == pytest.approx([line["loss"] for line in curve])
    assert [int(row["step"]) for row in rows] == [3, 6, 9]
    assert float(rows[1]["val/c/correlation"]) == pytest.approx(curve[1]["val"]["c"]["correlation"])
    assert rows[0]["val/c/correlation"] == ""


def test_tensorboard_shows_the_curve_and_begins_anew(given: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = made(given, tmp_path, "logger=tensorboard", "training.pretrain=false")
    path = train(cfg)
    place = tmp_path / "tensorboard" / "train" / path.name
    for _ in range(2):
        found = EventAccumulator(str(place)).Reload()
        shown = [(event.step, event.value) for event in found.Scalars("train/loss")]
        assert shown == [(line["step"], pytest.approx(line["loss"])) for line in curve_of(path)]
        assert len(found.Scalars("val/c/retrieval")) == 3
        log_training(cfg, RunFolder.open(cfg, "train"))
    assert len(list(place.glob("events.*"))) == 1


# ---- W&B


@pytest.fixture(scope="module")
def trained(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Both stages, trained without a logger."""
    cfg = made(given, tmp_path_factory.mktemp("trained"))
    train(cfg)
    return cfg


def test_two_stages_are_two_runs_with_their_history(given: list[str], tmp_path: Path) -> None:
    cfg = made(given, tmp_path, "logger=wandb", "logger.group=mine")
    train(cfg)
    runs = {run.kind: run for run in offline_runs(tmp_path)}
    assert runs.keys() == {"pretrain", "finetune"}
    for stage, folder in stages(cfg).items():
        run = runs[stage]
        assert (run.id, run.group, run.exit_code) == (folder.run_id, "mine", 0)
        assert {"train", stage, "two_stage", "c", "subj01"} <= set(run.tags)
        assert_shows(run, folder.path)
        kept = curve_of(folder.path)[-1]["val"]["c"].keys()
        assert {f"kept/c/{name}" for name in kept} <= run.summary.keys()
    assert runs["pretrain"].config["training"]["stage"] == "pretrain"


def test_a_finished_training_is_shown_afterwards_once(trained: Config) -> None:
    """As it would have been live."""
    trained.logger.name = "wandb"
    for stage, folder in stages(trained).items():
        own = pretrain_of(trained) if stage == "pretrain" else trained
        log_training(own, folder)
        log_training(own, folder)
        run = next(run for run in offline_runs(Path(trained.paths.runs)) if run.kind == stage)
        assert run.id == folder.run_id
        assert_shows(run, folder.path)
    assert len(offline_runs(Path(trained.paths.runs))) == 2


@pytest.mark.slow
def test_ctrl_c_finishes_the_run_and_the_resumed_one_keeps_its_id(given: list[str], tmp_path: Path) -> None:
    words = [*given, f"paths.runs={tmp_path}", "logger=wandb", "training.pretrain=false"]
    command = [sys.executable, "-c", INTERRUPTED, *words]
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        command, env=surroundings, start_new_session=True, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted. The same command again resumes." in done.stderr
    first = offline_runs(tmp_path)[0]
    assert first.exit_code == 130
    cfg = compose(words)
    train(cfg)
    runs = offline_runs(tmp_path, 2)
    assert [run.id for run in runs] == 2 * [RunFolder.open(cfg, "train").run_id]
    assert_shows(runs[0], RunFolder.open(cfg, "train").path, epochs=2)
    assert_shows(runs[1], RunFolder.open(cfg, "train").path)
    assert runs[1].exit_code == 0


def test_an_exception_finishes_the_run_as_failed(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", fail)
    cfg = made(given, tmp_path, "logger=wandb", "training.pretrain=false")
    with pytest.raises(ZeroDivisionError):
        train(cfg)
    run = offline_runs(tmp_path)[0]
    assert (run.exit_code, len(run.curve("train/loss"))) == (1, 1)
    assert not (RunFolder.open(cfg, "train").path / "logged.json").exists()


def test_a_logger_that_cannot_be_opened_takes_no_training_down(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no room")

    import wandb

    monkeypatch.setattr(wandb, "init", fail)
    cfg = made(given, tmp_path, "logger=wandb", "training.pretrain=false", "training.epochs=1")
    with caplog.at_level(logging.WARNING):
        assert RunFolder.open(cfg, "train").path == train(cfg)
    assert RunFolder.open(cfg, "train").done
    assert "OSError: no room" in caplog.text


@pytest.mark.slow
def test_processes_that_lightning_spawns_share_the_run(given: list[str], tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.strategy=ddp_spawn", "training.epochs=1", "training.pretrain=false"]
    cfg = made(given, tmp_path, "logger=wandb", *two)
    train(cfg)
    (run,) = offline_runs(tmp_path)
    assert run.exit_code == 0
    assert_shows(run, RunFolder.open(cfg, "train").path)
    assert "kept/c/correlation" in run.summary


def test_folds_share_a_run_under_names_of_their_own(given: list[str], tmp_path: Path) -> None:
    cfg = made(given, tmp_path, "logger=wandb")
    folder = RunFolder.open(cfg, "train")
    folder.path.mkdir(parents=True)
    (folder.path / "scores.json").write_text('{"mean": {"c": {"correlation": 0.5}}, "folds": [1, 2]}', encoding="utf-8")
    with training_loggers(cfg, folder, 2) as make:
        for fold in range(2):
            logger = make(fold)
            for epoch in range(2):
                logger.log_metrics({"train/loss": 1.0 + fold, "epoch": epoch}, step=3 * epoch)
    (run,) = offline_runs(tmp_path)
    assert run.curve("fold-00/train/loss") == [(0, 1.0), (3, 1.0)]
    assert run.curve("fold-01/train/loss") == [(0, 2.0), (3, 2.0)]
    assert run.summary["kept/c/correlation"] == 0.5


def test_what_a_resumed_run_holds_is_not_sent_twice() -> None:
    """Online, W&B says what it has; the curve before the resumption comes again from the run folder."""
    sent: list[dict[str, Any]] = []
    run = SimpleNamespace(
        resumed=True, summary={"fold-01/epoch": 1}, log=sent.append, define_metric=lambda *_, **__: None
    )
    for prefix, wanted in (("fold-01/", [2]), ("fold-02/", [0, 1, 2])):
        sent.clear()
        history = History(run, prefix)
        for epoch in range(3):
            history.log_metrics({"epoch": epoch}, step=epoch)
        assert [line[f"{prefix}epoch"] for line in sent] == wanted
