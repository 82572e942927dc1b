"""Run folders: one writer, a status that can be trusted, inputs that are still the same, and a whole record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers_results import config

from nd.config import Config
from nd.config.application import compose
from nd.errors import UserError
from nd.files import read_json
from nd.locks import is_locked
from nd.runs import inputs, manifest
from nd.runs.folder import RunFolder, command_for, found

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from helpers_results import config
from pathlib import Path
from nd.runs.folder import RunFolder
cfg = config(Path(sys.argv[1]))
with RunFolder.open(cfg, "train").writing(cfg) as path:
    (path / "part-0").write_text("kept", encoding="utf-8")
    print("writing", flush=True)
    time.sleep(60)
"""
FORK = """
import os, sys, time
from pathlib import Path
from nd.locks import locked
with locked(Path(sys.argv[1]), "x"):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        time.sleep(60)
    os.read(read, 1)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return config(tmp_path)


@pytest.fixture
def data(cfg: Config) -> Path:
    """A file that `train` reads."""
    path = Path(cfg.paths.data) / cfg.data.name / "subj01.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"voxels")
    return path


def finish(cfg: Config, verb: str = "train", recorded: dict[str, str] | None = None) -> RunFolder:
    folder = RunFolder.open(cfg, verb)
    with folder.writing(cfg, recorded):
        pass
    return folder


def fail(folder: RunFolder, cfg: Config, error: Exception, recorded: dict[str, str] | None = None) -> None:
    """Write a part of a run, then raise."""
    with folder.writing(cfg, recorded) as path:
        (path / "part-0").write_text("kept", encoding="utf-8")
        raise error


def writer(root: Path) -> subprocess.Popen[str]:
    """Another process that writes the train run of the default configuration, and waits."""
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), str(tests)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_opening_writes_nothing(cfg: Config, tmp_path: Path) -> None:
    folder = RunFolder.open(cfg, "train")
    assert (folder.status, folder.done, folder.manifest, list(tmp_path.iterdir())) == ("new", False, {}, [])
    assert folder.path == tmp_path / "runs" / "train" / f"scenes-subj01-z-ridge-{folder.run_id}"


def test_a_run_is_done_at_its_end_and_not_before(cfg: Config) -> None:
    folder = RunFolder.open(cfg, "train")
    with folder.writing(cfg) as path:
        assert path == folder.path
        assert folder.status == "running"
    assert folder.done
    assert found(cfg, "train").path == folder.path


def test_the_record_is_whole(cfg: Config, data: Path) -> None:
    cfg.overrides = ["target=z", "trainer.devices=1"]
    folder = finish(cfg, recorded={"target z": "abc"})
    record = read_json(folder.path / "manifest.json")
    assert (folder.path / "overrides.txt").read_text(encoding="utf-8") == "target=z\ntrainer.devices=1\n"
    assert yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))["mapper"]["name"] == "ridge"
    assert record["inputs"] == {"target z": "abc"}
    vae = ["config.json", "diffusion_pytorch_model.safetensors"]  # the one part of the weights that z depends on
    assert sorted(Path(name).name for name in record["files"]) == [*vae, "subj01.h5"]
    assert record["seeds"] == {"seed": 42, "world_seed": 7}
    assert (record["oracle"], record["simulated"], record["control"], record["attempts"]) == (False, True, "none", 1)
    assert record["packages"]["numpy"] == __import__("numpy").__version__
    assert record["peak_memory_mb"]["resident"] > 10
    assert record["device"]["cpu_count"] == os.cpu_count()


def test_a_failure_leaves_its_traceback_and_can_be_retried(cfg: Config) -> None:
    folder = RunFolder.open(cfg, "train")
    with pytest.raises(ZeroDivisionError):
        fail(folder, cfg, ZeroDivisionError("division by zero"))
    assert folder.status == "failed"
    assert "ZeroDivisionError: division by zero" in (folder.path / "status").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"failed \(see .*status\)\. Run: nd train"):
        found(cfg, "train")
    with folder.writing(cfg):
        assert (folder.path / "part-0").read_text(encoding="utf-8") == "kept"
    assert folder.done
    assert folder.manifest["attempts"] == 2


def test_a_users_mistake_leaves_nothing_behind(cfg: Config) -> None:
    folder = RunFolder.open(cfg, "train")
    with pytest.raises(UserError, match="bad voxels"), folder.writing(cfg):
        raise UserError("bad voxels")
    assert not folder.path.exists()
    with pytest.raises(UserError, match="late"):
        fail(folder, cfg, UserError("late"))
    assert folder.status == "failed"  # with parts there, the folder is kept


def test_only_one_process_writes_and_a_kill_frees_the_folder(cfg: Config, tmp_path: Path) -> None:
    folder, process = RunFolder.open(cfg, "train"), writer(tmp_path)
    try:
        assert folder.busy
        with (
            pytest.raises(UserError, match=rf"is being written by process {process.pid} on .*, since"),
            folder.writing(cfg),
        ):
            pytest.fail("two writers")
        assert folder.status == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder.status, folder.busy) == ("running", False)
    with folder.writing(cfg) as path:
        assert (path / "part-0").exists()
    assert folder.done


def test_a_forked_child_does_not_keep_a_killed_writers_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", FORK, str(path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_locked(path)
        process.kill()
        process.wait()
        os.kill(child, 0)  # lives on
        assert not is_locked(path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_run_finished_meanwhile_is_not_written_again(cfg: Config) -> None:
    folder = finish(cfg)
    with pytest.raises(UserError, match="has meanwhile been finished"), folder.writing(cfg):
        pytest.fail("written twice")
    assert folder.done


def test_other_ranks_compute_but_record_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.runs.folder.is_rank_zero", lambda trainer: False)
    folder = RunFolder.open(cfg, "train")
    with folder.writing(cfg):
        assert not folder.path.exists()


def test_changed_inputs_are_named(cfg: Config) -> None:
    folder = finish(cfg, recorded={"target z": "old", "gone": "x"})
    assert folder.is_done({"target z": "old", "new": "y"})
    with pytest.raises(UserError, match=r"(?s)target z was old, is new.*remove that folder and run again: nd train"):
        folder.is_done({"target z": "new"})


def test_files_are_compared_by_content(cfg: Config, data: Path, tmp_path: Path) -> None:
    folder = finish(cfg)
    os.utime(data, ns=(1, 1))
    assert folder.is_done()
    cfg.paths.data = str(tmp_path / "moved")
    moved = data.parent.parent.rename(cfg.paths.data)
    assert RunFolder.open(cfg, "train").is_done()
    (moved / "scenes" / "subj01.h5").write_bytes(b"VOXELS")
    with pytest.raises(UserError, match=r"(?s)subj01\.h5 has other contents .*Give back the former inputs"):
        RunFolder.open(cfg, "train").is_done()


def test_weights_are_compared_by_content(cfg: Config, tmp_path: Path) -> None:
    cfg.backbone.weights = cfg.backbone.image_tower = str(tmp_path / "weights")
    weights = tmp_path / "weights" / "vae" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1")
    finish(cfg)
    weights.write_bytes(b"2")
    with pytest.raises(UserError, match=r"model\.safetensors has other contents"):
        found(cfg, "train")


@pytest.mark.parametrize(
    ("verb", "target", "generator", "kappa", "parts"),
    [
        ("train", "z", "", 1.0, {"vae"}),
        ("train", "c", "", 1.0, {"text_encoder"}),
        ("train", "g", "", 1.0, {"image_tower"}),
        ("train", "pixels", "", 1.0, set()),
        ("predict", "z", "", 1.0, set()),
        ("reconstruct", "z", "vae", 1.0, {"vae"}),
        ("reconstruct", "z", "guided_diffusion", 1.0, {"vae", "unet", "text_encoder", "image_tower"}),
        ("reconstruct", "z", "guided_diffusion", 0.0, {"vae", "unet", "text_encoder"}),
        ("reconstruct", "z", "mean_image", 1.0, set()),
    ],
)
def test_only_the_weights_that_are_used_count(
    cfg: Config, tmp_path: Path, verb: str, target: str, generator: str, kappa: float, parts: set[str]
) -> None:
    cfg.backbone.weights, cfg.backbone.image_tower = str(tmp_path), str(tmp_path / "image_tower")
    for part in ("vae", "unet", "text_encoder", "image_tower"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"1")
    cfg.target.name, cfg.method.generator, cfg.guidance.kappa = target, generator, kappa
    assert {path.parent.name for path in inputs.input_files(verb, cfg)} == parts


def test_an_unfinished_run_is_not_continued_from_other_inputs(cfg: Config) -> None:
    folder = RunFolder.open(cfg, "train")
    with pytest.raises(RuntimeError):
        fail(folder, cfg, RuntimeError(), {"target z": "old"})
    with (
        pytest.raises(UserError, match="holds an unfinished run from other inputs"),
        folder.writing(cfg, {"target z": "new"}),
    ):
        pytest.fail("mixed")
    assert (folder.path / "part-0").exists()


def test_fingerprints_follow_the_inputs_not_the_place(cfg: Config, data: Path, tmp_path: Path) -> None:
    first = finish(cfg, recorded={"target z": "1"}).fingerprint
    cfg.paths.runs = str(tmp_path / "elsewhere")
    assert finish(cfg, recorded={"target z": "1"}).fingerprint == first
    cfg.paths.runs = str(tmp_path / "third")
    assert finish(cfg, recorded={"target z": "2"}).fingerprint != first


def test_a_missing_run_says_what_to_run(cfg: Config) -> None:
    cfg.overrides = ["subject=subj01", "method.targets=[z,c]", "subject=subj02"]
    with pytest.raises(UserError, match=r"has not been run\. Run: nd predict subject=subj02 'method\.targets=\[z,c\]'"):
        found(cfg, "predict")
    assert command_for(cfg, "run", "table=") == "nd run subject=subj02 'method.targets=[z,c]' table="
    assert command_for(compose(["table="]), "run") == "nd run table="  # as it was typed


def test_without_a_checkout_there_is_no_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manifest, "PACKAGE_ROOT", tmp_path)
    assert manifest.git_state() == {}
    manifest._state_of.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert manifest.git_state() == {}


def test_a_foreign_repository_around_an_installed_package_is_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "lib" / "nd"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(manifest, "PACKAGE_ROOT", package)
    assert manifest.git_state() == {}
