"""Jobs of a multirun that work on two devices: one run folder each, and no process but those that were asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers_commands import environment
from helpers_sweeps import WORDS, Place, copied
from helpers_training import SMALL

# Python runs it first of all in every process that is started.
NOTE_START = """
import json, os, sys
with open(os.environ["STARTED"], "a", encoding="utf-8") as file:
    file.write(json.dumps(sys.orig_argv[1:]) + "\\n")
"""
TWO = ["trainer.devices=2", "-m"]


@dataclass(frozen=True)
class Ended:
    """What a command printed, and the command lines of all processes of Python that it consisted of."""

    out: str
    started: list[list[str]]

    def having(self, word: str) -> int:
        """Return how many of them had a word."""
        return sum(word in words for words in self.started)

    @property
    def n_spawned(self) -> int:
        """How many were spawned by another one to do a part of its work."""
        return sum(any("spawn_main" in word for word in words) for words in self.started)


def watched(folder: Path, verb: str, *words: str) -> Ended:
    """Run a verb on CPUs in a process of its own, and note what is started by it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOTE_START, encoding="utf-8")
    own, started = environment(), folder / "started.txt"
    own |= {"PYTHONPATH": f"{folder}:{own['PYTHONPATH']}", "STARTED": str(started), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", f"nd.{verb}", *words, *TWO]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return Ended(done.stdout, [json.loads(line) for line in started.read_text(encoding="utf-8").splitlines()])


def finished(runs: Path, verb: str) -> int:
    """Return how many run folders of a verb there are, all of them finished."""
    statuses = [path / "status" for path in (runs / verb).iterdir()]
    assert {path.read_text(encoding="utf-8") for path in statuses} == {"done\n"}
    return len(statuses)


def check_started(ended: Ended, verb: str, swept: str, values: list[str], strategy: str) -> None:
    """Of the sweep there is one process; of each job there are two, however they come to be."""
    assert ended.having(swept) == 1
    if strategy == "ddp":  # a command of its own on each device, of that job alone
        assert [ended.having(value) for value in values] == [2, 2]
        assert ended.having(f"nd.{verb}") == 1 + 4
        assert ended.n_spawned == 0
    else:
        assert [ended.having(value) for value in values] == [0, 0]
        assert ended.having(f"nd.{verb}") == 1
        assert ended.n_spawned == 4


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_jobs_that_train_on_two_devices_relaunch_nothing(
    strategy: str, linear_world: list[str], tmp_path: Path
) -> None:
    few = ["training.pretrain=false", "training.epochs=1", "target=c", f"paths.runs={tmp_path / 'runs'}"]
    words = [*linear_world, *SMALL, *few, f"trainer.strategy={strategy}", "seed=1,2"]
    ended = watched(tmp_path / "command", "train", *words)
    assert ended.out.count("wrote 1 network at") == 2
    assert finished(tmp_path / "runs", "train") == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["train"]
    check_started(ended, "train", "seed=1,2", ["seed=1", "seed=2"], strategy)


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_jobs_that_reconstruct_on_two_devices_relaunch_nothing(
    strategy: str, decoded_scenes: Place, tmp_path: Path
) -> None:
    """Numbers of steps share no sampling, as kappas would; each job makes its own images."""
    there = copied(decoded_scenes, tmp_path)
    words = [*WORDS, "table=", *there.paths, "guidance.kappa=1"]
    ended = watched(tmp_path / "command", "reconstruct", *words, f"trainer.strategy={strategy}", "method.steps=2,3")
    assert ended.out.count("wrote 2 images at") == 2
    assert finished(tmp_path / "runs", "reconstruct") == 2
    check_started(ended, "reconstruct", "method.steps=2,3", ["method.steps=2", "method.steps=3"], strategy)
