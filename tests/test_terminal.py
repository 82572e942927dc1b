"""What a terminal shows of text it cannot encode, what a broken pipe leaves, and how threads wait."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_results import fake_scores

from nd.config.application import compose
from nd.terminal import show_what_it_can

ROOT = Path(__file__).parent.parent
SPEC = """
title: t
experiment: scenes
subjects: [subj01]
columns: [{metric: pixcorr, name: PixCorr}]
rows: [{label: café 脑, overrides: []}]
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "ab ↑ ↓ ± é 脑 ?"), ("latin-1", "ab ^ v ± é ? ?"), ("ascii", "ab ^ v +- ? ? ?")],
)
def test_characters_are_shown_or_stood_in_for(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding))
    show_what_it_can()
    print("ab ↑ ↓ ± é 脑 \udc80", flush=True)
    assert buffer.getvalue().decode(encoding) == f"{shown}\n"


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    show_what_it_can()
    print("↑")
    assert sys.stdout.getvalue() == "↑\n"


@pytest.fixture
def lab(tmp_path: Path) -> list[str]:
    """A folder with one finished row of a table, and the words that mean it."""
    (tmp_path / "t.yaml").write_text(SPEC, encoding="utf-8")
    words = [f"table={tmp_path / 't.yaml'}", f"paths.root={tmp_path}"]
    fake_scores(compose(["experiment=scenes", *words]), {"pixcorr": np.linspace(0.1, 0.3, 8)})
    return ["table", *words]


def nd(words: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nd", *words], env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip


def test_a_table_is_written_and_shown_on_a_terminal_without_its_characters(lab: list[str], tmp_path: Path) -> None:
    done = nd(lab, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("latin-1")
    assert "PixCorr ^" in said
    assert "café ?" in said
    assert {path.suffix for path in (tmp_path / "results").iterdir()} >= {".md", ".csv", ".tex"}
    assert "café 脑" in (tmp_path / "results" / "t.md").read_text(encoding="utf-8")


def test_files_come_before_what_is_shown(lab: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nd.table import table

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    cfg = compose(lab[1:])
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        table(cfg)
    assert (tmp_path / "results" / "t.md").is_file()


WATCH = """
import builtins, os, sys
load = builtins.__import__
def watch(name, *rest, **more):
    if name == "torch":
        print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), flush=True)
        os._exit(0)
    return load(name, *rest, **more)
builtins.__import__ = watch
import {module}
import torch
"""


@pytest.mark.parametrize(
    ("module", "given", "wanted"),
    [
        ("nd.cli", {}, "10000 None"),
        ("nd.evaluate", {}, "10000 None"),
        ("nd.metrics.retrieval", {}, "10000 None"),
        ("nd.cli", {"GOMP_SPINCOUNT": "7"}, "7 None"),
        ("nd.cli", {"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
)
def test_how_threads_wait_is_set_before_torch_unless_the_user_has(
    module: str, given: dict[str, str], wanted: str
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(module=module)], env={**clean, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == wanted, done.stderr
