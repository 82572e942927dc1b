"""The README's commands work as they stand: every ``nd`` line is run small, every ``make`` target exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
VERBS = [line for line in LINES if line.startswith("nd ")]
TARGETS = [line for line in LINES if line.startswith("make ")]
SETUP = ("git clone", "cd ", "source ")


def test_every_line_is_tested() -> None:
    assert VERBS
    assert "make demo" in TARGETS
    assert "make test" in TARGETS
    assert [line for line in LINES if line not in VERBS + TARGETS and not line.startswith(SETUP)] == []


@pytest.mark.parametrize("line", TARGETS)
def test_make_targets_exist(line: str) -> None:
    got = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 0, got.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("line", VERBS)
def test_verbs_run_small(line: str, folder: Path, digits69_file: Path | None) -> None:
    words = shlex.split(line)[1:]
    if "data.file=" in line:
        if digits69_file is None:
            pytest.skip("digit69_28x28.mat is not here; give its path in ND_DIGITS69")
        words = [f"data.file={digits69_file}" if word.startswith("data.file=") else word for word in words]
    small = [] if "--help" in words else ["debug=fast", f"paths.root={folder}", "trainer.progress=false"]
    got = subprocess.run(
        [sys.executable, "-m", "nd", *words, *small], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert got.returncode == 0, got.stdout + got.stderr
