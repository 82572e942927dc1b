"""The whole chain as a user runs it, in processes of its own: every experiment small, and a run killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ND = [sys.executable, "-m", "nd"]
ONE_ROW = ["run", "experiment=scenes", "debug=fast", "table=", "trainer.batch_size=2", "trainer.progress=false"]


def nd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end, with files written below ``cwd``."""
    return subprocess.run([*ND, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}


def images_of(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Read the one finished reconstruct run below a folder."""
    (path,) = folder.rglob("reconstruct/*/images.h5")
    with h5py.File(path) as file:
        return path, file["image_id"][:], file["images"][:]


def parts_of(folder: Path) -> dict[str, int]:
    """Name the finished batches below a folder, with the time each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("part-*.h5")}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, "nothing was written in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = nd(*ONE_ROW, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_killed_run_resumes_to_identical_images(uninterrupted: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*ND, *ONE_ROW], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(parts_of(tmp_path)) >= 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = parts_of(tmp_path)
    assert before
    assert not list(tmp_path.rglob("reconstruct/*/images.h5"))

    resumed = nd(*ONE_ROW, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    _, ids, images = images_of(tmp_path)
    _, wanted_ids, wanted = images_of(uninterrupted)
    assert f"{len(before)} of {len(wanted_ids)} images are there already" in resumed.stdout + resumed.stderr
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(images, wanted)
    (scores,) = tmp_path.rglob("evaluate/*/per_image.csv")
    (wanted_scores,) = uninterrupted.rglob("evaluate/*/per_image.csv")
    assert scores.read_bytes() == wanted_scores.read_bytes()


def test_the_same_command_again_does_nothing(uninterrupted: Path) -> None:
    def written() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file() and p.name != ".lock"}

    before = written()
    again = nd(*ONE_ROW, cwd=uninterrupted)
    assert again.returncode == 0, again.stderr
    assert written() == before


@pytest.mark.parametrize("experiment", [path.stem for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))])
def test_every_experiment_runs_small(experiment: str, tmp_path: Path, digits69_file: Path | None) -> None:
    given = [f"experiment={experiment}", "debug=fast", "trainer.progress=false"]
    if experiment == "digits69":
        if digits69_file is None:
            pytest.skip("digit69_28x28.mat is not here; give its path in ND_DIGITS69")
        given.append(f"data.file={digits69_file}")
    one_row = experiment in ("nsd", "mindeye2")  # these have no table
    if one_row:  # no such data here: a simulated subject in their files, the small backbone
        made = nd("prepare", "data=scenes", f"layout={experiment}", "debug=fast", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        given += [f"data=scenes_{experiment}", "backbone=scenes"]
    for verb in ("run",) if one_row else ("run", "table", "report"):
        done = nd(verb, *given, cwd=tmp_path)
        assert done.returncode == 0, f"nd {verb}: {done.stdout}\n{done.stderr}"
    if one_row:
        assert len(list(tmp_path.rglob("evaluate/*/scores.json"))) == 1
        return
    written = {path.name for path in tmp_path.rglob("results/*")}
    assert {f"{experiment}.{suffix}" for suffix in ("md", "csv", "tex", "html", "png")} <= written


@pytest.mark.slow
def test_scenes_read_from_nsds_forms_gives_the_same_scores(tmp_path: Path) -> None:
    """One subject, as it is prepared and read back from both trees: the same chain, the same scores.

    MindEye2's betas are the voxels bit for bit; NSD's int16 betas move them by less than 1e-3.
    """
    row = ["run", "experiment=scenes", "debug=fast", "table=", "method=vae", "trainer.progress=false"]
    for layout in ("nsd", "mindeye2"):
        done = nd("prepare", "data=scenes", f"layout={layout}", "debug=fast", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    scores: dict[str, dict[str, float]] = {}
    for data in ("scenes", "scenes_nsd", "scenes_mindeye2"):
        done = nd(*row, f"data={data}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (path,) = tmp_path.rglob(f"evaluate/{data}-subj01-*/scores.json")
        summary = json.loads(path.read_text(encoding="utf-8"))
        assert summary["simulated"] is True
        scores[data] = {name: score["mean"] for name, score in summary["metrics"].items()}
    assert scores["scenes_mindeye2"] == pytest.approx(scores["scenes"], abs=1e-6)
    assert scores["scenes_nsd"] == pytest.approx(scores["scenes"], abs=0.01)
    assert scores["scenes"]["pixcorr"] > 0.05
