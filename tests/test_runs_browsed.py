"""Runs listed, shown and cleaned: on folders made without any model, by the commands as they are typed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_commands import Done, apart, nd, succeed
from helpers_results import N_IMAGES, SIDE, config, fake_images, fake_scores, fake_stimuli
from PIL import Image

from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.files import partial_path, read_json, write_json
from nd.interface.finished_run import read_run
from nd.locks import locked
from nd.runs.catalogue import age, find_run, known_runs
from nd.runs.folder import RunFolder

SCORES = {"pixcorr": np.linspace(0.1, 0.3, N_IMAGES), "ssim": np.full(N_IMAGES, 0.4)}
OLD = time.time() - 3 * 86400


def guided(root: Path, kappa: float, **fields: object) -> Config:
    cfg = config(root)
    return replace(cfg, guidance=replace(cfg.guidance, kappa=kappa), overrides=[f"guidance.kappa={kappa}"], **fields)


def made(cfg: Config, verb: str, inputs: Mapping[str, str] | None = None, schema: int = 0) -> RunFolder:
    """A finished run, said to be of another schema version where one is given."""
    with pytest.MonkeyPatch.context() as patch:
        if schema:
            patch.setattr("nd.runs.identity.SCHEMA_VERSION", schema)
        folder = RunFolder.open(cfg, verb)
        with folder.writing(cfg, dict(inputs or {})):
            (folder.path / "output").write_bytes(b"x" * 1000)
    return folder


def failed(cfg: Config, verb: str) -> RunFolder:
    folder = RunFolder.open(cfg, verb)
    with pytest.raises(ZeroDivisionError), folder.writing(cfg):
        raise ZeroDivisionError("by nothing")
    return folder


def rows(done: Done) -> list[str]:
    """Lines of runs, which begin with their ids."""
    return [line for line in done.out.splitlines() if line[:12].isalnum() and len(line.split()[0]) == 12]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Two scored runs that differ in kappa and one of a floor, a killed training, and a failed prediction."""
    for shift, kappa in enumerate((0.5, 1.0)):
        fake_scores(guided(tmp_path, kappa), SCORES | {"pixcorr": SCORES["pixcorr"] + 0.5 * shift})
    other = replace(config(tmp_path), seed=1, overrides=["seed=1", "subject.name=subj01", "trainer.devices=2"])
    fake_scores(other, SCORES | {"pixcorr": SCORES["pixcorr"] - 0.5})
    killed = made(config(tmp_path), "train")
    (killed.path / "status").write_text("running\n", encoding="utf-8")
    failed(config(tmp_path), "predict")
    return tmp_path


def test_ls_shows_what_sets_runs_apart_their_state_and_their_scores(lab: Path) -> None:
    done = succeed("ls", cwd=lab)
    table = [line.split() for line in rows(done)]
    assert [line[0] for line in table] == [run.id for run in known_runs(lab / "runs")]
    states = {run.verb: run.state for run in known_runs(lab / "runs")}
    assert states == {"train": "partial", "predict": "failed", "evaluate": "done"}
    apart_by = {line[line.index("done") + 1]: set(line[2 : line.index("done")]) for line in table if "done" in line}
    default = f"guidance.kappa={config(lab).guidance.kappa:g}"
    assert apart_by == {
        "0.200": {"guidance.kappa=0.5", "seed=42"},
        "0.700": {"guidance.kappa=1", "seed=42"},
        "-0.300": {default, "seed=1"},
    }
    assert "trainer.devices" not in done.out  # no result depends on it
    assert "subject.name" not in done.out  # the name says it
    assert "5 runs, " in done.out.splitlines()[-1]


def test_ls_keeps_the_runs_that_have_a_value(lab: Path) -> None:
    def count(*words: str) -> int:
        return len(rows(succeed("ls", *words, cwd=lab)))

    assert count("evaluate") == 3
    assert count("guidance.kappa=0.5") == 1
    assert count("guidance.kappa=5e-1", "evaluate") == 1
    assert count("guidance.kappa=0.5,1", "evaluate") == 2
    assert count("state=partial,failed") == 2
    assert count("state=done", "seed=1", "method=neuraldiffuser") == 1
    assert count("method=neural*", "subject=subj01") == 5
    assert count("method=takagi") == 0
    assert count("target=z", "train") == 1
    assert count("target=c", "train") == 0
    assert count("trainer.progress=True", "guidance.layer_weights=[1.5,1.20,1.0,1,1,1]") == 5
    assert count("guidance.layer_weights=[1.5,1.2]") == 0
    assert count("trainer.progress=true", "data.subjects=[subj01]") == 0
    chosen = succeed("ls", "scores=ssim", "evaluate", cwd=lab)
    assert "ssim" in chosen.out
    assert "pixcorr" not in chosen.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ls", "guidance.kapa=1"], "nd ls: guidance.kapa: unknown key. Did you mean 'guidance.kappa'?"),
        (["ls", "evalute"], "nd ls: unknown verb with run folders 'evalute'. Did you mean 'evaluate'?"),
        (["ls", "state=dnoe"], "nd ls: state=dnoe: there is no such state. Did you mean 'done'?"),
        (["ls", "evaluate", "scores=pixcor"], "nd ls: unknown score 'pixcor'. Did you mean 'pixcorr'?"),
        (["ls", "scores=pixcor"], "nd ls: unknown score 'pixcor'. Did you mean 'pixcorr'?"),
        (["ls", "-m"], "nd ls: -m: this verb takes no flags but --help."),
        (["clean", "aply=true"], "nd clean: unknown option 'aply'. Did you mean 'apply'?"),
        (["clean", "apply=yes"], "nd clean: apply=yes: true or false was wanted."),
        (["clean", "apply"], "nd clean: 'apply' is no option."),
        (["show"], "nd show: one run was wanted, 0 were given: nd show RUN."),
        (["show", "scenes-subj01-neuraldif"], "3 runs begin with 'scenes-subj01-neuraldif'; give one of their ids:"),
        (["show", "scemes-subj01-c_g"], "Did you mean 'scenes-subj01-c_g"),
        (["show", "~nobody_of_that_name"], "is called '~nobody_of_that_name' or begins so."),
        (["show", "{evaluate}", "image=x"], "nd show: image=x: the id of an image was wanted, a whole number."),
        (["show", "{evaluate}", "out=png"], "nd show: out=png writes one image: which? image=<id>."),
        (["show", "{evaluate}", "image=1", "out=a.jpg"], "nd show: out=a.jpg: with image=1 one PNG is written"),
        (["show", "{train}", "image=1"], "is a train run, which has no images."),
        (["clean", "paths.root="], "nd clean: paths.root: it is empty, wanted a folder"),
        (["ls", "paths.rot=x"], "nd ls: paths.rot: unknown key. Did you mean 'paths.root'?"),
    ],
)
def test_a_wrong_word_is_one_message(words: list[str], wanted: str, lab: Path) -> None:
    ids = {run.verb: run.id for run in known_runs(lab / "runs")}
    before = sorted(lab.rglob("*"))
    done = nd(*(word.format(**ids) for word in words), cwd=lab)
    assert done.code == 2
    assert wanted in done.err
    assert done.out == ""
    assert sorted(lab.rglob("*")) == before


def test_verbs_of_runs_explain_themselves_and_import_nothing_heavy(lab: Path) -> None:
    for verb in ("ls", "show", "clean"):
        assert f"usage  nd {verb} " in succeed(verb, "--help", cwd=lab).out
    heavy = ["torch", "diffusers", "transformers", "matplotlib", "pytorch_lightning", "scipy", "pandas"]
    code = (
        "import sys; from contextlib import suppress; from nd.cli import main\n"
        "for verb in ('ls', 'clean'):\n"
        "    with suppress(SystemExit): main([verb])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = apart(code, cwd=lab, program=("-c",))
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_run_is_found_by_folder_id_name_and_the_beginning_of_either(lab: Path) -> None:
    runs = known_runs(lab / "runs")
    train = next(run for run in runs if run.verb == "train")
    for text in (str(train.path), train.id, train.id[:8], train.path.name, f"{train.name}-"):
        assert find_run(text, lab / "runs").path == train.path
    assert age(time.time() - 90) == "2 min"
    assert age(time.time() + 5) == "0 s"


def test_a_run_is_found_from_inside_its_folder(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = next(run for run in known_runs(lab / "runs") if run.verb == "evaluate" and run.state == "done")
    for place, text in ((run.path, "."), (run.path.parent, run.path.name), (lab / "runs", f"evaluate/{run.path.name}")):
        monkeypatch.chdir(place)
        found = find_run(text, Path("runs"))
        assert (found.verb, found.id, found.state) == ("evaluate", run.id, "done")
        assert read_run(text).manifest["verb"] == "evaluate"


def test_show_says_what_a_run_was_and_why_it_failed(lab: Path) -> None:
    runs = {run.verb: run for run in known_runs(lab / "runs")}
    done = succeed("show", RunFolder.open(guided(lab, 0.5), "evaluate").run_id, cwd=lab)
    assert "made by: nd evaluate guidance.kappa=0.5" in done.out
    assert "guidance.kappa" in done.out.split("differs from the defaults")[1]
    assert "pixcorr               0.2000" in done.out
    assert "per_image.csv" in done.out.split("\nfiles")[1]
    broken = succeed("show", runs["predict"].id, cwd=lab).out
    assert "\nfailed, " in broken
    assert broken.rstrip().endswith("ZeroDivisionError: by nothing")


@pytest.fixture
def pictured(tmp_path: Path) -> tuple[Config, str, str]:
    """A reconstruct run with two repeats, black and nearly so, and the evaluate run made from it; their ids."""
    cfg = config(tmp_path)
    fake_stimuli(cfg)
    fake_images(cfg, repeats=2)
    made_from = RunFolder.open(cfg, "reconstruct")
    fake_scores(cfg, SCORES)
    scored = RunFolder.open(cfg, "evaluate")
    manifest = read_json(scored.path / "manifest.json")
    write_json(scored.path / "manifest.json", manifest | {"inputs": {"images": made_from.fingerprint}})
    return cfg, made_from.run_id, scored.run_id


def test_show_writes_a_stimulus_beside_its_reconstructions(pictured: tuple[Config, str, str], tmp_path: Path) -> None:
    cfg, made_from, scored = pictured
    done = succeed("show", scored[:6], "image=3", "out=png", cwd=tmp_path)
    path = next((tmp_path / "results").glob("*.png"))
    assert path.name == f"{RunFolder.open(cfg, 'evaluate').path.name}-image-3.png"
    assert str(path.relative_to(tmp_path)) in done.out
    said = next(line.split() for line in done.out.splitlines() if "pixcorr" in line)
    assert said == ["pixcorr", f"{SCORES['pixcorr'][3]:.4f}"]
    shown = np.asarray(Image.open(path))
    side = shown.shape[0]
    assert shown.shape == (side, 3 * side + 2 * 4, 3)
    stimulus = Stimuli(stimuli_path(cfg)).images(np.array([3]))[0]
    centres = ((np.arange(SIDE) + 0.5) * side / SIDE).astype(int)
    np.testing.assert_array_equal(shown[np.ix_(centres, centres)], stimulus)
    assert (shown[:, side + 4 : 2 * side + 4] == 0).all()
    assert (shown[:, 2 * side + 8 :] == 1).all()
    elsewhere = succeed("show", made_from, "image=3", "out=a/b.png", cwd=tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "b.png")), shown)
    assert "pixcorr" not in elsewhere.out
    assert "The nearest ids: [7, 6, 5]" in nd("show", scored, "image=9", cwd=tmp_path).err


def test_show_refuses_other_stimuli_than_the_run_read(pictured: tuple[Config, str, str], tmp_path: Path) -> None:
    cfg, made_from, _ = pictured
    with h5py.File(stimuli_path(cfg), "a") as file:
        file["images"][3] = 0
    done = nd("show", made_from, "image=3", cwd=tmp_path)
    assert done.code == 2
    assert "the stimuli are not those of the run" in done.err
    assert not (tmp_path / "results").exists()


def test_show_exports_all_reconstructions(pictured: tuple[Config, str, str], tmp_path: Path) -> None:
    _, _, scored = pictured
    for _ in range(2):  # the same files again
        succeed("show", scored, "out=all", cwd=tmp_path)
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {f"{image}_{repeat}.png" for image in range(N_IMAGES) for repeat in range(2)}
    assert (np.asarray(Image.open(tmp_path / "all" / "5_1.png")) == np.ones((SIDE, SIDE, 3))).all()
    (tmp_path / "all" / "99.png").write_bytes(b"")
    assert "out=all holds other files (99.png)" in nd("show", scored, "out=all", cwd=tmp_path).err


def test_an_interrupted_export_leaves_no_half_image(
    pictured: tuple[Config, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a killed one leaves is no other file."""

    def stops(image: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    _, _, scored = pictured
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", stops)
        assert nd("show", scored, "out=all", cwd=tmp_path).code == 130
    assert list((tmp_path / "all").iterdir()) == []
    (tmp_path / "all" / ".0_0.png.17.tmp").write_bytes(b"half")
    succeed("show", scored, "out=all", cwd=tmp_path)


def aged(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"x")
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def untidy(tmp_path: Path) -> tuple[Path, set[Path], set[Path]]:
    """A folder with what can go and what must stay."""
    plain = config(tmp_path)
    subjects = [replace(plain, subject=replace(plain.subject, name=f"subj0{i}")) for i in (1, 2, 3)]
    read = [made(subjects[0], "train", schema=1)]
    read.append(made(subjects[0], "predict", {"train z": read[0].fingerprint}, schema=1))
    kept = [made(subjects[0], "reconstruct", {"predictions": read[1].fingerprint}), failed(subjects[1], "evaluate")]
    kept.append(made(subjects[2], "reconstruct", schema=99))  # of a later version
    read.append(made(subjects[2], "train", schema=1))
    kept.append(made(replace(subjects[2], overrides=[f"training.pretrained={read[-1].path}"]), "predict"))
    unread = made(subjects[1], "train", schema=1)
    gone = [unread, made(subjects[1], "predict", {"train z": unread.fingerprint}, schema=2)]
    gone_files = {
        aged(tmp_path / "results" / ".t.md.17.tmp"),
        aged(partial_path(tmp_path / "cache" / "targets" / "scenes-z-0.h5")),
        aged(tmp_path / "runs" / "train" / ".x.5.tmp"),
    }
    (tmp_path / "runs" / "multirun" / "old" / "0").mkdir(parents=True)
    aged(tmp_path / "runs" / "multirun" / "old" / "multirun.yaml")
    os.utime(tmp_path / "runs" / "multirun" / "old", (OLD, OLD))
    being_written = tmp_path / "results" / ".now.md.18.tmp"
    being_written.write_bytes(b"")
    stay = {being_written, aged(tmp_path / "cache" / "targets" / "scenes-z-1.h5")}
    stay.add(aged(tmp_path / "runs" / "multirun" / "log" / "0" / "x.log"))
    stay |= {folder.path for folder in (*read, *kept)}
    return tmp_path, {folder.path for folder in gone} | gone_files | {tmp_path / "runs" / "multirun" / "old"}, stay


def test_clean_lists_and_removes_only_what_nothing_needs(untidy: tuple[Path, set[Path], set[Path]]) -> None:
    root, gone, stay = untidy
    before = sorted(root.rglob("*"))
    listed = succeed("clean", cwd=root)
    assert {(root / line.split()[-1]).resolve() for line in listed.out.splitlines()[:-1]} == gone
    assert f"{len(gone)} of them, " in listed.out
    assert "Nothing was removed: nd clean apply=true removes them." in listed.out
    assert sorted(root.rglob("*")) == before
    assert f"removed {len(gone)} of {len(gone)}" in succeed("clean", "apply=true", cwd=root).out
    assert not [path for path in gone if path.exists()]
    assert not [path for path in stay if not path.exists()]
    assert "nothing to clean" in succeed("clean", cwd=root).out


def test_clean_keeps_what_is_being_written_and_damaged_records(untidy: tuple[Path, set[Path], set[Path]]) -> None:
    root, gone, _ = untidy
    partial = next(path for path in gone if path.suffix == ".partial")
    run, damaged = sorted(path for path in gone if (path / "manifest.json").is_file())
    (damaged / "manifest.json").write_text("{", encoding="utf-8")
    lock = partial.with_name(partial.name.removesuffix(".partial") + ".lock")
    with locked(run / ".lock", "run"), locked(lock, "store"):
        listed = succeed("clean", "apply=true", cwd=root).out
    assert run.exists()
    assert damaged.exists()
    assert partial.exists()
    assert f"removed {len(gone) - 3} of {len(gone) - 3}" in listed


def test_the_same_command_ends_an_interrupted_removal(
    untidy: tuple[Path, set[Path], set[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, gone, _ = untidy

    def stops(path: Path) -> None:
        for name in ("status", "manifest.json"):
            (path / name).unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nd.runs.cleaning.shutil.rmtree", stops)
        assert nd("clean", "apply=true", cwd=root).code == 130
    succeed("clean", "apply=true", cwd=root)
    assert not [path for path in gone if path.exists()]
    assert list((root / "runs").rglob("*.tmp")) == []


def test_an_interrupted_removal_leaves_no_run_and_is_ended_later(
    untidy: tuple[Path, set[Path], set[Path]],
) -> None:
    root, gone, _ = untidy
    run = next(path for path in gone if (path / "manifest.json").is_file())
    for name in ("status", "manifest.json"):
        (run / name).unlink()
    os.utime(run, (OLD, OLD))
    succeed("clean", "apply=true", cwd=root)
    assert not run.exists()
