"""Names of runs within their group: what varies, not what all share; known before the first of them begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nd.config import Config
from nd.config.application import compose
from nd.files import read_json
from nd.run import entries_of, name_group
from nd.runs.groups import NAME_LENGTH, announce, changed_keys, group_of, joined, members_of, name_of, names_apart
from nd.runs.identity import run_id, run_name
from nd.tables.loggers import announce_table

GRID = ["experiment=scenes", "table="]


def points(root: Path, *keys: Sequence[str]) -> list[Config]:
    return [compose([*GRID, f"paths.root={root}", *words]) for words in keys]


def named(cfgs: Sequence[Config], verb: str = "evaluate") -> list[str]:
    names = names_apart(members_of(cfgs))
    return [names[run_id(verb, cfg)] for cfg in cfgs]


def test_points_of_a_sweep_are_named_by_their_values(tmp_path: Path) -> None:
    grid = [[f"guidance.kappa={kappa}", f"guidance.eta={eta}"] for kappa in (1, 300000) for eta in (0.2, 1)]
    assert named(points(tmp_path, *grid)) == [
        "guidance.kappa=1 guidance.eta=0.2", "guidance.kappa=1 guidance.eta=1",
        "guidance.kappa=300000 guidance.eta=0.2", "guidance.kappa=300000 guidance.eta=1",
    ]  # fmt: skip


def test_guidance_that_is_off_is_called_so(tmp_path: Path) -> None:
    off, on = points(tmp_path, ["guidance.kappa=0"], ["guidance.kappa=2"])
    assert named([off, on]) == ["guidance=off", "guidance.kappa=2"]


def test_what_only_a_target_has_is_said_with_its_name(tmp_path: Path) -> None:
    assert named(points(tmp_path, [], ["method.targets.z.mapper.keep=0.5"])) == ["mapper.keep=1", "z.mapper.keep=0.5"]
    assert named(points(tmp_path, ["mapper.keep=0.5"], ["mapper.keep=0.25"])) == ["mapper.keep=0.5", "mapper.keep=0.25"]


def test_methods_are_named_alone_and_marks_where_they_differ(tmp_path: Path) -> None:
    cfgs = points(tmp_path, ["method=vae"], ["method=mean_image"], ["method=vae", "features=oracle"])
    assert named(cfgs) == ["method=vae", "method=mean_image", "method=vae features=oracle"]


def test_every_run_of_a_shipped_table_has_a_name_of_its_own() -> None:
    rows = [entry.cfg for entry in entries_of(compose(["experiment=scenes"]))]
    members = members_of(rows)
    for verb in ("train", "evaluate"):
        own = {run_id(kind, cfg): cfg for kind, cfg in members if kind == verb}
        names = names_apart([(verb, cfg) for cfg in own.values()])
        assert len(set(names.values())) == len(own) > 1
        assert all(len(name) <= NAME_LENGTH for name in names.values())


def test_both_stages_of_a_training_are_members_with_names(tmp_path: Path) -> None:
    cfgs = points(
        tmp_path, ["method=neuraldiffuser", "training.lr=1e-2"], ["method=neuraldiffuser", "training.lr=2e-2"]
    )
    names = [name for (verb, _), name in zip(members_of(cfgs), names_apart(members_of(cfgs)).values(), strict=True)]
    assert "target=z training.stage=pretrain training.lr=0.01" in names
    assert "target=g training.stage=finetune training.lr=0.02" in names
    assert len(names) == 2 * (2 * 3 + 1)


def test_a_run_that_nothing_sets_apart_has_the_name_of_its_folder(tmp_path: Path) -> None:
    (cfg,) = points(tmp_path, ["method=mean_image"])
    assert named([cfg]) == [run_name("evaluate", cfg)]
    assert changed_keys("evaluate", Config()) == run_name("evaluate", Config())


def test_a_run_without_a_group_is_named_by_what_was_typed(tmp_path: Path) -> None:
    words = ["method=neuraldiffuser", "guidance.kappa=2", "trainer.devices=1", "subject=subj02"]
    (cfg,) = points(tmp_path, words)
    assert changed_keys("evaluate", cfg) == "experiment=scenes method=neuraldiffuser guidance.kappa=2 subject=subj02"
    trained = {changed_keys(verb, one) for verb, one in members_of([cfg]) if verb == "train"}
    assert "experiment=scenes subject=subj02 target=z" in trained


def test_names_are_cut_between_words() -> None:
    assert joined(["a=1", "a=1", "b=2"]) == "a=1 b=2"
    long = joined([f"key{i}={i}" for i in range(100)])
    assert len(long) <= NAME_LENGTH
    assert long.endswith(" ...")


def test_names_wait_for_every_process_of_the_group(tmp_path: Path) -> None:
    cfg, other = points(tmp_path, ["guidance.kappa=1"], ["guidance.kappa=2"])
    cfg.logger.group = other.logger.group = "mine"
    assert name_of("evaluate", cfg) == changed_keys("evaluate", cfg)
    announce(Path(cfg.paths.runs), "mine", {run_id("evaluate", cfg): "first"})
    announce(Path(cfg.paths.runs), "mine", {run_id("evaluate", other): "second"})
    assert [name_of("evaluate", one) for one in (cfg, other)] == ["first", "second"]
    both = {run_id("evaluate", one): "new" for one in (cfg, other)}
    announce(Path(cfg.paths.runs), "mine", both, keep=True)
    assert name_of("evaluate", cfg) == "first"
    announce(Path(cfg.paths.runs), "mine", both)
    assert name_of("evaluate", cfg) == "new"


def test_the_group_is_the_one_given_else_the_table(tmp_path: Path) -> None:
    cfg = compose(["experiment=scenes"])
    assert group_of(cfg) == "demo"
    cfg.table = str(tmp_path / "own.yaml")
    assert group_of(cfg) == "own"
    cfg.logger.group = "mine"
    assert group_of(cfg) == "mine"


@pytest.mark.parametrize("logger", ["none", "wandb"])
def test_a_table_with_several_subjects_names_them_whichever_are_run(logger: str, tmp_path: Path) -> None:
    spec = tmp_path / "own.yaml"
    spec.write_text(
        "# two subjects\ntitle: t\nexperiment: scenes\nsubjects: [subj01, subj02]\ncolumns: [{metric: pixcorr}]\n"
        "rows: [{label: mean, overrides: [method=mean_image]}, {label: vae, overrides: [method=vae]}]\n",
        encoding="utf-8",
    )
    cfg = compose(
        ["experiment=scenes", f"table={spec}", "subject=subj02", f"paths.root={tmp_path}", f"logger={logger}"]
    )
    rows = [entry.cfg for entry in entries_of(cfg)]
    announce_table(cfg, rows)
    path = tmp_path / "runs" / "groups" / "own.json"
    assert path.exists() == (logger == "wandb")
    if path.exists():
        names = read_json(path)
        assert [names[run_id("evaluate", row)] for row in rows] == [
            "subject=subj02 method=mean_image", "subject=subj02 method=vae",
        ]  # fmt: skip


def test_a_sweep_is_a_group_of_the_name_of_its_table(tmp_path: Path) -> None:
    from nd.config.sweeps import Point
    from nd.tables.specs import Entry, Row
    from nd.tables.sweep import sweep_table

    cfgs = points(tmp_path, *([f"guidance.kappa={kappa}", "logger=wandb"] for kappa in (1, 2)))
    made = [Point({"guidance.kappa": str(kappa)}, cfg) for kappa, cfg in zip((1, 2), cfgs, strict=True)]
    rows = [(point.values, Entry(Row(label=point.cfg.method.name), "subj01", point.cfg)) for point in made]
    assert name_group(made) == sweep_table(rows).name
    cfgs[1].logger.group = name_group(made)
    assert name_of("evaluate", cfgs[1]) == "guidance.kappa=2"
