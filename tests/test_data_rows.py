"""Rows of a large matrix: any way of storing it, links to other files, bounded memory, damaged files."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from nd.data import rows as rows_module
from nd.data.rows import RowFile
from nd.data.subject import Subject
from nd.data.subject_file import SubjectTable, write_table
from nd.errors import UserError
from nd.hdf5 import allocate, bad_h5

SHAPE = (50, 7)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (8, 3)},
    "gzip": {"chunks": (50, 7), "compression": "gzip"},
    "float64": {"dtype": np.float64},
    "big-endian": {"dtype": ">f4"},
}


@pytest.mark.parametrize("how", STORAGE)
@pytest.mark.parametrize("block", [7 * 4 * 3, 1 << 20])
def test_rows_come_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, block: int
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", block)
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle.create_dataset("voxels", data=VALUES, **STORAGE[how])
    asked = np.random.default_rng(1).integers(0, 50, 80)
    reader = RowFile(tmp_path / "x.h5")
    found = reader.read(asked)
    np.testing.assert_array_equal(found, VALUES[asked])
    assert found.dtype == np.float32
    positions = np.concatenate([p for p, _ in reader.blocks(asked)])
    np.testing.assert_array_equal(np.sort(positions), np.arange(80))
    np.testing.assert_array_equal(np.sort(asked[positions]), asked[positions])
    assert reader.read(np.array([], int)).shape == (0, 7)


@pytest.mark.parametrize("rows", [[-1], [50], [3, 99]])
def test_rows_outside_the_file(tmp_path: Path, rows: list[int]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle["voxels"] = VALUES
    with pytest.raises(UserError, match=r"x.h5 has trials 0..49; asked for"):
        RowFile(tmp_path / "x.h5").read(np.array(rows))


def test_a_link_is_followed_and_a_broken_one_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "betas.hdf5", "w") as handle:
        handle["betas"] = VALUES
    with h5py.File(tmp_path / "view.h5", "w") as handle:
        handle["voxels"] = h5py.ExternalLink(str(tmp_path / "betas.hdf5"), "betas")
    reader = RowFile(tmp_path / "view.h5")
    assert reader.file == tmp_path / "betas.hdf5"
    np.testing.assert_array_equal(reader.read(np.array([3, 1])), VALUES[[3, 1]])
    (tmp_path / "betas.hdf5").unlink()
    with pytest.raises(UserError, match=r"view.h5 reads voxels from .*betas.hdf5, which is not there.*data.root"):
        RowFile(tmp_path / "view.h5")


def test_a_linked_file_that_has_changed(tmp_path: Path) -> None:
    betas = tmp_path / "betas.hdf5"
    with h5py.File(betas, "w") as handle:
        handle["betas"] = VALUES
    n, v = SHAPE
    zeros = np.zeros(n, int)
    table = SubjectTable(
        image_id=np.arange(n), session=zeros, repeat=zeros, trial=np.arange(n), ijk=np.zeros((v, 3), np.int16),
        attributes={"name": "subj01", "linked_bytes": betas.stat().st_size},
    )  # fmt: skip
    with h5py.File(tmp_path / "subj01.h5", "w") as handle:
        write_table(handle, "subj01", table)
        handle["voxels"] = h5py.ExternalLink(str(betas), "betas")
    np.testing.assert_array_equal(Subject(tmp_path / "subj01.h5").voxels(np.array([5])), VALUES[[5]])
    with h5py.File(betas, "a") as handle:
        handle["more"] = np.zeros(1000)
    with pytest.raises(UserError, match=r"betas.hdf5 has \d+ bytes, but had \d+ when .*subj01.h5 was prepared from it"):
        Subject(tmp_path / "subj01.h5")


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as handle:
        handle["voxels"] = np.arange(10)
    with pytest.raises(UserError, match=r"voxels is int64 \(10,\); wanted floats \(trials, voxels\)"):
        RowFile(path)
    with pytest.raises(UserError, match=r"x.h5 holds no betas"):
        RowFile(path, "betas")
    with h5py.File(path, "w") as handle:
        handle["voxels"] = np.zeros((1000, 100))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"x.h5 is not a whole HDF5 file .*truncated"):
        RowFile(path)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as handle:
        data = handle.create_dataset("voxels", data=VALUES, chunks=(10, 7), compression="gzip")
        offset, size = data.id.get_chunk_info(2).byte_offset, data.id.get_chunk_info(2).size
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x.h5 is damaged between trials 20 and 29"):
        RowFile(path).read(np.arange(20, 30))
    np.testing.assert_array_equal(RowFile(path).read(np.array([5, 45])), VALUES[[5, 45]])


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle["voxels"] = np.zeros((10_000, 100), np.float32)
    sent = pickle.dumps(RowFile(tmp_path / "x.h5"))
    assert len(sent) < 2000, "a pickled memory map would carry all values"
    assert pickle.loads(sent).read(np.array([9_999])).shape == (1, 100)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from nd.data.rows import RowFile
def resident_kb():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
reader = RowFile(Path(sys.argv[1]))
before, most = resident_kb(), 0
for _, values in reader.blocks(np.arange(reader.shape[0])):
    most = max(most, resident_kb())
print(most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_reading_everything_takes_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    """400 MB are read; pages of the map count as well, so they must not stay mapped."""
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        values = allocate(handle, "voxels", (50_000, 2000), np.dtype(np.float32))
        for start in range(0, 50_000, 5000):
            values[start : start + 5000] = 1.0
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.h5")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 * rows_module.BLOCK_BYTES / 1024


HOLD = "import h5py, sys, time\nhandle = h5py.File(sys.argv[1], 'r+')\nprint('open', flush=True)\ntime.sleep(60)"


def test_a_file_that_is_open_elsewhere_is_not_called_damaged(tmp_path: Path) -> None:
    betas, view = tmp_path / "betas.hdf5", tmp_path / "view.h5"
    with h5py.File(betas, "w") as handle:
        handle.create_dataset("betas", data=VALUES, chunks=(8, 3))
    with h5py.File(view, "w") as handle:
        handle["voxels"] = h5py.ExternalLink(str(betas), "betas")
    reader = RowFile(view)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(betas)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for ask in (lambda: RowFile(betas, "betas"), lambda: RowFile(view), lambda: reader.read(np.array([3]))):
            with pytest.raises(UserError, match=r"betas.hdf5 is open for writing elsewhere") as error:
                ask()
            assert "etch it again" not in str(error.value)
    finally:
        holder.kill()
        holder.wait()
    np.testing.assert_array_equal(reader.read(np.array([3])), VALUES[[3]])


def test_a_file_left_open_by_a_killed_program(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as handle:
        handle["voxels"] = VALUES
        handle.flush()
        (tmp_path / "x.h5").write_bytes((tmp_path / "open.h5").read_bytes())
    with pytest.raises(UserError, match="`h5clear -s` opens it again"):
        RowFile(tmp_path / "x.h5")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, code: int) -> None:
    text = f"Unable to open file (unable to lock file, errno = {code}, error message = '{os.strerror(code)}')"
    message = str(bad_h5(tmp_path, OSError(text)))
    assert "file system without locks" in message
    assert "HDF5_USE_FILE_LOCKING=FALSE" in message


def test_a_folder_or_a_link_to_nothing_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "link.h5").symlink_to(tmp_path / "gone.h5")
    with pytest.raises(UserError, match=r"folder.h5 is a folder; wanted a file"):
        RowFile(tmp_path / "folder.h5")
    with pytest.raises(UserError, match=r"link.h5 is a link to .*gone.h5, which is not there"):
        RowFile(tmp_path / "link.h5")
