"""`nd log`: finished runs sent to a logger, whenever they were made and wherever they have been moved to."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_commands import Done, nd, succeed
from helpers_results import N_IMAGES, config, fake_images, fake_scores, fake_stimuli
from helpers_wandb import offline_runs

from nd.config import Config
from nd.files import read_json, write_json
from nd.runs.folder import RunFolder
from nd.runs.identity import run_id


def guided(root: Path, kappa: float) -> Config:
    cfg = config(root)
    cfg.logger.group = "kappas"
    return replace(cfg, guidance=replace(cfg.guidance, kappa=kappa), overrides=[f"guidance.kappa={kappa}"])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scored runs that differ in kappa, a training in closed form, one that failed, and images; moved since."""
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    old = tmp_path / "old"
    for kappa in (0.5, 1.0):
        cfg = guided(old, kappa)
        fake_stimuli(cfg)
        fake_images(cfg, repeats=1)
        fake_scores(cfg, {"pixcorr": np.linspace(0, kappa, N_IMAGES)})
    cfg = config(old)
    folder = RunFolder.open(cfg, "train")
    with folder.writing(cfg):
        write_json(folder.path / "scores.json", {"mean": {"correlation": 0.25}, "folds": [{}]})
    failed = RunFolder.open(cfg, "predict")
    with pytest.raises(ZeroDivisionError), failed.writing(cfg):
        raise ZeroDivisionError
    return old.rename(tmp_path / "new")


def ids(lab: Path) -> list[str]:
    return [run_id("evaluate", guided(lab, kappa)) for kappa in (0.5, 1.0)]


def test_finished_runs_are_sent_later(lab: Path) -> None:
    done = succeed("log", "runs=all", cwd=lab)
    runs = {run.id: run for run in offline_runs(lab / "runs")}
    assert runs.keys() == {*ids(lab), run_id("train", config(lab))}
    assert [runs[one].name for one in ids(lab)] == ["guidance.kappa=0.5", "guidance.kappa=1"]
    assert {runs[one].group for one in ids(lab)} == {"kappas"}
    columns, rows = runs[ids(lab)[1]].table("per_image")
    assert columns == ["image_id", "stimulus", "reconstructions", "pixcorr"]
    assert rows[-1][-1] == pytest.approx(1.0)
    trained = runs[run_id("train", config(lab))]
    assert (trained.kind, trained.group, trained.history) == ("train", "", [])
    assert trained.summary["kept/z/correlation"] == 0.25
    assert "3 of 3: " in done.out
    assert "logged 3 runs with wandb\nW&B, offline: wandb sync " in done.out


def test_runs_are_chosen_by_id_pattern_verb_and_value(lab: Path) -> None:
    def logged(*words: str) -> set[str]:
        done = succeed("log", "logger=csv", *words, cwd=lab)
        return {line.rsplit("-", 1)[1] for line in done.out.splitlines() if " of " in line}

    first, second = ids(lab)
    assert logged(f"runs={first[:6]}") == {first}
    assert logged(f"runs={first},{second}") == {first, second}
    assert logged("runs=all", "evaluate") == {first, second}
    assert logged("runs=*-guided-*") == {first, second}
    assert logged("runs=all", "guidance.kappa=1") == {second}
    with open(lab / "results" / "scores-log.csv", newline="", encoding="utf-8") as handle:
        assert {line["run"] for line in csv.DictReader(handle)} == {first, second}


def test_a_beginning_means_a_run_that_can_be_logged(lab: Path) -> None:
    first, second = (RunFolder.open(guided(lab, kappa), "evaluate").path for kappa in (0.5, 1.0))
    shutil.rmtree(lab / second.relative_to(lab))
    name = first.name.rpartition("-")[0]  # that of the images, too
    assert f"evaluate {first.name}" in succeed("log", "logger=csv", f"runs={name}", cwd=lab).out


def test_tensorboard_too(lab: Path) -> None:
    succeed("log", "runs=all", "logger=tensorboard", cwd=lab)
    places = sorted(path.parent.parent.name for path in lab.glob("runs/tensorboard/*/*/events*"))
    assert places == ["evaluate", "evaluate"]  # a training in closed form has no curve


def failing(lab: Path, *words: str) -> Done:
    done = nd("log", *words, cwd=lab)
    assert done.code == 2
    return done


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "which runs? runs=all, or runs=<id"),
        (["runs=all", "evalute"], "unknown verb with results to log 'evalute'. Did you mean 'evaluate'?"),
        (["runs=all", "logger=wandbb"], "unknown option. Did you mean 'wandb'?"),
        (["runs=all", "logger=none"], "logger=none shows nothing."),
        (["runs=all", "guidance.kapa=1"], "guidance.kapa: unknown key. Did you mean 'guidance.kappa'?"),
        (["runs=all", "guidance.kappa=7"], "no finished run of train or evaluate"),
        (["runs=all", "logger.mode=disabled"], "W&B is disabled"),
        (["runs=scenes-subj01-c_g"], "is a predict run, which has no scores to log."),
        (["train", "runs={evaluate}"], "is a run of evaluate; wanted was one of train alone."),
        (["runs=nothing"], "is called 'nothing' or begins so."),
    ],
)
def test_a_wrong_word_is_one_message(words: list[str], wanted: str, lab: Path) -> None:
    before = sorted(lab.rglob("*"))
    assert wanted in failing(lab, *(word.format(evaluate=ids(lab)[0]) for word in words)).err
    assert sorted(lab.rglob("*")) == before


def test_an_unfinished_run_is_refused_by_name_and_passed_over_by_pattern(lab: Path) -> None:
    first = ids(lab)[0]
    (RunFolder.open(guided(lab, 0.5), "evaluate").path / "status").write_text("running\n", encoding="utf-8")
    assert "is not done but partial" in failing(lab, f"runs={first}", "logger=csv").err
    assert "1 of 1: evaluate" in succeed("log", "runs=all", "evaluate", "logger=csv", cwd=lab).out


def test_names_that_the_group_has_given_stay(lab: Path) -> None:
    from nd.runs.groups import announce

    first, second = ids(lab)
    announce(lab / "runs", "kappas", {first: "the weak one"})
    succeed("log", "runs=all", "evaluate", "logger.images=0", cwd=lab)
    names = {run.id: run.name for run in offline_runs(lab / "runs")}
    assert names == {first: "the weak one", second: "guidance.kappa=1"}
    assert read_json(lab / "runs" / "groups" / "kappas.json")[first] == "the weak one"
