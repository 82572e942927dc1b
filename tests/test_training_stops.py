"""What stops training: losses that are lost, no memory; and what is left then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import NETWORK, PARTS, SMALL, curve_of, finetuned, pretrained
from torch import Tensor

import nd.launch as launch
import nd.mappers.training.memory as memory
from nd.config import TrainerConfig
from nd.config.application import compose
from nd.errors import UserError
from nd.mappers.network.heads import TargetSlice
from nd.mappers.training.fit import Files
from nd.mappers.training.memory import training_bytes
from nd.mappers.training.module import MapperTraining
from nd.runs.folder import RunFolder
from nd.train import main, train


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    return [*linear_world, *SMALL, "target=c", "trainer.checkpoint_minutes=0"]


# ---- what stops training -------------------------------------------------------------------------------------------


def test_loss_that_is_lost_stops_with_the_last_good_state(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb says where, and exits with 2; the run has failed; the checkpoint is of the epoch before and goes on."""
    overrides = [*given, f"paths.runs={tmp_path}", "training.pretrain=false"]
    losses = MapperTraining.standardised

    def lost(self: MapperTraining, part: TargetSlice, target: Tensor) -> Tensor:
        is_time = self.trainer.training and self.current_epoch == 2 and self.global_step == 7
        return losses(self, part, target) * (float("nan") if is_time else 1)

    monkeypatch.setattr(MapperTraining, "standardised", lost)
    with pytest.raises(SystemExit) as stopped:
        main(overrides)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    folder = RunFolder.open(compose(overrides), "train")
    checkpoint = Files(folder.path, 0).checkpoint
    assert "not finite in step 1 of epoch 2 (7 steps were taken): c/tokens nan, c/contrast nan" in said
    assert f"The last good checkpoint is kept at {checkpoint}" in said
    assert "training.lr" in said
    assert folder.status == "failed"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    monkeypatch.setattr(MapperTraining, "standardised", losses)
    train(compose(overrides))
    assert [line["epoch"] for line in curve_of(folder.path)] == [0, 1, 2, 3]
    assert folder.status == "done"


@pytest.mark.parametrize("epoch", [1, 3])
def test_weights_lost_in_the_last_step_of_an_epoch_are_not_kept(
    given: list[str], epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was still finite; neither a checkpoint nor a result is made of them."""
    step = MapperTraining.optimizer_step

    def lost(self: MapperTraining, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        if self.current_epoch == epoch and args[1] == 2:
            next(iter(self.network.parameters())).data.fill_(float("inf"))

    monkeypatch.setattr(MapperTraining, "optimizer_step", lost)
    minutes = ["trainer.checkpoint_minutes=0", "trainer.checkpoint_minutes=9"][epoch == 3]
    cfg = compose([*given, minutes, "training.keep=last"])
    with pytest.raises(UserError, match=rf"weights are not finite at the end of epoch {epoch}.*subject_layers"):
        finetuned(cfg, tmp_path, "c")
    files = Files(tmp_path, 0)
    assert not files.has_result
    if epoch == 1:
        assert torch.load(files.checkpoint, weights_only=True)["epoch"] == 0


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError("Unable to allocate 3 GiB for an array"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] err == 0. DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def test_no_memory_says_what_it_takes_and_what_lowers_it(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Tensor:
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(MapperTraining, "training_step", full)
    wanted = r"not enough memory for this training\. Training takes about .*B: .* parameters .*network\.hidden=8"
    with pytest.raises(UserError, match=wanted) as caught:
        finetuned(compose(given), tmp_path / "a", "c")
    assert caught.value.__cause__ is OUT_OF_MEMORY[0]
    with pytest.raises(UserError, match=wanted):
        pretrained(compose(given), tmp_path / "b", "c")


def test_no_memory_is_told_by_the_error_or_the_traceback_of_another_process() -> None:
    from torch.multiprocessing import ProcessRaisedException

    text = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback\ntorch.OutOfMemoryError: CUDA out of memory."
    )
    assert all(memory.is_out_of_memory(error) for error in [*OUT_OF_MEMORY, ProcessRaisedException(text, 1, 7)])
    assert not memory.is_out_of_memory(ProcessRaisedException("KeyError: 'a'", 1, 7))
    assert not memory.is_out_of_memory(RuntimeError("shapes do not match"))


def test_other_errors_stay_what_they_are(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(MapperTraining, "training_step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        finetuned(compose(given), tmp_path, "c")


@pytest.mark.parametrize(("free", "warned"), [(1000, True), (10**12, False), (None, False)])
def test_too_little_memory_is_a_warning_before_training(
    given: list[str], free: int | None, warned: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    finetuned(compose([*given, "training.epochs=1"]), tmp_path, "c")
    assert ("less than training may take. Training takes about" in caplog.text) == warned


def test_processes_share_samples_and_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The estimate is of one process's samples; on the CPU those of the machine add up."""
    cfg = compose(["mapper=two_stage", "trainer.accelerator=cpu", "trainer.devices=3"])
    one = training_bytes(NETWORK, PARTS, {"a": 3}, 11).total
    for free, warned in ((3 * one, False), (3 * one - 1, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        with memory.within_memory(NETWORK, PARTS, {"a": 3}, 32, cfg):
            assert ("activations of 11 samples" in caplog.text) == warned


def test_launched_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")  # of whatever command
    trainer = TrainerConfig(devices=2, num_nodes=3)
    assert (launch.n_local(trainer), launch.n_processes(trainer)) == (2, 6)
    assert launch.n_local(TrainerConfig(devices=-1)) >= 1
