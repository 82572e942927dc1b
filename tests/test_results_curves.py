"""Learning curves: read from the folders that training writes, shared by the rows that read the same networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_results import config, fake_scores
from helpers_training import SMALL, write_world

import nd.train
from nd.config import BackboneConfig, Config
from nd.config.application import compose
from nd.errors import UserError
from nd.mappers.checkpoint import target_path
from nd.mappers.training.fit import Files
from nd.runs.chain import pretrain_of
from nd.runs.folder import RunFolder
from nd.tables.curve_charts import learning_charts
from nd.tables.learning_curves import Curve, Learning, Stage, curve_of, learning_of, stages_of, terms
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import Table, collect

LOSSES = {"c/tokens": 0.5, "c/contrast": 0.25, "g_0/tokens": 1.0, "g_1/tokens": 2.0, "z/latent": 8.0}


def write_curve(folder: Path, fold: int = 0, n_epochs: int = 4, kept: int = 1, names: tuple[str, ...] = ()) -> Path:
    """What training leaves of one fold: losses fall by a tenth in each epoch, every second epoch is validated.

    kept: the epoch, from 0, that the checkpoint says; names: targets with a checkpoint of their own.
    """
    path = Files(folder, fold).curve
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "epoch": epoch, "step": 3 * epoch, "loss": 0.0, "lr": 1e-3, "samples_per_s": 9.0,
            "losses": {name: value * 0.9**epoch for name, value in LOSSES.items()},
            "val": {t: {"correlation": 0.1 * epoch, "retrieval": 0.2 * epoch} for t in "czg"} if epoch % 2 else {},
        }
        for epoch in range(n_epochs)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for place in [target_path(folder, fold, name, 1 + len(names)) for name in names or ("z",)]:
        place.parent.mkdir(exist_ok=True)
        place.with_suffix(".json").write_text(json.dumps({"details": {"epoch": kept}}), encoding="utf-8")
    return path


def trained(root: Path, *targets: str, share: str = "target") -> Config:
    """A configuration of the trained mapper."""
    cfg = config(root)
    cfg.mapper.name, cfg.network.share = "two_stage", share
    cfg.method.targets = list(targets or ("z",))
    return cfg


def folder_of(cfg: Config) -> Path:
    return RunFolder.open(cfg, "train").path


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_targets_losses_are_those_of_its_parts() -> None:
    assert terms(LOSSES, "c") == {"total": 0.75, "tokens": 0.5, "contrast": 0.25}
    assert terms(LOSSES, "g") == {"total": 3.0}  # one term: the sum over both layers is all there is
    assert terms({"z40/latent": 1.0, "z/latent": 2.0, "clip_image/tokens": 3.0}, "z") == {"total": 2.0}
    assert terms({"z40/latent": 1.0}, "clip_text") == {}


def test_a_curve_counts_the_epochs_that_were_trained(tmp_path: Path) -> None:
    curve = curve_of(write_curve(tmp_path, kept=1), "c")
    assert list(curve.losses) == ["total", "tokens", "contrast"]
    assert [n for n, _ in curve.losses["tokens"]] == [1, 2, 3, 4]
    np.testing.assert_allclose([v for _, v in curve.losses["total"]], 0.75 * 0.9 ** np.arange(4))
    assert curve.scores["correlation"] == [(2, pytest.approx(0.1)), (4, pytest.approx(0.3))]  # epochs 1 and 3
    assert curve.kept == 2


def test_the_weights_kept_are_those_of_the_target(tmp_path: Path) -> None:
    path = write_curve(tmp_path, kept=3, names=("z", "c"))
    assert curve_of(path, "c").kept == 4
    assert curve_of(path, "g").kept is None  # has no checkpoint
    target_path(tmp_path, 0, "c", 2).with_suffix(".json").write_text('{"details": {}}', encoding="utf-8")
    assert curve_of(path, "c").kept is None


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"epoch": 4, "losses": {}}', "val: is missing"),
        ('{"epoch": 4, "losses": {"z/latent": "low"}, "val": {}}', "losses.z/latent: input should be a valid number"),
        ('{"epoch": 4, "lo', "Unterminated string"),
        ("[]", "should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path: Path, line: str, fault: str) -> None:
    path = write_curve(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"fold-00-curve\.jsonl, line 5 .*{fault}"):
        curve_of(path, "z")


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_stages_lie_where_training_writes_them(tmp_path: Path) -> None:
    assert nd.train.pretrain_of is pretrain_of  # what runs stage 1 and what finds it are one function
    cfg = trained(tmp_path)
    write_curve(folder_of(pretrain_of(cfg)), n_epochs=2)
    for fold in (0, 1):
        write_curve(folder_of(cfg), fold, n_epochs=4 + fold)
    first, second = stages_of(cfg)
    assert (first.title, second.title) == ("1. pretraining on others", "2. fine-tuning on subj01")
    assert [len(curve.losses["total"]) for curve in first.curves + second.curves] == [2, 4, 5]


def test_a_network_trained_from_chance_has_one_stage(tmp_path: Path) -> None:
    cfg = trained(tmp_path)
    cfg.training.pretrain = False
    write_curve(folder_of(cfg))
    assert [stage.title for stage in stages_of(cfg)] == ["training on subj01"]


def test_a_pretrained_network_from_elsewhere_shows_its_own_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = trained(tmp_path)
    cfg.training.pretrained = str(tmp_path / "given")
    write_curve(folder_of(cfg))
    assert [len(stages_of(cfg)), len(caplog.messages)] == [1, 1]
    assert "given holds no learning curve; the report is without it" in caplog.text
    write_curve(tmp_path / "given", n_epochs=7)
    assert len(stages_of(cfg)[0].curves[0].losses["total"]) == 7


def table_of(tmp_path: Path, configs: dict[str, Config], subjects: tuple[str, ...] = ("subj01",)) -> Table:
    """A table of finished rows with one score."""
    spec = TableSpec(
        name="tiny", folder=tmp_path, title="T", experiment="scenes", subjects=list(subjects),
        columns=[Column(metric="pixcorr")], rows=[Row(label=name) for name in configs],
    )  # fmt: skip
    entries = []
    for row in spec.rows:
        for subject in subjects:
            cfg = replace(configs[row.label], subject=replace(configs[row.label].subject, name=subject))
            if not RunFolder.open(cfg, "evaluate").done:
                fake_scores(cfg, {"pixcorr": np.arange(4.0)}, oracle=False)  # of any role: this is not about roles
            entries.append(Entry(row, subject, cfg))
    return collect(spec, entries, "nd run")


def test_rows_that_read_the_same_networks_share_curves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoded, unguided = trained(tmp_path, "z", "c"), trained(tmp_path, "z", "c")
    unguided.guidance.kappa = 0.0
    oracle, ridge, floor = (trained(tmp_path, "z", "c") for _ in range(3))
    oracle.features, ridge.mapper.name, floor.method.generator = "oracle", "ridge", "mean_image"
    for target in ("z", "c"):
        cfg = decoded.with_target(target)
        write_curve(folder_of(cfg), n_epochs=5)
        write_curve(folder_of(pretrain_of(cfg)), n_epochs=3)
    rows = {"decoded": decoded, "unguided": unguided, "true": oracle, "ridge": ridge, "mean": floor}
    found = learning_of(table_of(tmp_path, rows))
    assert [(learning.rows, learning.target) for learning in found] == [
        (("decoded", "unguided"), "z"), (("decoded", "unguided"), "c"),
    ]  # fmt: skip
    assert [len(stage.curves[0].losses["total"]) for stage in found[1].stages] == [3, 5]
    assert list(found[1].stages[1].curves[0].losses) == ["total", "tokens", "contrast"]
    assert not caplog.messages
    assert not learning_of(table_of(tmp_path, {"ridge": ridge, "mean": floor}))


def test_a_network_of_all_targets_is_shown_target_by_target(tmp_path: Path) -> None:
    cfg = trained(tmp_path, "z", "c", "g", share="all")
    folders = {folder_of(cfg.with_target(target)) for target in "zcg"}
    assert len(folders) == 1
    write_curve(folders.pop(), names=("z", "c", "g"))
    found = learning_of(table_of(tmp_path, {"a": cfg}))
    totals = {learning.target: learning.stages[0].curves[0].losses["total"][0][1] for learning in found}
    assert totals == {"z": 8.0, "c": 0.75, "g": 3.0}


def test_of_several_subjects_each_has_curves_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = trained(tmp_path)
    cfg.training.pretrain = False
    write_curve(folder_of(cfg))
    found = learning_of(table_of(tmp_path, {"a": cfg}, ("subj01", "subj02")))
    assert [learning.rows for learning in found] == [("a (subj01)",)]  # the other's are gone
    assert "holds no learning curve" in caplog.text


# ---- drawing ---------------------------------------------------------------------------------------------------------


def learning(n_folds: int = 1, retrieval: bool = True, kept: int | None = 4) -> Learning:
    scores = {"correlation": [(2, 0.1), (4, 0.3)], "unexplained": [(2, 0.9), (4, 0.8)]}
    scores |= {"retrieval": [(2, 0.2), (4, 0.5)]} if retrieval else {}
    losses = {"total": [(1, 3.0), (2, 2.0)], "tokens": [(1, 2.0), (2, 1.5)], "contrast": [(1, 1.0), (2, 0.5)]}
    higher = {name: [(n, 10 * value) for n, value in series] for name, series in losses.items()}
    stages = {"one": Curve(higher, scores, kept), "two": Curve(losses, scores, kept)}
    return Learning(("row",), "c", [Stage(title, [curve] * n_folds) for title, curve in stages.items()])


def test_charts_show_what_the_curves_hold() -> None:
    (charts,) = learning_charts([learning()]).values()
    assert [chart.title for chart in charts] == [
        "c, one: training loss", "c, one: validation images", "c, two: training loss", "c, two: validation images",
    ]  # fmt: skip
    loss, scores = charts[2:]
    assert {line.name: [y for _, y in line.points] for line in loss.lines} == {
        "total": [3.0, 2.0], "tokens": [2.0, 1.5], "contrast": [1.0, 0.5],
    }  # fmt: skip
    assert [(line.name, list(line.points), line.ring) for line in scores.lines] == [
        ("correlation", [(2, 0.1), (4, 0.3)], 4), ("retrieval", [(2, 0.2), (4, 0.5)], 4),
    ]  # fmt: skip
    assert charts[0].y_over == loss.y_over  # stages on one scale
    assert max(loss.y_over) == 30.0


def test_every_fold_is_a_line_in_the_colour_of_its_name() -> None:
    (charts,) = learning_charts([learning(n_folds=3), learning()]).values()
    assert [len(chart.lines) for chart in charts] == [9, 6, 9, 6, 3, 2, 3, 2]
    assert charts[0].names == {"total": 0, "tokens": 1, "contrast": 2}
    assert str(charts[0].svg).count('<polyline class="c1"') == 3


def test_what_is_not_known_is_not_drawn() -> None:
    (charts,) = learning_charts([learning(retrieval=False, kept=None)]).values()
    assert [line.name for line in charts[1].lines] == ["correlation"]
    assert 'class="ring"' not in str(charts[1].svg)
    bare = Learning(("row",), "z", [Stage("only", [Curve({"total": [(1, 1.0)]}, {})])])
    assert [chart.title for chart in learning_charts([bare])["row"]] == ["z, only: training loss"]


# ---- as training writes them ---------------------------------------------------------------------------------------


def test_curves_are_read_as_training_writes_them(tmp_path: Path, tiny_backbone_config: BackboneConfig) -> None:
    given = write_world(tmp_path, tiny_backbone_config)
    cfg = compose([*given, *SMALL, "target=c", "training.epochs=5", "training.pretrain_epochs=3"])
    nd.train.train(cfg)
    first, second = (stage.curves[0] for stage in stages_of(cfg))
    assert [n for n, _ in first.losses["total"]] == [1, 2, 3]
    assert [n for n, _ in second.losses["total"]] == [1, 2, 3, 4, 5]
    assert list(second.losses) == ["total", "tokens", "contrast"]
    assert {"correlation", "retrieval"} <= set(second.scores)
    for curve in (first, second):
        assert curve.kept in [n for n, _ in curve.scores["correlation"]]  # weights are kept of an epoch that was scored
