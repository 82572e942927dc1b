"""`nd run`: every step once, only what is missing, and a row that fails does not take the others with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from helpers_config import method_settings
from helpers_files import left_so
from helpers_results import config, fake_scores

import nd.run
import nd.table
from nd.config import Config
from nd.config.application import compose, derive
from nd.errors import UserError
from nd.run import action_of, entries_of
from nd.runs.chain import Chain, Step, StepFailed, check_finished, steps_of
from nd.runs.folder import RunFolder, found
from nd.runs.identity import run_id


class Recorder:
    """Stands in for the verbs: notes what is asked of it and writes the run folders, with inputs as the verbs do."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.lines: list[str] = []

    def chain(self) -> Chain:
        names = ("prepare", "extract", "train", "predict", "reconstruct", "evaluate")
        return Chain({name: self.verb(name) for name in names}, self.lines.append)

    def verb(self, name: str) -> Callable[[Config], None]:
        def act(cfg: Config) -> None:
            step = Step(name, cfg)
            self.done.append(f"{name} {step.name.rsplit('-', 1)[0]}")
            if name in self.errors:
                raise self.errors[name]
            if step.folder is not None:
                with step.folder.writing(cfg, self.inputs(name, cfg)):
                    pass

        return act

    def inputs(self, name: str, cfg: Config) -> dict[str, str]:
        if name == "predict":
            return {f"train {t}": found(cfg.with_target(t), "train").fingerprint for t in cfg.method.targets}
        source = {"reconstruct": ("predictions", "predict"), "evaluate": ("images", "reconstruct")}.get(name)
        folder = RunFolder.open(cfg, source[1]) if source else None
        return {source[0]: folder.fingerprint} if source and folder and folder.done else {}


def row(root: Path, generator: str = "guided_diffusion") -> Config:
    cfg = config(root)
    cfg.method = method_settings(generator, targets=["z", "c"])
    return cfg


@pytest.fixture
def verbs() -> Recorder:
    return Recorder()


def test_a_row_is_the_whole_chain_in_order(verbs: Recorder, tmp_path: Path) -> None:
    verbs.chain().run_row(steps_of(row(tmp_path)))
    assert verbs.done == [
        "prepare scenes", "extract scenes z, c", "train scenes-subj01-z-ridge",
        "train scenes-subj01-c-ridge", "predict scenes-subj01-c_z-ridge",
        "reconstruct scenes-subj01-neuraldiffuser-guided", "evaluate scenes-subj01-neuraldiffuser-guided",
    ]  # fmt: skip
    assert len(verbs.lines) == len(verbs.done)
    assert re.search(r"predict +scenes-subj01-c_z-ridge-\w{12} +\d+\.\d s", verbs.lines[4])


def test_floors_and_oracles_decode_nothing(tmp_path: Path) -> None:
    def verbs_of(cfg: Config) -> list[str]:
        return [step.verb for step in steps_of(cfg)]

    assert verbs_of(row(tmp_path, generator="mean_image")) == ["prepare", "reconstruct", "evaluate"]
    oracle = row(tmp_path)
    oracle.features = "oracle"
    assert verbs_of(oracle) == ["prepare", "extract", "reconstruct", "evaluate"]


def test_rows_share_their_steps(verbs: Recorder, tmp_path: Path) -> None:
    chain, unguided = verbs.chain(), row(tmp_path)
    unguided.guidance.kappa = 0.0
    chain.run_row(steps_of(row(tmp_path)))
    before = len(verbs.done)
    chain.run_row(steps_of(unguided))
    assert [line.split()[0] for line in verbs.done[before:]] == ["reconstruct", "evaluate"]


def test_again_nothing_is_done(verbs: Recorder, tmp_path: Path) -> None:
    verbs.chain().run_row(steps_of(row(tmp_path)))
    before = len(verbs.done)
    verbs.lines.clear()
    verbs.chain().run_row(steps_of(row(tmp_path)))
    assert len(verbs.done) == before
    assert [line.split()[-2:] for line in verbs.lines] == [["done", "already"]]


def test_only_what_is_missing_is_done(verbs: Recorder, tmp_path: Path) -> None:
    verbs.chain().run_row(steps_of(row(tmp_path)))
    verbs.done.clear()
    sharper = row(tmp_path)
    sharper.guidance.kappa = 5.0
    verbs.chain().run_row(steps_of(sharper))
    assert [line.split()[0] for line in verbs.done] == ["prepare", "extract", "reconstruct", "evaluate"]


def test_a_failing_step_fails_every_row_that_needs_it_once(verbs: Recorder, tmp_path: Path) -> None:
    chain, unguided = verbs.chain(), row(tmp_path)
    unguided.guidance.kappa = 0.0
    verbs.errors["predict"] = RuntimeError("no memory")
    for cfg in (row(tmp_path), unguided):
        with pytest.raises(StepFailed, match=r"predict scenes-subj01-c_z-ridge-\w+: RuntimeError: no memory"):
            chain.run_row(steps_of(cfg))
    assert sum(line.startswith("predict") for line in verbs.done) == 1
    chain.run_row(steps_of(row(tmp_path, generator="mean_image")))
    assert verbs.done[-1].startswith("evaluate scenes-subj01-neuraldiffuser")


def test_a_mistake_in_what_all_rows_share_stops_at_once(verbs: Recorder, tmp_path: Path) -> None:
    verbs.errors["train"] = UserError("voxels hold NaN")
    with pytest.raises(UserError, match="voxels hold NaN"):
        verbs.chain().run_row(steps_of(row(tmp_path)))


def test_a_changed_run_is_named_with_all_that_came_of_it(
    verbs: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nd.runs.chain.open_subject", lambda cfg: None)  # the file's bytes stand for what it holds
    voxels = tmp_path / "data" / "scenes" / "subj01.h5"
    voxels.parent.mkdir(parents=True)
    voxels.write_bytes(b"1")
    steps = steps_of(row(tmp_path))
    verbs.chain().run_row(steps)
    voxels.write_bytes(b"2")
    with pytest.raises(UserError) as caught:
        verbs.chain().run_row(steps)
    assert "subj01.h5 has other contents" in str(caught.value)
    later = str(caught.value).split("must go too: ")[1].split()
    assert [Path(path).parent.name for path in later] == ["predict", "reconstruct", "evaluate"]


def test_runs_made_from_an_earlier_version_of_a_run_are_found(verbs: Recorder, tmp_path: Path) -> None:
    steps = steps_of(row(tmp_path))
    verbs.chain().run_row(steps)
    train = next(step for step in steps if step.verb == "train").folder
    assert train is not None
    for path in train.path.iterdir():
        path.unlink()
    with train.writing(steps[0].cfg, {"target z": "newer"}):
        pass
    with pytest.raises(UserError, match=r"train z was \w+, is \w+"):
        check_finished(steps)


def test_steps_find_the_runs_that_the_verbs_look_for() -> None:
    cfg = compose(["target.layers=[0,1,2]", "guidance.layer_weights=[1,1,1]", "experiment=scenes"])
    for name in ("z", "c", "g", "pixels"):
        assert run_id("train", cfg.with_target(name)) == run_id("train", derive(cfg, f"target={name}"))
    assert cfg.with_target("g").overrides[-1] == "target=g"


def test_without_a_table_the_composed_configuration_is_the_only_row() -> None:
    (entry,) = entries_of(compose(["experiment=scenes", "table=", "method=vae"]))
    assert (entry.label, entry.cfg.method.generator) == ("vae (subj01)", "vae")


def test_a_run_with_nothing_to_do_and_plans_load_no_heavy_library(tmp_path: Path) -> None:
    words = ["experiment=scenes", "table=", "method=mean_image", f"paths.root={tmp_path}"]
    cfg = compose(words)
    with RunFolder.open(cfg, "evaluate").writing(cfg):
        pass
    code = f"""
import sys
from nd.cli import main
try:
    main({["run", *words]})
except SystemExit as end:
    print(end.code, {{"scipy.special", "pandas", "sklearn", "pytorch_lightning", "transformers"}} & set(sys.modules))
import nd.table, nd.report, nd.sweep
print({{"torch", "matplotlib", "diffusers"}} & set(sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert got.stdout.splitlines()[-3:] == ["all of them were finished; nothing to do", "0 set()", "set()"]


def test_closing_lines_of_verbs_are_left_out_of_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("nd.evaluate")
    module.evaluate = lambda cfg: print("wrote")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nd.evaluate", module)
    action_of("evaluate", quiet=True)(Config())
    assert capsys.readouterr().out == ""
    action_of("evaluate", quiet=False)(Config())
    assert capsys.readouterr().out == "wrote\n"


def test_the_exit_code_tells_of_a_failed_row(
    verbs: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nd.run, "action_of", lambda name, quiet: verbs.verb(name))
    assert nd.run.run(row(tmp_path)) == 0
    verbs.errors["reconstruct"] = RuntimeError("no memory")
    failing = row(tmp_path)
    failing.seed = 5
    assert nd.run.run(failing) == 1
    verbs.errors["reconstruct"] = UserError("kappa is too large")
    with pytest.raises(UserError, match=r"^kappa is too large$"):
        nd.run.run(failing)
    shown = capsys.readouterr().out
    assert "1 of 1 rows done" in shown
    assert "0 of 1 rows done" in shown
    assert "neuraldiffuser (subj01) failed at reconstruct" in shown


def test_table_compares_with_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    (tmp_path / "own.yaml").write_text(
        "title: T\nexperiment: scenes\nsubjects: [subj01]\ncolumns: [{metric: pixcorr}]\n"
        "rows: [{label: a, role: floor}]\nexpected: {a: {pixcorr: 0.5}}\n",
        encoding="utf-8",
    )
    cfg = row(tmp_path, generator="mean_image")
    cfg.table, cfg.check = str(tmp_path / "own.yaml"), True
    monkeypatch.setattr(nd.table, "derive", lambda cfg, *extra: cfg)
    with pytest.raises(UserError, match=r"1 of 1 rows of table own have not been run.*\n  nd run table="):
        nd.table.table(cfg)
    folder = fake_scores(cfg, {"pixcorr": np.full(4, 0.505)})
    assert nd.table.table(cfg) == 0
    assert "all 1 scores are as expected, within 0.01" in capsys.readouterr().out
    scores = folder / "scores.json"
    scores.write_text(scores.read_text(encoding="utf-8").replace('"mean": 0.505', '"mean": 0.52'), encoding="utf-8")
    left_so(folder)
    assert nd.table.table(cfg) == 1
    assert "a, pixcorr: 0.5200, expected 0.5000 within 0.01" in capsys.readouterr().out
