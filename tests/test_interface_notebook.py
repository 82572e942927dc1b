"""The notebook of the public interface, run from an empty folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nd.files import read_json

USES = ("nd.execute", "nd.read_run", "nd.score_arrays", "nd.FastL2LiR", "nd.guide_pipeline")
MOST_LINES = 12


def test_the_five_uses_take_a_few_lines_each_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    notebook = read_json(Path(__file__).parent.parent / "notebooks" / "public_interface.ipynb")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    for cell, use in zip(cells, USES, strict=True):
        lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES
        assert use in "".join(lines)
        exec("\n".join(lines), names)
    assert names["run"].images.shape == (6, 1, 64, 64, 3)
    assert 0.5 < names["scores"].means["pixcorr"] < 1
    assert names["search"].score(names["voxels"][100:], names["targets"][100:]) > 0.5
    assert names["guided"].shape == (1, 64, 64, 3)
