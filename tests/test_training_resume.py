"""Trainings that were killed and go on end as those that were not, bit for bit; checkpoints hold nothing that runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import EVERYTHING, SMALL, curve_of, finetuned, identical, train_and_die

import nd.mappers.training.callbacks as callbacks
import nd.mappers.training.fit as fit
from nd.config.application import compose
from nd.mappers.training.callbacks import Kept
from nd.mappers.training.fit import Checkpoints, Files, read_result
from nd.runs.chain import pretrain_of
from nd.runs.folder import RunFolder
from nd.train import train

# Where a training is killed: its stage, the epoch, and whether the epoch's checkpoint had been written.
KILLS = {"pretrain": ("pretrain", 1, "after"), "finetune": ("finetune", 2, "before")}


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    return [*linear_world, *SMALL, "target=c", "trainer.checkpoint_minutes=0"]


@pytest.fixture(scope="module")
def killed(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides of a killed run of each kind, and of the same run left alone, which goes on meanwhile."""
    root = tmp_path_factory.mktemp("killed")
    overrides = {name: [*given, *EVERYTHING, f"paths.runs={root / name}"] for name in (*KILLS, "alone")}
    forks = get_context("fork")  # which need not import everything anew
    runs = [forks.Process(target=train_and_die, args=(*kill, overrides[name])) for name, kill in KILLS.items()]
    for run in runs:
        run.start()
    train(compose(overrides["alone"]))
    for run in runs:
        run.join(200)
        assert run.exitcode == -signal.SIGKILL
    return overrides


def folders(overrides: list[str]) -> dict[str, RunFolder]:
    cfg = compose(overrides)
    return {"pretrain": RunFolder.open(pretrain_of(cfg), "train"), "finetune": RunFolder.open(cfg, "train")}


@pytest.mark.parametrize("kind", KILLS)
def test_killed_and_resumed_equals_uninterrupted(killed: dict[str, list[str]], kind: str) -> None:
    left, whole = folders(killed[kind]), folders(killed["alone"])
    stage, last = KILLS[kind][0], 1
    assert left[stage].status == "running"
    assert len(curve_of(left[stage].path)) == last + 1 + (kind == "finetune")  # its line was written, its state not
    assert torch.load(Files(left[stage].path, 0).checkpoint, weights_only=True)["epoch"] == last
    train(compose(killed[kind]))
    for name, folder in whole.items():
        file = "checkpoint/fold-00.safetensors"
        assert (left[name].path / file).read_bytes() == (folder.path / file).read_bytes(), name
        assert curve_of(left[name].path) == curve_of(folder.path)
        assert [line["epoch"] for line in curve_of(folder.path)] == [0, 1, 2, 3]
    assert (left["finetune"].path / "scores.json").read_bytes() == (whole["finetune"].path / "scores.json").read_bytes()


def test_finished_run_leaves_no_state_of_training(killed: dict[str, list[str]]) -> None:
    for folder in folders(killed["alone"]).values():
        assert [path.name for path in (folder.path / "training").iterdir()] == ["fold-00-curve.jsonl"]


# ---- at other moments ----------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for a kill: nothing of the training is tidied up."""


def stop_at(monkeypatch: pytest.MonkeyPatch, hook: str, when: Callable[[Any, Any], bool]) -> None:
    """Have trainings stop once, before ``hook`` of a callback."""
    kind = {"Checkpoints": Checkpoints, "Kept": Kept, "Result": fit.Result}[hook.split(".")[0]]
    name = hook.split(".")[1]
    original = getattr(kind, name)

    def stopping(self: Any, trainer: Any, module: Any) -> None:
        if when(self, trainer):
            monkeypatch.setattr(kind, name, original)
            raise StoppedError
        original(self, trainer, module)

    monkeypatch.setattr(kind, name, stopping)


def test_stopped_between_the_pretrained_network_and_the_end_of_its_run(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of it is found again, and nothing of it trained anew."""
    cfg = compose([*given, "training.pretrain_epochs=1", "training.epochs=1", f"paths.runs={tmp_path}"])

    def stopped(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr("nd.mappers.training.folds.clear_folds", stopped)
        with pytest.raises(StoppedError):
            train(pretrain_of(cfg))
    folder = RunFolder.open(pretrain_of(cfg), "train").path
    before = (folder / "checkpoint/fold-00.safetensors").stat()
    train(cfg)
    assert (folder / "checkpoint/fold-00.safetensors").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("keep", ["best", "last"])
def test_stopped_after_the_last_epoch_and_before_the_result(
    given: list[str], keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the last epoch is all there is; nothing is trained again, and its scores are still known."""
    cfg = compose([*given, f"training.keep={keep}", "training.validate_every=3", "training.epochs=2"])
    alone = finetuned(cfg, tmp_path / "alone", "c")
    stop_at(monkeypatch, "Result.on_fit_end", lambda *_: True)
    with pytest.raises(StoppedError):
        finetuned(cfg, tmp_path / "stopped", "c")
    steps: list[int] = []
    monkeypatch.setattr(fit.MapperTraining, "training_step", lambda *_: steps.append(1))
    resumed = finetuned(cfg, tmp_path / "stopped", "c")
    assert not steps
    assert resumed.details == alone.details
    assert resumed.details["scores"]["c"]["identification"] > 0
    files = [Files(tmp_path / name, 0) for name in ("alone", "stopped")]
    assert files[0].result.read_bytes() == files[1].result.read_bytes()


def test_stopped_when_patience_was_at_its_end(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose([*given, "training.patience=1", "training.validate_every=1", "training.epochs=30"])
    scores = {"c": {"unexplained": float("inf"), "correlation": 0.0}}  # never any progress
    monkeypatch.setattr(callbacks, "score_held", lambda *_: scores)
    stop_at(monkeypatch, "Result.on_fit_end", lambda *_: True)
    with pytest.raises(StoppedError):
        finetuned(cfg, tmp_path, "c")
    finetuned(cfg, tmp_path, "c")
    assert len(curve_of(tmp_path)) == 1


def test_best_weights_of_before_the_stop_are_still_kept(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose([*given, "training.validate_every=1"])
    best_first = [0.1, *[0.5] * 9]
    scores = iter(best_first * 2)
    monkeypatch.setattr(callbacks, "score_held", lambda *_: {"c": {"unexplained": next(scores), "correlation": 0.0}})
    stop_at(monkeypatch, "Checkpoints.on_train_epoch_end", lambda _, trainer: trainer.current_epoch == 2)
    with pytest.raises(StoppedError):
        finetuned(cfg, tmp_path / "stopped", "c")
    resumed = finetuned(cfg, tmp_path / "stopped", "c")
    scores = iter(best_first)
    alone = finetuned(cfg, tmp_path / "alone", "c")
    assert (resumed.details["epoch"], resumed.details["epochs"]) == (0, 4)
    assert resumed.details == alone.details
    assert identical(resumed.network, alone.network)


def test_line_of_an_epoch_that_is_trained_again_is_not_there_twice(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose([*given, "training.validate_every=2"])
    alone = finetuned(cfg, tmp_path / "alone", "c")
    stop_at(monkeypatch, "Checkpoints.on_train_epoch_end", lambda _, trainer: trainer.current_epoch == 2)
    with pytest.raises(StoppedError):
        finetuned(cfg, tmp_path / "stopped", "c")
    assert [line["epoch"] for line in curve_of(tmp_path / "stopped")] == [0, 1, 2]
    finetuned(cfg, tmp_path / "stopped", "c")
    curve = curve_of(tmp_path / "stopped")
    assert curve == curve_of(tmp_path / "alone")
    assert [bool(line["val"]) for line in curve] == [False, True, False, True]
    assert alone.details["epochs"] == 4


# ---- what a checkpoint holds ---------------------------------------------------------------------------------------


def test_checkpoints_are_loaded_as_weights_alone(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch is told so, whatever its default and that of Lightning are."""
    stop_at(monkeypatch, "Checkpoints.on_train_epoch_end", lambda _, trainer: trainer.current_epoch == 1)
    cfg = compose(given)
    with pytest.raises(StoppedError):
        finetuned(cfg, tmp_path, "c")
    asked: list[Any] = []
    load = torch.load

    def noted(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", noted)
    finetuned(cfg, tmp_path, "c")
    assert asked
    assert all(value is True for value in asked)


def test_checkpoint_that_would_run_code_is_refused(given: list[str], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    files = Files(tmp_path, 0)
    files.checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": Bomb()}, files.checkpoint)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        finetuned(compose(given), tmp_path, "c")
    assert not (tmp_path / "exploded").exists()


def test_time_between_checkpoints(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With minutes between them there is none of a training of seconds; a killed write leaves the last one whole."""
    finetuned(compose([*given, "trainer.checkpoint_minutes=5"]), tmp_path / "rare", "c")
    assert not Files(tmp_path / "rare", 0).checkpoint.exists()
    finetuned(compose(given), tmp_path / "often", "c")
    files = Files(tmp_path / "often", 0)
    assert torch.load(files.checkpoint, weights_only=True)["epoch"] == 3
    assert read_result(files)[1]["epochs"] == 4
    files.clear()
    assert [path.name for path in files.curve.parent.iterdir()] == [files.curve.name]
