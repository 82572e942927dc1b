"""`nd train` of mapper=cycle leaves the same on several processes, killed and run again, and undisturbed on one."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from helpers_commands import apart
from helpers_training import N_TEST, N_TRAIN, write_store

from nd.config.application import compose
from nd.runs.folder import RunFolder
from nd.targets.store import store_path
from nd.train import train

SIDE = 8
CYCLE = [
    "method=nearest_image", "method.targets=[edge]", "target=edge", "mapper=cycle", "mapper.channels=4",
    "mapper.encode_steps=6", "mapper.decode_steps=6", "mapper.cycle_steps=6", "mapper.rate=1e-2", "mapper.batch=16",
    "trainer.accelerator=cpu", "trainer.progress=false",
]  # fmt: skip
SECOND = {  # what torchrun tells the second of two processes
    "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0",
}  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nd.train")
KILLED_IN_STAGE_3 = """
import os, signal, sys
from nd.mappers.cycle import mapper
from nd.train import main
stage_3 = mapper.cycle
def deadly(*given):
    stage_3(*given[:-1], lambda stage, step: step == 3 and os.kill(os.getpid(), signal.SIGKILL))
mapper.cycle = deadly
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    """The linear world, with maps of every image."""
    shared = [*linear_world, *CYCLE]
    maps = np.random.default_rng(5).random((N_TRAIN + N_TEST, SIDE * SIDE)).astype(np.float32)
    write_store(store_path(compose(shared)), "edge", maps, (SIDE, SIDE))
    return shared


@pytest.fixture(scope="module")
def alone(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return left_by([*given, f"paths.runs={tmp_path_factory.mktemp('alone')}"])


def left_by(overrides: list[str]) -> dict[str, bytes]:
    """Train, and return what the run folder holds of the mapper."""
    return kept_in(train(compose(overrides)))


def kept_in(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / "checkpoint").iterdir())
    assert [path.suffix for path in files] == [".json", ".safetensors"]
    return {path.name: path.read_bytes() for path in [*files, folder / "scores.json"]}


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_spawn"])
def test_two_devices_equal_one(given: list[str], alone: dict[str, bytes], strategy: str, tmp_path: Path) -> None:
    """Bit for bit: the command fits in one process whatever devices it is given."""
    two = ["trainer.devices=2", f"trainer.strategy={strategy}"]
    assert left_by([*given, *two, f"paths.runs={tmp_path}"]) == alone


def test_further_processes_of_a_launcher_write_nothing(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write into a folder that the first has locked, and clear away the scratch files of its fit."""
    cfg = compose([*given, "trainer.devices=2", f"paths.runs={tmp_path}"])
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    assert train(cfg) == RunFolder.open(cfg, "train").path
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torchrun_leaves_what_one_process_does(given: list[str], alone: dict[str, bytes], tmp_path: Path) -> None:
    overrides = [*given, "trainer.devices=2", f"paths.runs={tmp_path / 'runs'}"]
    done = apart(*overrides, cwd=tmp_path, program=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 1 mapper") == 1
    assert kept_in(RunFolder.open(compose(overrides), "train").path) == alone


def test_killed_and_run_again_equals_undisturbed(given: list[str], alone: dict[str, bytes], tmp_path: Path) -> None:
    """In the third stage; its minutes are not worth a checkpoint, so that all stages are done again."""
    overrides = [*given, f"paths.runs={tmp_path / 'runs'}"]
    done = apart(*overrides, cwd=tmp_path, program=("-c", KILLED_IN_STAGE_3))
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = RunFolder.open(compose(overrides), "train")
    assert (folder.status, folder.busy) == ("running", False)
    assert not (folder.path / "checkpoint").exists()
    assert left_by(overrides) == alone
