"""Loggers of results: nothing unless asked for; W&B offline, read back from its files and from what it would send."""

from __future__ import annotations

import csv
import json
import logging
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_commands import apart
from helpers_files import left_so
from helpers_results import N_IMAGES, SIDE, config, fake_images, fake_scores, fake_stimuli
from helpers_wandb import KEY, Logged, offline_runs, read_run, server, wandb_sync

from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluation.scores import read_per_image
from nd.files import read_json, write_json
from nd.runs.folder import RunFolder
from nd.runs.groups import changed_keys
from nd.tables.loggers import announce_table, check_logger, log_scores, log_sweep, log_table, pairs_of
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.sweep import sweep_table, write_sweep
from nd.tables.table import collect
from nd.tables.wandb_runs import MARK, plain_config, tags_of

SCORES = {"pixcorr": np.linspace(0.1, 0.8, N_IMAGES), "ssim": np.full(N_IMAGES, 0.25)}
SURROUNDINGS = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_BASE_URL")


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """W&B offline, with nobody where its servers would be."""
    for name in SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    cfg = config(tmp_path)
    cfg.logger.name = "wandb"
    return cfg


def finished(cfg: Config, **facts: Any) -> RunFolder:
    """A run with scores; its images are two of one grey each for every stimulus."""
    fake_stimuli(cfg)
    if not RunFolder.open(cfg, "reconstruct").done:
        fake_images(cfg, repeats=2)
    fake_scores(cfg, SCORES, **facts)
    return RunFolder.open(cfg, "evaluate")


def guided(cfg: Config, kappa: float, eta: float = 0.2) -> Config:
    own = replace(cfg, guidance=replace(cfg.guidance, kappa=kappa, eta=eta))
    own.overrides = [f"guidance.kappa={kappa}"]
    return own


# ---- off


@pytest.mark.parametrize(("name", "mode"), [("none", "offline"), ("wandb", "disabled")])
def test_nothing_is_opened_when_off(
    name: str, mode: str, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = finished(cfg), sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    cfg.logger.name, cfg.logger.mode, cfg.table = name, mode, "scenes"
    check_logger(cfg)
    announce_table(cfg, [cfg])
    log_scores(cfg, folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_ranks_log_nothing(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(cfg)
    monkeypatch.setattr("nd.tables.loggers.is_rank_zero", lambda trainer: False)
    log_scores(cfg, folder)
    assert offline_runs(tmp_path / "runs") == []


def test_images_ranked_by_a_distance_begin_with_the_least(cfg: Config) -> None:
    fake_stimuli(cfg)
    fake_images(cfg)
    fake_scores(cfg, {"distance": np.arange(N_IMAGES) / 10})
    folder = RunFolder.open(cfg, "evaluate")
    cfg.logger.images = N_IMAGES
    found = pairs_of(cfg, folder, read_per_image(folder.path / "per_image.csv"), None)
    assert found is not None
    assert found.image_ids == list(range(N_IMAGES))


# ---- asked before the work


class Refused(Exception):  # noqa: N818 - stands in for wandb.Error
    """No key."""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wandb package that lets nobody in."""

    def login() -> bool:
        raise Refused("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=login, Error=Refused))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("surroundings", "mode", "online"),
    [
        ({}, "offline", False),
        ({}, "online", True),
        ({"WANDB_MODE": "disabled"}, "online", False),
        ({"WANDB_MODE": "dryrun"}, "online", False),
        ({"WANDB_DISABLED": "true"}, "online", False),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "offline", False),
        ({"WANDB_DISABLED": "false"}, "online", True),
        ({"WANDB_MODE": "online"}, "offline", True),
    ],
)
def test_the_variables_of_wandb_are_respected_and_a_missing_key_is_said_before_the_work(
    surroundings: dict[str, str], mode: str, online: bool, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.logger.mode = mode
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    if online:
        with pytest.raises(UserError, match=r"does not let this machine in: No API key configured\. Run `wandb login`"):
            check_logger(cfg)
    else:
        check_logger(cfg)


@pytest.mark.usefixtures("nobody")
def test_a_mode_that_wandb_does_not_know_is_said(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"unknown W&B mode \(WANDB_MODE\) 'ofline'\. Did you mean 'offline'"):
        check_logger(cfg)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("verb", ["evaluate", "run", "train", "table"])
def test_verbs_ask_before_they_work(verb: str, cfg: Config) -> None:
    import importlib

    cfg.logger.mode = "online"
    with pytest.raises(UserError, match="does not let this machine in"):
        getattr(importlib.import_module(f"nd.{verb}"), verb)(cfg)


@pytest.mark.parametrize(
    ("logger", "package", "wanted"),
    [
        ("wandb", "wandb", "logger=wandb needs the wandb package: pip install wandb"),
        ("tensorboard", "tensorboard", r'needs the tensorboard package: pip install "nd\[tensorboard\]"'),
    ],
)
def test_without_the_package_the_message_says_what_to_do(
    logger: str, package: str, wanted: str, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.logger.name = logger
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("nd.tables.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=wanted):
        check_logger(cfg)


# ---- one run


def only(runs: Path) -> Logged:
    found = offline_runs(runs)
    assert len(found) == 1
    return found[0]


def test_an_evaluation_is_one_run_with_scores_images_and_all_it_was_made_with(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = guided(cfg, 2.0)
    folder = finished(cfg, oracle=False, simulated=True)
    log_scores(cfg, folder)
    run = only(tmp_path / "runs")
    assert (run.id, run.group, run.name) == (folder.run_id, "", "guidance.kappa=2.0")
    assert (run.kind, run.exit_code) == ("evaluate", 0)
    assert {"scenes", "subj01", "evaluate", "neuraldiffuser", "scenes v1", "test", "simulated"} == set(run.tags)
    assert run.config["guidance"]["kappa"] == 2.0
    assert run.config["folder"] == folder.path.name
    assert not {"paths", "logger", "overrides"} & run.config.keys()
    assert run.summary["pixcorr"] == pytest.approx(SCORES["pixcorr"].mean())
    assert run.summary["pixcorr_lo"] < run.summary["pixcorr"] < run.summary["pixcorr_hi"]
    assert run.summary["simulated"] is True
    assert f"wandb sync {run.folder}" in capsys.readouterr().out


def test_the_table_of_scores_holds_every_image_beside_its_stimulus(cfg: Config, tmp_path: Path) -> None:
    folder = finished(cfg)
    cfg.logger.images = 3
    log_scores(cfg, folder)
    run = only(tmp_path / "runs")
    columns, rows = run.table("per_image")
    assert columns == ["image_id", "stimulus", "reconstructions", "pixcorr", "ssim"]
    assert [row[0] for row in rows] == list(range(N_IMAGES))
    assert [row[3] for row in rows] == pytest.approx(SCORES["pixcorr"].tolist())
    shown = [row[0] for row in rows if row[1] is not None]
    assert shown == [0, 4, 7] or shown == [0, 3, 7]  # the worst, the middle and the best of eight
    stimuli = Stimuli(stimuli_path(cfg)).images(np.arange(N_IMAGES))
    for image_id in shown:
        np.testing.assert_array_equal(rows[image_id][1], stimuli[image_id])
        made = rows[image_id][2]
        assert made.shape == (SIDE, 2 * SIDE + 2, 3)
        assert (made[:, :SIDE] == 0).all()
        assert (made[:, -SIDE:] == 1).all()
    grid = run.image("images")
    assert grid.shape == (3 * SIDE + 2 * 2, 3 * SIDE + 2 * 2, 3)  # the stimulus above two repeats, of three images
    np.testing.assert_array_equal(grid[:SIDE, :SIDE], stimuli[7])


def test_scores_without_images_are_shown_all_the_same(
    cfg: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake_scores(cfg, SCORES | {"ssim": np.array([np.nan, *SCORES["ssim"][1:]])})
    log_scores(cfg, RunFolder.open(cfg, "evaluate"))
    columns, rows = only(tmp_path / "runs").table("per_image")
    assert columns == ["image_id", "pixcorr", "ssim"]
    assert rows[0][2] is None
    assert "are shown without images" in caplog.text


def test_images_made_elsewhere_are_shown_as_they_were_given(cfg: Config, tmp_path: Path) -> None:
    fake_stimuli(cfg)
    cfg = replace(cfg, images_hash="abc")
    fake_scores(cfg, SCORES)
    given = np.random.default_rng(0).random((N_IMAGES, 1, 16, 16, 3))
    log_scores(cfg, RunFolder.open(cfg, "evaluate"), (given, np.arange(N_IMAGES, dtype=np.int32)))
    columns, rows = only(tmp_path / "runs").table("per_image")
    assert columns[:3] == ["image_id", "stimulus", "reconstructions"]
    np.testing.assert_array_equal(rows[5][2], (given[5, 0] * 255).round().astype(np.uint8))
    assert rows[5][1].shape == (16, 16, 3)  # brought to the larger of the two sizes


def test_the_configuration_is_plain(cfg: Config) -> None:
    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and is_plain(one) for key, one in value.items())
        if isinstance(value, list):
            return all(map(is_plain, value))
        return value is None or type(value) in (str, int, float, bool)

    assert is_plain(plain_config(cfg))
    assert {"debug", "oracle", "shuffled_voxels"}.isdisjoint(tags_of(cfg, "evaluate"))
    marked = replace(cfg, features="oracle", debug=replace(cfg.debug, name="fast"))
    assert {"debug", "oracle"} <= set(tags_of(marked, "evaluate"))
    assert "shuffled_voxels" in tags_of(replace(cfg, control="shuffled_voxels"), "evaluate")


def test_results_are_shown_once_unless_asked_again(cfg: Config, tmp_path: Path) -> None:
    folder = finished(cfg)
    log_scores(cfg, folder)
    log_scores(cfg, folder)
    assert len(offline_runs(tmp_path / "runs")) == 1
    assert len(read_json(folder.path / MARK)) == 1
    offline_runs(tmp_path / "runs", 2, lambda: log_scores(cfg, folder, again=True))
    cfg.logger.project = "other"
    log_scores(cfg, folder)
    found = offline_runs(tmp_path / "runs", 3, lambda: log_scores(cfg, folder))
    assert [run.id for run in found] == 3 * [folder.run_id]


def test_a_view_that_fails_is_a_warning_a_failed_run_and_tried_again(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = finished(cfg)

    def fail(_: RunFolder) -> dict[str, Any]:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("nd.tables.loggers.summary_of", fail)
        log_scores(cfg, folder)
    assert "could not show" in caplog.text
    assert "OSError: disk full" in caplog.text
    assert only(tmp_path / "runs").exit_code == 1
    found = offline_runs(tmp_path / "runs", 2, lambda: log_scores(cfg, folder))
    assert [run.exit_code for run in found] == [1, 0]


def test_an_interruption_finishes_the_run_and_goes_on_upwards(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: RunFolder) -> dict[str, Any]:
        raise KeyboardInterrupt

    folder = finished(cfg)
    monkeypatch.setattr("nd.tables.loggers.summary_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log_scores(cfg, folder)
    assert only(tmp_path / "runs").exit_code == 130


# ---- tables and sweeps


def sweep_of(cfg: Config) -> tuple[Any, list[Path]]:
    points = []
    for kappa in (1.0, 2.0):
        for eta in (0.2, 0.4):
            own = guided(cfg, kappa, eta)
            fake_scores(own, {"pixcorr": np.full(N_IMAGES, kappa + eta)})
            points.append(({"guidance.kappa": str(kappa), "guidance.eta": str(eta)}, Entry(Row(label="a"), "s", own)))
    swept = sweep_table(points)
    return swept, write_sweep(swept, Path(cfg.paths.results))


def test_a_sweep_is_a_run_with_its_map_its_points_and_its_files(cfg: Config, tmp_path: Path) -> None:
    swept, files = sweep_of(cfg)
    log_sweep(cfg, swept, files)
    run = only(tmp_path / "runs")
    assert (run.id, run.group, run.kind) == (swept.name, swept.name, "sweep")
    assert run.name == "sweep of guidance.kappa and guidance.eta"
    columns, rows = run.table("sweep")
    assert columns == ["guidance.kappa", "guidance.eta", "row", "run", "pixcorr"]
    assert {(row[0], row[1]): row[4] for row in rows}["2.0", "0.4"] == pytest.approx(2.4)
    heat_map = next(path for path in files if path.suffix == ".png")
    logged = next((run.folder / "files" / "media").rglob("map_*.png"))
    assert logged.read_bytes() == heat_map.read_bytes()
    assert run.types[swept.name] == "sweep"
    assert {name: path.read_bytes() for name, path in run.artifacts[swept.name].items()} == {
        path.name: path.read_bytes() for path in files
    }


def test_rows_of_a_sweep_keep_each_value_under_its_key(cfg: Config, tmp_path: Path) -> None:
    """Rows whose grids have other keys, or the same in another order."""
    points = [{"guidance.kappa": "1", "guidance.eta": "0.2"}, {"guidance.eta": "0.4", "guidance.kappa": "2"}]
    points += [{"guidance.eta": "0.6"}]
    made = [guided(cfg, 1.0, 0.2), guided(cfg, 2.0, 0.4), guided(cfg, 3.0, 0.6)]
    for one in made:
        fake_scores(one, {"pixcorr": np.full(N_IMAGES, one.guidance.eta)})
    swept = sweep_table([(v, Entry(Row(label="a"), "s", one)) for v, one in zip(points, made, strict=True)])
    log_sweep(cfg, swept, write_sweep(swept, Path(cfg.paths.results)))
    columns, rows = only(tmp_path / "runs").table("sweep")
    assert columns[:2] == ["guidance.kappa", "guidance.eta"]
    assert [row[:2] for row in rows] == [["1", "0.2"], ["2", "0.4"], [None, "0.6"]]


def test_a_table_is_a_run_with_its_rows_and_files(cfg: Config, tmp_path: Path) -> None:
    spec = TableSpec(
        name="mine", folder=tmp_path, title="Mine", experiment="scenes", subjects=["subj01"],
        columns=[Column(metric="pixcorr")], rows=[Row(label="weak"), Row(label="strong")],
    )  # fmt: skip
    cfgs = [guided(cfg, 1.0), guided(cfg, 2.0)]
    for one, value in zip(cfgs, (0.25, 0.5), strict=True):
        fake_scores(one, {"pixcorr": np.full(N_IMAGES, value)})
    table = collect(spec, [Entry(row, "subj01", one) for row, one in zip(spec.rows, cfgs, strict=True)], "nd run")
    files = [tmp_path / "mine.md", tmp_path / "mine.csv"]
    for path in files:
        path.write_text(path.name, encoding="utf-8")
    log_table(cfg, table, files)
    run = only(tmp_path / "runs")
    assert (run.group, run.kind, run.exit_code) == ("mine", "table", 0)
    columns, rows = run.table("table")
    assert columns == ["row", "subject", "role", "run", "pixcorr", "pixcorr_lo", "pixcorr_hi"]
    assert [(row[0], row[4]) for row in rows] == [("weak", 0.25), ("strong", 0.5)]
    assert set(run.artifacts[run.id]) == {"mine.md", "mine.csv"}
    both = offline_runs(tmp_path / "runs", 2, lambda: log_table(cfg, table, files))
    assert [one.id for one in both] == 2 * [run.id]


# ---- sent later, and at once


def test_wandb_sync_sends_what_was_logged_offline(cfg: Config, tmp_path: Path) -> None:
    """By W&B's own reader of its files: runs, groups, names, scores, images, tables and their files."""
    cfg.logger.group = "mine"
    folder = finished(cfg)
    log_scores(cfg, folder)
    swept, files = sweep_of(cfg)
    log_sweep(cfg, swept, files)
    with server() as taken:
        done = wandb_sync(tmp_path / "runs" / "wandb", taken)
    assert done.returncode == 0, done.stderr
    assert set(taken.runs) == {folder.run_id, swept.name}
    sent = taken.runs[folder.run_id]
    assert (sent["groupName"], sent["jobType"], sent["project"]) == ("mine", "evaluate", "nd")
    assert sent["displayName"] == changed_keys("evaluate", cfg)
    assert json.loads(sent["config"])["subject"]["value"]["name"] == "subj01"
    assert {line.get("images", {}).get("_type") for line in taken.lines[folder.run_id]} == {"image-file"}
    assert {f"run-{folder.run_id}-per_image", f"run-{swept.name}-sweep", swept.name} == taken.artifacts
    kinds = sorted({name.split("/")[2].split("_")[0] for name in taken.files if name.startswith("media/")})
    assert kinds == ["images", "map", "per", "sweep"]
    synced = offline_runs(tmp_path / "runs")
    assert all(next(run.folder.glob("*.wandb.synced")).exists() for run in synced)


ONLINE = """
from pathlib import Path
from helpers_results import config
from nd.runs.folder import RunFolder
from nd.tables.loggers import log_scores
cfg = config(Path("."))
cfg.logger.name, cfg.logger.mode = "wandb", "online"
log_scores(cfg, RunFolder.open(cfg, "evaluate"))
"""


def test_online_it_is_sent_at_once_and_the_makers_of_wandb_are_told_nothing_else(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: W&B asks once where its servers are."""
    folder = finished(cfg)
    with server() as taken:
        monkeypatch.setenv("WANDB_BASE_URL", taken.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        done = apart(
            f"import sys; sys.path.append({str(Path(__file__).parent)!r}){ONLINE}", cwd=tmp_path, program=("-c",)
        )
    assert f"W&B: {taken.url}/me/nd/runs/{folder.run_id}" in done.stdout, done.stderr
    assert taken.runs[folder.run_id]["jobType"] == "evaluate"
    assert taken.lines[folder.run_id][0]["per_image"]["nrows"] == N_IMAGES
    assert [path for path in taken.requests if "otel" in path or "sentry" in path] == []


# ---- csv and TensorBoard


def test_csv_holds_each_line_once(cfg: Config) -> None:
    cfg.logger.name = "csv"
    folder = finished(cfg)
    log_scores(cfg, folder)
    log_scores(cfg, folder)
    changed = read_json(folder.path / "scores.json")
    changed["metrics"]["ssim"]["mean"] = 0.75  # the run was removed and made again
    write_json(folder.path / "scores.json", changed)
    left_so(folder.path)
    log_scores(cfg, folder)
    with open(Path(cfg.paths.results) / "scores-log.csv", newline="", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert [(line["metric"], float(line["value"])) for line in lines] == [
        ("pixcorr", pytest.approx(0.45)), ("ssim", 0.25), ("ssim", 0.75),
    ]  # fmt: skip


def test_tensorboard_shows_scores_and_images_of_the_last_time_alone(
    cfg: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg.logger.name = "tensorboard"
    folder = finished(cfg)
    with caplog.at_level(logging.WARNING):
        log_scores(cfg, folder)
        log_scores(cfg, folder)
    assert "could not show" not in caplog.text
    place = tmp_path / "runs" / "tensorboard" / "evaluate" / folder.path.name
    found = EventAccumulator(str(place)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("scores/pixcorr")] == [(0, pytest.approx(0.45))]
    assert len(list(place.glob("events.out.tfevents.*"))) == 1
    image = found.Images("images")[0]
    assert (image.width, image.height) == (N_IMAGES * (SIDE + 2) - 2, 3 * SIDE + 2 * 2)


def test_files_of_a_run_lie_beside_it(cfg: Config, tmp_path: Path) -> None:
    log_scores(cfg, finished(cfg))
    run = only(tmp_path / "runs")
    files = [path for one in run.artifacts.values() for path in one.values()]
    assert files
    assert all(path.is_relative_to(tmp_path / "runs" / "wandb") for path in files)
    assert read_run(run.folder).id == run.id
