"""The commands of the README and of docs/ work as they stand, run small in one process and one folder.

So does every experiment. Pages are read in the order of the site, so that a command finds what earlier ones have made.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers_commands import ROOT, nd, succeed
from helpers_digits import noise_file
from PIL import Image

from nd.config.application import compose
from nd.tables.specs import spec_of


def pages() -> list[Path]:
    """The README, what every contributor reads, and the pages of the site in the order of its navigation."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [file for one in (item.values() if isinstance(item, dict) else item) for file in files(one)]  # type: ignore[attr-defined]

    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / file for file in files(nav))]


def commands(page: Path) -> list[str]:
    """The command lines of a page's blocks of bash."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


LINES = list(dict.fromkeys(line for page in pages() for line in commands(page)))
VERBS = [line for line in LINES if line.startswith("nd ")]
TARGETS = [line for line in LINES if line.startswith("make ")]
SETUP = ("git clone", "cd ", "source ")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
SHOWN = [name for name in EXPERIMENTS if any(line.startswith(f"nd run experiment={name}") for line in VERBS)]
FORMS = ("nsd", "mindeye2")  # of files that Scenes can be written in
LONG = (
    "method=neuraldiffuser", "method=takagi", "data=scenes_", "experiment=digits69", "nd sweep experiment=", "nd tune",
    "nd run -m", "data=own method=",
)  # fmt: skip
SMALL = ["debug=fast", "debug.limit_images=2", "trainer.progress=false"]


def test_every_line_is_tested() -> None:
    assert len(VERBS) > 30
    assert {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")} == {
        page.relative_to(ROOT / "docs") for page in pages()[2:]
    }
    assert "make demo" in TARGETS
    assert "make test" in TARGETS
    assert [line for line in LINES if line not in VERBS + TARGETS and not line.startswith(SETUP)] == []


@pytest.mark.parametrize("line", TARGETS)
def test_make_targets_exist(line: str) -> None:
    got = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 0, got.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is written, so that a command finds what earlier ones have done; and the simulated trees."""
    folder = tmp_path_factory.mktemp("readme")
    for layout in FORMS:
        run_small(["prepare", "data=scenes", f"layout={layout}"], folder)
    return folder


@pytest.fixture(scope="module")
def stand_ins(folder: Path) -> dict[str, list[str]]:
    """What a README line's own files stand for here: NSD's forms simulated, made-up digits and own data."""
    rng = np.random.default_rng(0)
    test_images = range(48, 54)  # of Scenes as debug=fast makes it
    for name, ids, side in (("own", range(60), 32), ("made", test_images, 64)):
        (folder / name).mkdir()
        for i in ids:
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    np.save(folder / "voxels.npy", rng.normal(size=(120, 30)).astype(np.float32))
    (folder / "rois").mkdir()
    np.save(folder / "rois" / "V1.npy", np.arange(30) < 10)
    (folder / "captions.json").write_text(json.dumps({i: ["a thing"] for i in range(60)}), encoding="utf-8")
    np.save(folder / "image_ids.npy", np.arange(120) % 60)
    tree = ["data.subjects=[subj01]", "data.simulated=true", "data.image_size=64", "protocol=scenes"]
    return {
        "data.root=nsd": [f"data.root={folder}/data/scenes-nsd", *tree],
        "data.root=mindeye2": [f"data.root={folder}/data/scenes-mindeye2", *tree],
        "data.voxels=voxels.npy": [f"data.voxels={folder}/voxels.npy"],
        "data.image_ids=image_ids.npy": [f"data.image_ids={folder}/image_ids.npy"],
        "data.captions=captions.json": [f"data.captions={folder}/captions.json"],
        "data.rois=rois/": [f"data.rois={folder}/rois"],
        "data.images=images/": [f"data.images={folder}/own"],
        "images=images/": [f"images={folder}/made"],
        "data.file=digit69_28x28.mat": [f"data.file={noise_file(folder / 'digits.mat')}"],
    }


def run_small(words: list[str], folder: Path) -> str:
    """Run a command line in its smallest size; returns what it printed."""
    small = [] if "--help" in words else [*SMALL, f"paths.root={folder}"]
    if words[0] == "doctor":  # may find that something is missing here
        done = nd(words[0], *small, *words[1:], cwd=folder)
        assert done.code in (0, 1), done.err
        return done.out
    return succeed(words[0], *small, *words[1:], cwd=folder).out


def marked(line: str) -> Any:
    """A line as a parameter; one that trains, or runs a table or chain on another data set, takes long."""
    return pytest.param(line, marks=pytest.mark.slow if any(word in line for word in LONG) else ())


@pytest.mark.parametrize("line", [marked(line) for line in VERBS])
def test_verbs_run_small(line: str, folder: Path, stand_ins: dict[str, list[str]]) -> None:
    words = [word for given in shlex.split(line)[1:] for word in stand_ins.get(given, [given])]
    run_small(words, folder)
    if words[0] == "report":
        name = spec_of(compose(words[1:])).name
        written = {path.name for path in (folder / "results").iterdir()}
        assert {f"{name}.{suffix}" for suffix in ("md", "csv", "tex", "html", "png")} <= written


def scores_of(words: list[str], folder: Path) -> tuple[dict[str, float], bool]:
    """Run one row; returns its mean scores and whether they are of simulated data."""
    (path,) = set(re.findall(r"\S+/evaluate/[^\s/]+", run_small(["run", *words], folder)))
    summary = json.loads((folder / path / "scores.json").read_text(encoding="utf-8"))
    return {name: score["mean"] for name, score in summary["metrics"].items()}, summary["simulated"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in SHOWN])
def test_experiments_without_data_here_run_on_simulated_files(experiment: str, folder: Path) -> None:
    """With the small backbone and network, and of one subject, so that nobody is there to pretrain on."""
    row = [f"experiment={experiment}", f"data=scenes_{experiment}", "backbone=scenes", "network=scenes"]
    row.append("training.pretrain=false")
    scores, simulated = scores_of(row, folder)
    assert scores
    assert simulated


@pytest.mark.slow
def test_scenes_read_from_nsds_forms_gives_the_same_scores(folder: Path) -> None:
    """One subject, as it is prepared and read back from both trees: the same chain, the same scores.

    MindEye2's betas are the voxels bit for bit; NSD's int16 betas move them by less than 1e-3.
    """
    row = ["experiment=scenes", "table=", "method=vae", "debug.limit_images=6"]
    scores, *forms = (
        scores_of([*row, f"data={data}"], folder)[0] for data in ("scenes", *(f"scenes_{f}" for f in FORMS))
    )
    assert forms[1] == pytest.approx(scores, abs=1e-6)
    assert forms[0] == pytest.approx(scores, abs=0.01)
    shuffled, _ = scores_of([*row, "control=shuffled_voxels", "data=scenes"], folder)
    assert abs(shuffled["pixcorr"] - scores["pixcorr"]) > 1e-3  # so it is the voxels that decide
