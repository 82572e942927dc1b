"""No verb ends well without its output, or the words "nothing to do" and where the output is; told apart by files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from nd.verbs import OF_RUNS
from nd.verbs import VERBS as ALL

SPEC = """
title: t
experiment: scenes
subjects: [subj01]
columns: [{metric: pixcorr, name: PixCorr}]
rows: [{label: pixels, overrides: [method=ridge_pixels]}]
images: [pixels]
"""
OF_MANY = ("sweep", "tune")  # whose words stand for many runs
VERBS = [name for name in ALL if name not in (*OF_RUNS, *OF_MANY)]  # those of runs: test_runs_browsed.py
STEPS = ("prepare", "extract", "train", "predict", "reconstruct", "evaluate")
LEFT_BEHIND = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "PMI_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1", "JSM_NAMESPACE_RANK": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a data set and a method so small that every step takes no time."""
    root = tmp_path_factory.mktemp("lab")
    (root / "t.yaml").write_text(SPEC, encoding="utf-8")
    return [
        "experiment=scenes", "debug=fast", "method=ridge_pixels", "target=pixels", "data.subjects=[subj01]",
        f"table={root / 't.yaml'}", f"paths.root={root}", "protocol.brain=[]", "trainer.accelerator=cpu",
        "trainer.progress=false",
    ]  # fmt: skip


def module_of(verb: str) -> Any:
    return importlib.import_module("nd.doctor.report" if verb == "doctor" else f"nd.{verb}")


def told(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, list[Path]]:
    """Run a verb as from the command line; return what it said and the paths named there that exist."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        module_of(verb).main(words)
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    named = [Path(text) for text in re.findall(r"/[^\s,;]+", said.out)]
    return said.out, [path for path in named if path.exists()]


def check(verb: str, given: list[str], capsys: pytest.CaptureFixture[str], again: bool) -> None:
    out, there = told(verb, given, capsys)
    assert there, f"nd {verb} named no output that is there:\n{out}"
    if verb in (*STEPS, "run"):  # of a run, steps say it too
        words = "all of them were finished; nothing to do" if verb == "run" else "nothing to do"
        assert (words in out) == again, out
    wanted = {"table": {".md", ".csv", ".tex"}, "report": {".html", ".png"}}.get(verb, set())
    assert wanted <= {path.suffix for path in there if path.stem == "t"}, out
    if verb in ("train", "predict", "reconstruct", "evaluate"):
        folder = next(path for path in there if f"/{verb}/" in str(path))
        folder = folder if folder.is_dir() else folder.parent
        assert (folder / "status").read_text(encoding="utf-8") == "done\n"
        assert (folder / "manifest.json").is_file()
        assert (folder / "config.yaml").is_file()


def test_every_verb_makes_its_output_or_says_that_it_is_there(
    lab: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the ranks of other programs in the environment, which once made a process that writes nothing."""
    for name, value in LEFT_BEHIND.items():
        monkeypatch.setenv(name, value)
    assert set(VERBS) == {*STEPS, "run", "table", "report", "roi", "doctor"}  # a new verb belongs here
    for verb in STEPS:
        check(verb, lab, capsys, again=False)
    for verb in VERBS:
        check(verb, lab, capsys, again=True)


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"prepare", "run", "doctor"}))
def test_a_verb_without_what_it_reads_says_what_is_missing(
    verb: str, lab: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Alone, and as the jobs of a sweep: never code 0, nothing that looks finished, and a command that helps."""
    for more in ([], ["-m", "seed=1,2"]) if verb == "evaluate" else ([],):
        with pytest.raises(SystemExit) as left:
            module_of(verb).main([*lab, f"paths.root={tmp_path}", *more])
        said = capsys.readouterr()
        assert left.value.code == 2
        assert re.search(r"nd (prepare|extract|train|predict|reconstruct|run)\b", said.err), said.err
        assert not [path for path in tmp_path.rglob("*") if path.name in ("status", "manifest.json")]


def test_every_job_of_a_sweep_makes_its_output_or_says_that_it_is_there(
    lab: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for verb in ("prepare", "extract"):
        told(verb, lab, capsys)
    sweep = [*lab, f"paths.runs={tmp_path}", "-m", "mapper.voxel_power=0,1"]
    for said in ("wrote 1 mapper at", "is finished; nothing to do"):
        out, there = told("train", sweep, capsys)
        assert out.count(said) == 2, out
        assert len({path for path in there if (path / "status").is_file()}) == 2
    assert [path.read_text(encoding="utf-8") for path in tmp_path.glob("train/*/status")] == ["done\n"] * 2


def test_run_does_all_that_is_missing(lab: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    apart = [*lab, f"paths.runs={tmp_path}"]
    check("run", apart, capsys, again=False)
    check("run", apart, capsys, again=True)


@pytest.mark.parametrize("method", ["mean_image", "random_image", "ridge_pixels"])
def test_a_gpu_that_is_not_there_is_one_message(
    method: str, lab: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    told("prepare", lab, capsys)
    words = [*lab, f"method={method}", f"paths.runs={tmp_path}", "trainer.accelerator=gpu"]
    for verb in ("reconstruct",) if method != "ridge_pixels" else ("extract", "train"):
        with pytest.raises(SystemExit) as left:
            module_of(verb).main(words)
        assert left.value.code == 2
        assert "trainer.accelerator=gpu, but PyTorch sees no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.rglob("status"))
