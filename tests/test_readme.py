"""The README's commands work as they stand: every ``nd`` line is run small, every ``make`` target exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="module")
def stand_ins(folder: Path) -> dict[str, list[str]]:
    """What a README line's own files stand for here: simulated trees in NSD's forms, and made-up data of one's own."""
    for layout in ("nsd", "mindeye2"):
        run_small(["prepare", "data=scenes", f"layout={layout}"], folder)
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
    (folder / "pictures").mkdir()
    for i in range(48, 54):  # the test images of Scenes as debug=fast makes it
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    np.save(folder / "voxels.npy", rng.normal(size=(120, 30)).astype(np.float32))
    np.save(folder / "image_ids.npy", np.arange(120) % 60)
    tree = ["data.subjects=[subj01]", "data.simulated=true", "data.image_size=64", "protocol=scenes"]
    return {
        "data.root=nsd": [f"data.root={folder}/data/scenes-nsd", *tree],
        "data.root=mindeye2": [f"data.root={folder}/data/scenes-mindeye2", *tree],
        "data.voxels=voxels.npy": [f"data.voxels={folder}/voxels.npy"],
        "data.image_ids=image_ids.npy": [f"data.image_ids={folder}/image_ids.npy"],
        "data.images=images/": [f"data.images={folder}/images"],
        "images=images/": [f"images={folder}/pictures"],
    }


def run_small(words: list[str], folder: Path) -> None:
    small = [] if "--help" in words else ["debug=fast", f"paths.root={folder}", "trainer.progress=false"]
    command = [sys.executable, "-m", "nd", *words, *small]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert got.returncode == 0, got.stdout + got.stderr


@pytest.mark.parametrize("line", VERBS)
def test_verbs_run_small(line: str, folder: Path, digits69_file: Path | None, stand_ins: dict[str, list[str]]) -> None:
    words = [word for given in shlex.split(line)[1:] for word in stand_ins.get(given, [given])]
    if "data.file=" in line:
        if digits69_file is None:
            pytest.skip("digit69_28x28.mat is not here; give its path in ND_DIGITS69")
        words = [f"data.file={digits69_file}" if word.startswith("data.file=") else word for word in words]
    run_small(words, folder)
