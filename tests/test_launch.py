"""Roles of processes: what stands in the environment never decides them, unless a known launcher says it throughout."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_results import config
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.utils.data import DataLoader

from nd.config import TrainerConfig
from nd.config.application import check
from nd.errors import UserError
from nd.launch import away_from_launchers, environments, is_rank_zero, n_processes, process_settings, rank_of
from nd.lightning import lightning
from nd.runs.folder import RunFolder

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2",
    "SLURM_NODELIST": "localhost",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_UNIVERSE_SIZE": "2", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "9",
    "PMIX_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2",
}  # fmt: skip
OTHERS = {
    "NODE_RANK": "1", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "1",
    "MV2_COMM_WORLD_RANK": "1", "SLURM_JOB_NAME": "notebook", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "STANDALONE_PORT": "1", "PL_TRAINER_LIMIT_PREDICT_BATCHES": "0",
}  # fmt: skip
EVERYTHING = TORCHRUN | SRUN | MPIRUN | OTHERS
LEFT_BEHIND = [TORCHRUN, SRUN, MPIRUN, OTHERS, {"SLURM_PROCID": "1"}, {"RANK": "1"}, {"LOCAL_RANK": "1"}, EVERYTHING]


class Echo(LightningModule):
    """Notes the numbers of the process that predicts."""

    seen: tuple[int, int, bool] | None = None

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader([0], batch_size=None)

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.seen = (self.trainer.global_rank, self.trainer.world_size, self.trainer.is_global_zero)


def predict(cfg: TrainerConfig) -> tuple[int, int, bool] | None:
    module = Echo()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet["use_distributed_sampler"] = False  # there is one sample
    with lightning(cfg):
        trainer = Trainer(**process_settings(cfg), **quiet, enable_model_summary=False)
        trainer.predict(module, return_predictions=False)
    return module.seen


def surround(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in EVERYTHING:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def assignments(n: int) -> list[dict[str, str]]:
    """What launchers leave behind, and ``n`` further combinations of any values."""
    draw = random.Random(0)
    values = ["0", "1", "2", "-1", "", "x", "²", "29500"]
    names = sorted(EVERYTHING)
    some = [{name: draw.choice(values) for name in draw.sample(names, draw.randint(1, len(names)))} for _ in range(n)]
    pairs = [one | other for one, other in itertools.combinations(LEFT_BEHIND, 2)]
    return [*LEFT_BEHIND, *pairs, *some]


def test_one_device_is_one_whole_run_whatever_stands_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, variables in enumerate([*LEFT_BEHIND, *assignments(12)[-12:]]):
        surround(monkeypatch, variables)
        before = dict(os.environ)
        cfg = config(tmp_path / str(number))
        cfg.trainer.accelerator = "cpu"
        folder = RunFolder.open(cfg, "train")
        with folder.writing(cfg):
            assert predict(cfg.trainer) == (0, 1, True), variables
        assert folder.done, variables
        assert (folder.path / "manifest.json").is_file()
        assert dict(os.environ) == before  # of a notebook, say


def test_several_devices_are_numbered_by_who_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process of this command, or one of those that a launcher started, all of them of this command."""
    cfg = TrainerConfig(accelerator="cpu", devices=2)
    for variables in assignments(300):
        surround(monkeypatch, variables)
        settings = process_settings(cfg)
        assert (rank_of(cfg), settings["strategy"]) == (0, "ddp_spawn"), variables
        assert type(settings["plugins"][0]) is LightningEnvironment
        with away_from_launchers(cfg):
            environment = LightningEnvironment()
            assert (environment.local_rank(), environment.node_rank()) == (0, 0)
            assert not environment.creates_processes_externally
            assert environment.main_port > 1024


@pytest.mark.parametrize(("launcher", "kind"), [(TORCHRUN, TorchElasticEnvironment), (SRUN, SLURMEnvironment)])
def test_processes_of_a_launcher_join(
    launcher: dict[str, str], kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = TrainerConfig(accelerator="cpu", devices=2, num_nodes=2)
    surround(monkeypatch, launcher | MPIRUN)
    settings = process_settings(cfg)
    (environment,) = settings["plugins"]
    assert (rank_of(cfg), is_rank_zero(cfg), settings["strategy"], type(environment)) == (3, False, "ddp", kind)
    assert (environment.global_rank(), environment.world_size(), environment.local_rank()) == (3, 4, 1)
    with away_from_launchers(cfg):
        assert os.environ["MASTER_PORT" if launcher is TORCHRUN else "SLURM_PROCID"]
    for name in launcher.keys() - {"MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_NODELIST"}:
        with monkeypatch.context() as patch:  # it must say so throughout
            patch.delenv(name)
            assert rank_of(cfg) == 0, name
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert rank_of(cfg) == 0


def test_several_machines_want_a_launcher_or_a_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = TrainerConfig(accelerator="cpu", devices=2, num_nodes=2)
    surround(monkeypatch, MPIRUN | {"SLURM_PROCID": "1"})
    with pytest.raises(UserError, match="no launcher has started 2 processes on each of 2 machines"):
        process_settings(cfg)
    by_hand = {"NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    surround(monkeypatch, by_hand | {"LOCAL_RANK": "1", "RANK": "7"})
    assert (rank_of(cfg), process_settings(cfg)["strategy"]) == (2, "ddp_spawn")
    with away_from_launchers(cfg):
        assert {name: os.environ[name] for name in by_hand} == by_hand
        assert LightningEnvironment().local_rank() == 0


def test_any_surroundings_of_several_machines_are_a_rank_of_the_command_or_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever begins knows a rank that no launcher contradicts; who cannot know it is told what to do."""
    cfg, said = TrainerConfig(accelerator="cpu", devices=2, num_nodes=2), list[str]()
    everything = [*assignments(300), SRUN | OTHERS, TORCHRUN | SRUN]
    for variables in everything:
        surround(monkeypatch, variables)
        try:
            settings = process_settings(cfg)
        except UserError as error:
            said.append(str(error))
            continue
        assert rank_of(cfg) in range(4), variables
        assert (settings["devices"], settings["num_nodes"]) == (2, 2)
        if settings["strategy"] == "ddp":  # a launcher's process: what it says is what it is
            assert rank_of(cfg) == settings["plugins"][0].global_rank(), variables
        else:  # typed on each machine
            assert 0 <= int(variables["NODE_RANK"]) < 2, variables
    assert 200 < len(said) < len(everything) - 9, "both happen"
    assert all("no launcher has started 2 processes on each of 2 machines" in one for one in said)


def test_processes_that_this_command_starts_are_told_as_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the environment of this one; on several machines where the others are."""
    cfg = TrainerConfig(accelerator="cpu", devices=2, strategy="ddp")
    for variables in assignments(30):
        surround(monkeypatch, variables)
        first, second = environments(cfg)
        assert first["MASTER_PORT"] == second["MASTER_PORT"]
        for rank, told in enumerate((first, second)):
            with monkeypatch.context() as patch:
                surround(patch, {name: told[name] for name in EVERYTHING if name in told})
                (environment,) = process_settings(cfg)["plugins"]
                assert (rank_of(cfg), environment.global_rank(), environment.world_size()) == (rank, rank, 2)
    surround(monkeypatch, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    of_second = environments(TrainerConfig(accelerator="cpu", devices=2, num_nodes=2, strategy="ddp"))
    assert [one["RANK"] for one in of_second] == ["2", "3"]
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"], one["WORLD_SIZE"]) for one in of_second} == {
        ("10.0.0.7", "29500", "4")
    }
    surround(monkeypatch, {})
    with pytest.raises(UserError, match="no launcher has started 2 processes on each of 2 machines"):
        environments(TrainerConfig(accelerator="cpu", devices=2, num_nodes=2, strategy="ddp"))


SECOND_OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0",
}  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "predict", "prepare", "extract", "table"])
def test_a_verb_that_is_not_shared_out_is_started_once(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["experiment=scenes", "trainer.accelerator=cpu", "trainer.devices=2"]
    check(verb, given)
    surround(monkeypatch, SECOND_OF_TORCHRUN)
    said = rf"2 processes of this command were started by torchrun, but nd {verb} is not shared out among processes"
    with pytest.raises(UserError, match=said):
        check(verb, given)
    check(verb, given[:2])  # one device: what stands in the environment is of another command
    for shared in ("train", "reconstruct", "evaluate"):
        check(shared, [*given, "target=z"] if shared == "train" else given)


def test_all_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_processes(TrainerConfig(accelerator="cpu", devices=-1)) == 1
    assert n_processes(TrainerConfig(devices=-1, num_nodes=3)) == 3 * max(1, torch.cuda.device_count())


@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_a_device_that_is_not_there_is_a_message(accelerator: str) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=f"trainer.accelerator={accelerator}, but"):
        predict(TrainerConfig(accelerator=accelerator))


def test_what_lightning_refuses_is_a_message() -> None:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    with (
        pytest.raises(UserError, match="Lightning cannot work with these trainer settings: no such"),
        lightning(TrainerConfig()),
    ):
        raise MisconfigurationException("no such")


TWO_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[1])
from test_launch import TrainerConfig, predict
if __name__ == "__main__":
    predict(TrainerConfig(accelerator="cpu", devices=2))
    print("well")
"""


@pytest.mark.slow
def test_two_processes_start_beside_what_is_left_behind(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    left = {**EVERYTHING, "WORLD_SIZE": "7", "SLURM_NTASKS": "7", "SLURM_JOB_NAME": "python"}
    root = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(script), str(root)], env={**os.environ, **left, "PYTHONPATH": str(root.parent)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n"
