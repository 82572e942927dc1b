"""What a finished run has left is recorded, and compared when it is read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_files import left_so
from helpers_results import config

from nd.config import Config
from nd.errors import UserError
from nd.files import read_json, write_json
from nd.hdf5 import open_h5
from nd.runs.folder import RunFolder, found
from nd.runs.outputs import output_of
from nd.sealed import seal


def finished(cfg: Config, values: float = 1.0) -> RunFolder:
    """A run with files of every kind, of which ``read`` needs one."""
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg) as path:
        (path / "inner").mkdir()
        (path / "inner" / "a.csv").write_text(f"x\n{values}\n", encoding="utf-8")
        (path / ".hidden").write_text("x", encoding="utf-8")
        (path / "fold-00-log").mkdir()
        (path / "fold-00-log" / "metrics.csv").write_text("x", encoding="utf-8")
        with h5py.File(path / "images.h5", "w") as handle:
            handle["images"] = np.full((4, 3), values)
            seal(handle, "Again.")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished(config(tmp_path))


def test_all_files_but_the_record_are_recorded(run: RunFolder) -> None:
    outputs = run.manifest["outputs"]
    assert sorted(outputs) == ["config.yaml", "images.h5", "inner/a.csv", "overrides.txt"]
    for name, one in outputs.items():
        assert one["bytes"] == (run.path / name).stat().st_size
        assert run.output(name) == run.path / name
    assert run.outputs_below("inner") == [run.path / "inner" / "a.csv"]


def test_another_size_is_told_before_anything_is_read(run: RunFolder) -> None:
    (run.path / "inner" / "a.csv").write_text("x\n1.00\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv has 7 bytes, was written with 6\. Remove \S+ and run again: nd recon"):
        run.is_done()


def test_other_content_is_told_by_whoever_reads_it(run: RunFolder) -> None:
    (run.path / "inner" / "a.csv").write_text("x\n1.1\n", encoding="utf-8")
    assert run.is_done()
    with pytest.raises(
        UserError, match=r"a\.csv was changed since the run wrote it\. Remove .* and run again: nd recon"
    ):
        run.output("inner/a.csv")
    with pytest.raises(UserError, match=r"a\.csv was changed"):
        output_of(run.path, "inner/a.csv")
    left_so(run.path)
    assert run.output("inner/a.csv").is_file()


def test_a_whole_file_of_another_run_is_told(run: RunFolder, tmp_path: Path) -> None:
    other = finished(replace(config(tmp_path), seed=7), 2.0)
    shutil.copyfile(other.path / "images.h5", run.path / "images.h5")
    with open_h5(run.path / "images.h5") as handle:
        assert handle["images"][0, 0] == 2  # whole by itself
    with pytest.raises(UserError, match=r"images\.h5 was changed since the run wrote it"):
        run.output("images.h5")
    shutil.copyfile(other.path / "manifest.json", run.path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json is the record of another run\. Remove .* and run again"):
        run.is_done()


def test_files_that_are_gone_matter_to_whoever_reads_them(run: RunFolder) -> None:
    (run.path / "images.h5").unlink()
    assert run.is_done()
    with pytest.raises(UserError, match=r"images\.h5 does not exist\. Remove .* and run again"):
        run.output("images.h5")
    (run.path / "images.h5").mkdir()
    with pytest.raises(UserError, match=r"images\.h5 is a folder"):
        run.output("images.h5")


def test_a_run_of_an_earlier_version_records_nothing(run: RunFolder) -> None:
    path = run.path / "manifest.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "outputs"})
    (run.path / "inner" / "a.csv").write_text("other", encoding="utf-8")
    assert run.is_done()
    assert run.output("inner/a.csv").is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null", "it is null|valid dictionary"),
        ('{"verb": "reconstruct"}', "identity: is missing"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_record_of_no_use(run: RunFolder, tmp_path: Path, content: str, said: str) -> None:
    (run.path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"manifest\.json .*({said}).* Remove .* and run again: nd reconstruct"):
        found(config(tmp_path), "reconstruct")
    (run.path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is gone\. Remove .* and run again: nd reconstruct"):
        found(config(tmp_path), "reconstruct")


def test_a_status_of_no_use_means_that_the_run_is_not_finished(run: RunFolder) -> None:
    (run.path / "status").write_bytes(b"d\xffne\n")
    assert not run.done
    (run.path / "status").unlink()
    (run.path / "status").mkdir()
    with pytest.raises(UserError, match="status is a folder; wanted a file"):
        _ = run.done
