"""The notebooks run from an empty folder, in the smallest size, and show what they say.

Two have tests beside the code they show: own_data in test_data_own.py, public_interface in test_interface_notebook.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import public_file

from nd.config import components, composition, known
from nd.files import read_json

FOLDER = Path(__file__).parent.parent / "notebooks"
TESTED = {"own_data": "test_data_own.py", "public_interface": "test_interface_notebook.py"}
Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are written, so that notebooks find what others have made."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the cells of a notebook in an empty folder; returns its names."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("ND_OVERRIDES", f"debug=fast debug.limit_images=4 trainer.progress=false paths.root={root}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def of(name: str) -> dict[str, Any]:
        cells = [cell for cell in read_json(FOLDER / f"{name}.ipynb")["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
        names: dict[str, Any] = {"__name__": "__main__"}
        for cell in cells:
            exec("".join(cell["source"]), names)
        return names

    return of


def test_every_notebook_has_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for path in FOLDER.glob("*.ipynb"):
        text = (Path(__file__).parent / TESTED[path.stem]).read_text(encoding="utf-8") if path.stem in TESTED else here
        assert f'run("{path.stem}")' in text or f'"{path.stem}.ipynb"' in text, path.name


@pytest.mark.slow
def test_guidance_is_shown(run: Run) -> None:
    names = run("first_steps")
    assert list(names["rows"]) == ["stimulus", "kappa 0", "kappa 0.3", "kappa 1", "kappa 3", "true features"]
    assert all(images.shape == (4, 64, 64, 3) for images in names["rows"].values())
    moved = [values.mean() for values in names["change"].values()]
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2] < moved[3]
    assert names["oracle"].summary["oracle"]


@pytest.mark.slow
def test_a_table_is_read(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("read_a_table")
    assert len(names["rows"]) == 9
    assert names["reported"]["best"] > names["reported"]["each"]
    assert set(names["share"]) == {"pixcorr", "ssim", "two_way_low", "two_way_high"}
    assert (names["winner"] - names["pixcorr"]).mean() > 0
    shown = capsys.readouterr().out
    assert "scenes-changed-" in shown
    assert "chance 0.50" in shown


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Components that a notebook adds are looked for, and forgotten afterwards."""

    def forget() -> None:
        for cached in (components.found, known.known_fields, composition.decoded):
            cached.cache_clear()

    forget()
    yield
    sys.modules.pop("nd_levels", None)
    forget()


@pytest.mark.usefixtures("forgotten")
def test_a_method_is_added_from_outside(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("add_a_method")
    for levels, found in names["runs"].items():
        assert len(np.unique(found.images)) <= levels
    assert len({found.path.name for found in names["runs"].values()}) == 3
    assert len(names["rows"]) == 6
    shown = capsys.readouterr().out
    assert "method.level: unknown key. Did you mean 'method.levels'?" in shown
    assert "method.levels: 1 was given, wanted 2 or more." in shown


def test_measured_figures_are_decoded_above_their_control(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = public_file("ND_MIYAWAKI_FILE", "miyawaki_V1_mean_figure.mat", "public, repository KamitaniLab/VBCCA")
    monkeypatch.setenv("ND_MIYAWAKI_FILE", str(file))
    names = run("measured_data")
    assert names["decoded"].shape == (10, 100)
    assert (names["subject"].n_voxels, len(names["subject"].image_id)) == (797, 80)
    assert names["two_way"] > max(names["control"]) + 0.1
    assert names["same"].sum() == 40
    assert names["low"] < names["within"] < names["high"]
