"""nd prepare: whole or nothing, once, and never over something else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_config import data_settings
from helpers_digits import noise_file
from helpers_files import edited

from nd.config import Config, PathsConfig
from nd.data import pieces as pieces_module
from nd.data.piece_records import recorded_hash
from nd.data.pieces import Piece, make_pieces
from nd.data.prepared import Subject, data_folder, stimuli_path, subject_path
from nd.errors import UserError
from nd.files import sha256_file
from nd.prepare import main, prepare


def tiny(root: Path, **more: Any) -> Config:
    settings = {"n_train": 20, "n_val": 5, "n_test": 5, "n_voxels": 40, "n_repeats": 2, **more}
    return Config(data=data_settings(**settings), paths=PathsConfig(data=str(root)))


def digits(root: Path, file: Path | str) -> Config:
    data = data_settings(
        name="digits69",
        source="digits69",
        split="digits69-cv10",
        n_val=10,
        subjects=["subj01"],
        image_size=28,
        file=str(file),
    )
    return Config(data=data, paths=PathsConfig(data=str(root)))


def names(root: Path) -> set[str]:
    return {p.name for p in root.rglob("*") if not p.name.endswith(".lock")}


def test_prepare_writes_all_and_then_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny(tmp_path)
    folder = prepare(cfg)
    assert f"wrote scenes: 4 subjects and the stimuli, 0.3 MB at {folder}" in capsys.readouterr().out
    assert names(folder) == {"stimuli.h5", "manifest.json", *(f"subj0{k}.h5" for k in range(1, 5))}
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    prepare(cfg)
    assert "already prepared" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert Subject(subject_path(cfg)).image_id.shape == (50,)
    assert stimuli_path(cfg).is_file()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    prepare(tiny(tmp_path))
    with pytest.raises(UserError, match=r"other settings \(world_seed: made with 7, asked for 8\).*paths.data"):
        prepare(tiny(tmp_path, world_seed=8))


def test_one_subject_alone_is_the_same_subject(tmp_path: Path) -> None:
    for name, subjects in (("a", ["subj02"]), ("b", ["subj01", "subj02"])):
        prepare(tiny(tmp_path / name, subjects=subjects))
    a, b = (Subject(tmp_path / name / "scenes" / "subj02.h5") for name in "ab")
    np.testing.assert_array_equal(a.voxels(np.arange(50)), b.voxels(np.arange(50)))
    assert a.mask_hash == b.mask_hash


def test_a_folder_of_other_origin_is_left_alone(tmp_path: Path) -> None:
    cfg = tiny(tmp_path)
    data_folder(cfg).mkdir()
    (data_folder(cfg) / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no manifest.json, so `nd prepare` did not write it"):
        prepare(cfg)
    assert names(tmp_path) == {"scenes", "mine.txt"}


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    cfg = tiny(tmp_path)
    path = prepare(cfg) / "subj03.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"subj03.h5 has 2000 bytes instead of \d+.*Remove"):
        prepare(cfg)


def piece(write: Any, name: str = "subj01.h5", **more: Any) -> Piece:
    return Piece(name, {"name": "x"}, write, **more)


def half_then_full_disk(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "data" / "scenes"
    with pytest.raises(
        UserError, match=r"cannot write .*scenes/subj01.h5: no space left on the device. Free some .* set paths.data"
    ):
        make_pieces(target, [piece(half_then_full_disk)], {})
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_can_be_resumed_keeps_its_hidden_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left"):
        make_pieces(tmp_path / "x", [piece(half_then_full_disk, resumable=True)], {})
    assert names(tmp_path) == {"x", ".subj01.h5.partial"}

    def finish(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b" and half")

    assert make_pieces(tmp_path / "x", [piece(finish, resumable=True)], {}) == ["subj01.h5"]
    assert (tmp_path / "x" / "subj01.h5").read_bytes() == b"half and half"


def test_finished_pieces_stay_when_a_later_one_fails(tmp_path: Path) -> None:
    pieces = [piece(lambda path: path.write_bytes(b"a"), "stimuli.h5"), piece(half_then_full_disk)]
    with pytest.raises(UserError, match="no space left"):
        make_pieces(tmp_path / "x", pieces, {})
    assert names(tmp_path) == {"x", "stimuli.h5", "manifest.json"}
    assert make_pieces(tmp_path / "x", [pieces[0], piece(lambda path: path.touch())], {}) == ["subj01.h5"]


def test_a_disk_that_is_too_small_is_seen_before_writing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"subj01.h5 needs 1000000.00 GB more, but only .* GB are free there"):
        make_pieces(tmp_path / "x", [piece(lambda path: pytest.fail("wrote"), n_bytes=10**15)], {})
    assert list(tmp_path.iterdir()) == []


def test_a_further_subject_joins_the_folder(tmp_path: Path) -> None:
    prepare(tiny(tmp_path, subjects=["subj01"]))
    before = (tmp_path / "scenes" / "subj01.h5").stat().st_mtime_ns
    prepare(tiny(tmp_path, subjects=["subj01", "subj02"]))
    assert {"subj01.h5", "subj02.h5"} <= names(tmp_path / "scenes")
    assert (tmp_path / "scenes" / "subj01.h5").stat().st_mtime_ns == before


def test_a_folder_of_an_earlier_format(tmp_path: Path) -> None:
    folder = prepare(tiny(tmp_path))
    (folder / "manifest.json").write_text('{"format": 1, "files": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"prepared by another version of nd \(format 1, now 2\). Remove it"):
        prepare(tiny(tmp_path))


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*data/scenes.*set paths.data to another folder"):
        prepare(tiny(tmp_path / "data"))


def test_a_folder_that_may_not_be_written(tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    forbid(tmp_path)
    with pytest.raises(UserError, match="Permission denied"):
        prepare(tiny(tmp_path / "data"))


def test_a_killed_prepare_leaves_nothing_final_and_the_same_command_finishes(tmp_path: Path) -> None:
    """SIGKILL while a file is written: only its hidden name is there; the next call starts it again."""
    code = f"""
import os, signal
from pathlib import Path
from nd.data.piece_records import recorded_hash
from nd.data.pieces import Piece, make_pieces
def fill(path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
make_pieces(Path({str(tmp_path / "scenes")!r}), [Piece("a", {{"name": "x"}}, fill)], {{}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert names(tmp_path) == {"scenes", ".a.partial"}
    assert make_pieces(tmp_path / "scenes", [piece(lambda path: path.touch(), "a")], {}) == ["a"]
    assert names(tmp_path) == {"scenes", "a", "manifest.json"}


def test_killed_between_record_and_rename(tmp_path: Path) -> None:
    """The manifest lists a file that has not got its name yet: it is simply made again."""
    make_pieces(tmp_path / "x", [piece(lambda path: path.write_bytes(b"all"))], {})
    (tmp_path / "x" / "subj01.h5").rename(tmp_path / "x" / ".subj01.h5.partial")
    assert make_pieces(tmp_path / "x", [piece(lambda path: path.write_bytes(b"all"))], {}) == ["subj01.h5"]


def test_two_writers_make_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writer finds the file done once it holds the lock, and writes nothing."""
    make_pieces(tmp_path / "scenes", [piece(lambda path: path.touch())], {})
    answers = iter([False, True])
    monkeypatch.setattr(pieces_module, "is_prepared", lambda *_: next(answers))
    assert make_pieces(tmp_path / "scenes", [piece(lambda path: pytest.fail("wrote twice"))], {}) == []


def test_voxels_with_nan_exit_code_2_names_the_file(tmp_path: Path) -> None:
    cfg = tiny(tmp_path)
    with edited(prepare(cfg) / "subj01.h5") as handle:
        handle["voxels"][7, 3] = np.nan
    with pytest.raises(UserError, match=r"subj01.h5: voxel 3 of trial 7 is nan"):
        Subject(subject_path(cfg)).voxels(np.array([7]))


def test_settings_that_make_no_experiment(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, n_voxels=3, image_size=8)
    with pytest.raises(UserError, match=r"data.n_voxels=3 is below 18; data.image_size=8 is below 32"):
        prepare(cfg)
    assert list(tmp_path.iterdir()) == []


def test_digits69_is_known_again_without_its_file(tmp_path: Path) -> None:
    file = noise_file(tmp_path / "digits.mat")
    prepare(digits(tmp_path, file))
    prepare(digits(tmp_path, ""))
    copy = tmp_path / "other.mat"
    copy.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"other settings \(file_sha256"):
        prepare(digits(tmp_path, copy))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data=digits69", "data.file=/nope"], "/nope"),
        (["paths.data={root}/file/data"], "cannot write"),
        (["data.n_voxels=3"], "data.n_voxels=3 is below 18"),
    ],
)
def test_the_verb_leaves_with_2_and_writes_nothing(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    arguments = [f"paths.root={tmp_path}", *(g.format(root=tmp_path) for g in given)]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == {"file"}


def test_the_recorded_hash_holds_for_an_untouched_file(tmp_path: Path) -> None:
    path = prepare(tiny(tmp_path)) / "subj01.h5"
    assert recorded_hash(path) == sha256_file(path)
    state = path.stat()
    with h5py.File(path, "r+") as handle:
        handle["voxels"][0, 0] = 7
    assert path.stat().st_size == state.st_size
    assert recorded_hash(path) is None, "written to since: its content must be hashed anew"
    (tmp_path / "alone.h5").write_bytes(b"x")
    assert recorded_hash(tmp_path / "alone.h5") is None
