"""The whole chain as a user runs it, killed on the way, and given again when it is done."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_commands import ONE_ROW, environment, succeed
from numpy.typing import NDArray


def images_of(folder: Path) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Image ids and images of the one finished reconstruct run below a folder."""
    (path,) = folder.rglob("reconstruct/*/images.h5")
    with h5py.File(path) as file:
        return file["image_id"][:], file["images"][:]


def parts_of(folder: Path) -> list[Path]:
    """The finished batches below a folder."""
    return list(folder.rglob("part-*.h5"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 250) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "nothing was written in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed(*ONE_ROW, cwd=folder)
    return folder


def test_a_killed_run_resumes_to_identical_images(uninterrupted: Path, tmp_path: Path) -> None:
    """What comes before sampling is there already; processes that die there have tests of their own."""
    folder = tmp_path / "killed"
    shutil.copytree(uninterrupted, folder, ignore=shutil.ignore_patterns("reconstruct", "evaluate"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "nd", *ONE_ROW], cwd=folder, env=environment(), **quiet)
    wait_for(lambda: bool(parts_of(folder)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_before = len(parts_of(folder))
    assert n_before
    assert not list(folder.rglob("reconstruct/*/images.h5"))

    resumed = succeed(*ONE_ROW, cwd=folder)
    (ids, images), (wanted_ids, wanted) = images_of(folder), images_of(uninterrupted)
    assert f"{n_before} of {len(wanted_ids)} images are there already" in resumed.out + resumed.err
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(images, wanted)
    (scores,) = folder.rglob("evaluate/*/per_image.csv")
    (wanted_scores,) = uninterrupted.rglob("evaluate/*/per_image.csv")
    assert scores.read_bytes() == wanted_scores.read_bytes()


def test_the_same_command_again_does_nothing(uninterrupted: Path) -> None:
    def written() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file() and p.name != ".lock"}

    before = written()
    succeed(*ONE_ROW, cwd=uninterrupted)
    assert written() == before
