"""The benchmarks' rows, table and runner: what is better by how much, one that fails, one that is chosen."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "benchmarks"
SUPPORT = ("__main__", "rows", "replay")  # no benchmarks themselves


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the command; rows.py is found beside it."""
    import importlib.util

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_main", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def fake(folder: Path, **bodies: str) -> None:
    """Benchmarks of some bodies, beside a copy of rows.py."""
    folder.mkdir()
    (folder / "rows.py").write_text((FOLDER / "rows.py").read_text(encoding="utf-8"), encoding="utf-8")
    for name, body in bodies.items():
        text = f"from rows import Row\n\ndef measure(asked):\n    {body}\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


GOOD = "return [Row(case='a fit', unit='s', ours=[2.0, 4.0, 3.0], peer='other', theirs=[6.0])]"


def test_every_script_is_a_benchmark_that_the_command_knows(runner: ModuleType) -> None:
    scripts = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")}
    measuring = {
        name for name, tree in scripts.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree.body)
    }  # fmt: skip
    assert measuring == set(scripts) - set(SUPPORT) == set(runner.ON_CPU)
    assert set(runner.ON_GPU) <= measuring


def test_better_is_larger_or_smaller_turn_by_turn(runner: ModuleType) -> None:
    from rows import Row

    fast = Row(case="x", unit="s", ours=[1.0, 2.0], peer="p", theirs=[4.0, 4.0])
    assert fast.ratios == [4.0, 2.0]
    rate = Row(case="x", unit="images/s", ours=[1.0, 2.0], peer="p", theirs=[4.0], more=True)
    assert rate.ratios == [0.25, 0.5]
    assert (rate.fields()["ratio"], rate.fields()["ratio_min"], rate.fields()["ratio_max"]) == (0.375, 0.25, 0.5)
    assert Row(case="x", unit="s", ours=[1.0]).fields()["ratio"] == ""


def test_one_that_fails_is_named_and_the_others_go_on(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path / "scripts", ridge="raise ValueError('no such matrix')", sweep=GOOD)
    monkeypatch.setattr(runner, "HERE", tmp_path / "scripts")
    monkeypatch.setattr(runner, "with_package", lambda path: str(ROOT))
    results = tmp_path / "results"
    assert runner.main(["--only", "ridge", "sweep", "--results", str(results)]) == 1
    said = capsys.readouterr()
    assert "[2/2] ridge ... FAILED: ValueError: no such matrix" in said.out
    assert "FAILED: ridge" in said.err
    assert "1 of 2 benchmarks" in said.out
    assert "| sweep" in said.out
    (row,) = runner.read(results / "bench.csv")
    assert (row["benchmark"], row["ours"], row["theirs"], row["ratio"], row["ratio_max"]) == (
        "sweep",
        "3",
        "6",
        "2",
        "3",
    )
    assert row["machine"]
    assert "torch" in row["versions"]
    fake(tmp_path / "mended", ridge=GOOD)
    monkeypatch.setattr(runner, "HERE", tmp_path / "mended")
    assert runner.main(["--only", "ridge", "--results", str(results)]) == 0
    assert [row["benchmark"] for row in runner.read(results / "bench.csv")] == ["sweep", "ridge"], (
        "the other's row stays"
    )


def test_one_that_takes_too_long_is_ended(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path / "scripts", sweep="import time; time.sleep(600)")
    monkeypatch.setattr(runner, "HERE", tmp_path / "scripts")
    given = ["--only", "sweep", "--timeout", "1", "--results", str(tmp_path / "results")]
    assert runner.main(given) == 1
    assert "took longer than --timeout 1 s" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_said(runner: ModuleType, tmp_path: Path) -> None:
    import torch
    from rows import Asked

    with pytest.raises(SystemExit, match="ridge measure nothing on a GPU"):
        runner.main(["--cuda", "--only", "ridge", "--results", str(tmp_path)])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="PyTorch sees no GPU here"):
            Asked(cuda=True, device="cuda")
    assert Asked(cuda=True, device="cpu").clock == "processor"


def test_a_benchmark_runs_small_as_a_process(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    subprocess.run(
        [sys.executable, str(FOLDER / "rows.py"), "recurrence", "--quick", "--out", str(out)], check=True,
        capture_output=True,
    )  # fmt: skip
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert (row["benchmark"], row["peer"], row["size"]) == ("recurrence", "transformer", "quick")
    assert row["ours"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("given", [(), ("--cuda", "--device", "cpu")], ids=["cpu", "gpu rehearsed"])
def test_all_benchmarks_run_small(given: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER), "--quick", *given, "--results", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "bench.csv", encoding="utf-8", newline="") as handle:
        assert {row["size"] for row in csv.DictReader(handle)} == {"quick"}


def test_the_docs_quote_the_rows_that_are_kept(runner: ModuleType) -> None:
    text = (ROOT / "docs" / "guide" / "benchmarks.md").read_text(encoding="utf-8")
    block = text.partition("<!-- BENCH -->\n")[2].partition("<!-- /BENCH -->")[0].strip()
    assert block == runner.table(runner.read(FOLDER / "measured.csv")).strip(), "make bench ARGS='--show ...' prints it"


def test_constraints_are_names_and_versions_alone() -> None:
    from helpers_scripts import EXPERIMENTS

    sys.path.insert(0, str(EXPERIMENTS.parent / "scripts"))
    try:
        import lock
    finally:
        sys.path.pop(0)
    known = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}
    packages = [("zeta", "1.0"), ("Torch", "2.6.0+cu1"), ("nd", "0.1.0")]
    where = {"url": "https://registry.example/zeta.whl"}
    report = {
        "environment": known,
        "install": [{"metadata": {"name": n, "version": v}, "download_info": where} for n, v in packages],
    }
    lines = lock.locked(report).splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["Torch==2.6.0", "zeta==1.0"]
    assert "Python 3.11, Linux x86-64" in lines[0]
    committed = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in committed)
    assert not [line for line in committed if "/" in line or "://" in line]
