"""One of two processes is killed while it samples: nothing finished is lost or made again, and no image changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_backbone import tiny_backbone
from torch import Tensor
from torch.multiprocessing import ProcessExitedException

from nd.config import Config
from nd.config.application import compose, derive
from nd.errors import UserError
from nd.generate.base import Reconstructions
from nd.generate.guided_diffusion import GuidedDiffusion
from nd.lightning import plain_errors
from nd.reconstruct import reconstruct
from nd.runs.folder import RunFolder

N_TRAIN, N_TEST, SIZE = 8, 12, 16
SHAPES = {"z": (4, 4, 4), "c": (8, 16), "g": (6, 17, 16)}
IDS = list(range(N_TRAIN, N_TRAIN + N_TEST))
FIRST_PARTS = ["part-000008.h5", "part-000010.h5"]  # of two images each: the first of either process
ALONE = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """Decoded targets of 12 images for a tiny backbone: six batches, each of a fraction of a second."""
    weights = tmp_path / "backbone"
    tiny_backbone(weights)
    cfg = compose(
        [
            f"paths.root={tmp_path}", f"backbone.weights={weights}", f"backbone.image_tower={weights}/image_tower",
            f"backbone.image_size={SIZE}", f"backbone.tower_size={SIZE}", f"data.image_size={SIZE}",
            f"data.n_train={N_TRAIN}", "data.n_val=2", f"data.n_test={N_TEST}", "method.steps=10", "method.repeats=2",
            "guidance.kappa=0.5", "guidance.eta=1", "guidance.normalise=true", "trainer.accelerator=cpu",
            "trainer.batch_size=4", "trainer.progress=false",
        ]
    )  # fmt: skip
    write_predictions(cfg)
    return cfg


def write_predictions(cfg: Config) -> None:
    random, folder = np.random.default_rng(0), RunFolder.open(cfg, "predict")
    with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as file:
        file["image_id"] = IDS
        for name, shape in SHAPES.items():
            file[name] = random.standard_normal((N_TEST, *shape)).astype(np.float32)


@pytest.fixture
def started() -> Iterator[Callable[[Config], subprocess.Popen[str]]]:
    """Starts the command on two processes, in a group of its own that does not outlive the test."""
    running: list[subprocess.Popen[str]] = []

    def start(cfg: Config) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nd.reconstruct", *cfg.overrides, "trainer.devices=2"]
        running.append(subprocess.Popen(command, env=ALONE, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return running[-1]

    yield start
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def samplers(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of those that sample for a command, as the system lists them."""
    ps = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    rows = [line.split(maxsplit=2) for line in subprocess.check_output(ps, text=True).splitlines()]
    return [int(pid) for pid, parent, command in rows if int(parent) == process.pid and "spawn_main" in command]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], every_s: float) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(every_s)


@pytest.mark.slow
def test_a_killed_rank_costs_only_its_unfinished_batch(
    cfg: Config, tmp_path: Path, started: Callable[[Config], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (reconstruct(cfg) / "images.h5").read_bytes()
    again = derive(cfg, f"paths.runs={tmp_path / 'killed'}")
    write_predictions(again)
    folder = RunFolder.open(again, "reconstruct")
    parts = folder.path / "parts"

    command = started(again)
    wait_for(lambda: len(samplers(command)) == 2, command, every_s=0.3)
    victim = samplers(command)[-1]
    wait_for(lambda: all((parts / name).exists() for name in FIRST_PARTS), command, every_s=0.01)
    os.kill(victim, signal.SIGKILL)
    _, said = command.communicate(timeout=40)  # the other one is stopped instead of waited for
    assert command.returncode == 2
    assert "of this run was ended by SIGKILL" in said
    assert "the same command again goes on" in said
    assert "Traceback" not in said
    assert folder.status == "failed"
    assert not (folder.path / "images.h5").exists()

    kept = [i for path in sorted(parts.glob("part-*.h5")) for i in ids_of_whole(path)]
    assert {8, 9, 10, 11} <= set(kept) < set(IDS)
    made: list[int] = []
    monkeypatch.setattr(GuidedDiffusion, "__call__", noting(made))
    assert (reconstruct(again) / "images.h5").read_bytes() == whole
    assert made == [i for i in IDS if i not in kept]


def ids_of_whole(path: Path) -> list[int]:
    with h5py.File(path) as file:
        ids: list[int] = file["image_id"][:].tolist()
        assert file["images"][:].shape == (len(ids), 2, SIZE, SIZE, 3)
    return ids


def noting(made: list[int]) -> Callable[[GuidedDiffusion, Sequence[int], Mapping[str, Tensor]], list[Reconstructions]]:
    generate = GuidedDiffusion.__call__

    def call(self: GuidedDiffusion, ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        made.extend(ids)
        return generate(self, ids, features)

    return call


def test_a_process_that_leaves_without_an_error_is_named_too() -> None:
    message = r"process 1 of this run ended with exit code 3, .* same command again"
    with pytest.raises(UserError, match=message), plain_errors():
        raise ProcessExitedException("process 1 terminated with exit code 3", 1, 77, 3)
