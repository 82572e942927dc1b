"""What `nd sweep` refuses, and what it makes of launchers: those that are missing, unsafe, or lose a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_commands import apart, nd
from helpers_sweeps import WORDS

from nd.config import Config
from nd.config import launchers as launching
from nd.config.application import compose
from nd.config.conf_files import conf_dir
from nd.config.launchers import launcher_problems, lost_job, wait_for_others
from nd.config.overrides import read
from nd.config.sweeps import Point, interval_problems
from nd.sweeps import launch as doing
from nd.sweeps.launch import Sweep
from nd.sweeps.listing import runs_of
from nd.sweeps.work import Jobs, Outcome


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["table="], "nothing to sweep: name a table"),
        (["demo", "scenes"], "one table was wanted, 2 were given: demo, scenes"),
        (
            ["table=", "guidance.kappa=interval(1,2)"],
            "guidance.kappa=interval(1,2): an interval is searched by nd tune alone; give values to try",
        ),
        (["table=", "guidance.kapa=1,2"], "Did you mean 'guidance.kappa'"),
        (["table=", "guidance.kappa=1,x"], "guidance.kappa"),
    ],
)
def test_what_is_no_sweep_is_refused(words: list[str], wanted: str, tmp_path: Path) -> None:
    done = nd("sweep", "experiment=scenes", *words, cwd=tmp_path)
    assert done.code == 2
    assert wanted in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sweeper", "refused"), [("basic", True), ("optuna", False), ("'optuna'", False)], ids=["basic", "own", "quoted"]
)
def test_an_interval_is_for_a_sweeper_that_takes_one(sweeper: str, refused: bool) -> None:
    reading = read(["guidance.kappa=interval(1,2)", f"hydra/sweeper={sweeper}"], [conf_dir()], multirun=True)
    assert bool(interval_problems("run", reading)) is refused


# ---- launchers


class GoneError(Exception):
    """What a launcher raises when it has lost a process."""


GoneError.__module__ = "joblib.externals"


def lost_runs(monkeypatch: pytest.MonkeyPatch, root: Path, launcher: str, killed: str) -> tuple[Sweep, list[list[str]]]:
    """A sweep whose launcher runs two jobs at once, of which one kills its process whenever it is begun."""
    launched: list[list[str]] = []
    words = [*WORDS, "table=", f"paths.root={root}", "method=random_image"]
    runs = runs_of([Point({"seed": str(k)}, compose([*words, f"seed={k}"])) for k in range(1, 6)])

    def launch(jobs: Jobs, n: int, overrides: Sequence[str], folder: Path) -> None:
        mine = [next(text for text in one if text.startswith("seed=")) for one in jobs.overrides]
        launched.append(mine)
        for first in range(0, n, 2):
            both = range(first, min(first + 2, n))
            for k in both:
                jobs.notes.lock(k).touch()
            if killed in [mine[k] for k in both]:
                raise GoneError
            for k in both:
                (jobs.notes.folder / f"{k}.json").write_text('{"state": "done"}', encoding="utf-8")

    monkeypatch.setattr(doing, "launch", launch)
    return Sweep(runs, [f"hydra/launcher={launcher}"], False, lambda line: None), launched


def test_a_job_that_loses_its_process_takes_no_other_run_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, launched = lost_runs(monkeypatch, tmp_path, "joblib", "seed=3")
    states = [one.state for one in ordered(sweep, sweep.do())]
    assert states == ["done", "done", "lost", "done", "done"]
    assert launched == [[f"seed={k}" for k in range(1, 6)], ["seed=3"], ["seed=4"], ["seed=5"]]


def test_on_a_cluster_a_lost_job_is_said_to_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, launched = lost_runs(monkeypatch, tmp_path, "submitit_slurm", "seed=5")
    assert [one.state for one in ordered(sweep, sweep.do())] == ["done"] * 4 + ["lost"]
    assert len(launched) == 1


def ordered(sweep: Sweep, outcomes: dict[str, Outcome]) -> list[Outcome]:
    return [outcomes[run.id] for run in sweep.runs]


def test_jobs_beside_a_lost_one_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those too that a cluster has not begun yet."""
    asked = iter([False, False, True, True])
    monkeypatch.setattr(launching, "LOOK_S", 0.0)
    other = SimpleNamespace(done=lambda: next(asked))

    class Launcher:
        def launch(self) -> None:
            jobs = [other, other]
            raise GoneError(len(jobs))

    with pytest.raises(GoneError) as raised:
        Launcher().launch()
    wait_for_others(raised.value)
    assert list(asked) == []


def test_only_what_launchers_raise_is_a_lost_process() -> None:
    assert lost_job(ZeroDivisionError()) is None
    assert "has lost its process" in str(lost_job(GoneError()))


@pytest.mark.parametrize(
    ("launcher", "package", "extra"),
    [
        ("joblib", "hydra-joblib-launcher", "sweep"),
        ("submitit_local", "hydra-submitit-launcher", "slurm"),
        ("submitit_slurm", "hydra-submitit-launcher", "slurm"),
    ],
)
def test_a_launcher_that_is_not_there_is_told_with_the_extra_that_installs_it(
    launcher: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_there", lambda module: False)
    words = ["table=", "seed=1,2", f"hydra/launcher={launcher}"]
    done = nd("sweep", "experiment=scenes", *words, cwd=tmp_path)
    assert done.code == 2
    assert package in done.err
    assert f"pip install nd[{extra}]" in done.err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda module: None)
    assert f"nd[{extra}]" in launcher_problems([f"hydra/launcher={launcher}"], [Config()])[0]


def test_the_extras_install_the_launchers() -> None:
    import tomllib

    declared = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = declared["project"]["optional-dependencies"]
    for package, _, extra in launching.PLUGINS.values():
        assert any(one.startswith(package) for one in extras[extra])
    assert any(one.startswith("optuna") for one in extras["tune"])


def test_an_unknown_launcher_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    words = ["sweep", "experiment=scenes", "table=", "seed=1,2", "hydra/launcher=joblibb"]
    done = apart(*words, cwd=tmp_path)  # Hydra's error is an OSError, after which a verb leaves without cleaning up
    assert done.returncode == 2
    assert "joblib" in done.stderr.replace("joblibb", "")
    assert list(tmp_path.iterdir()) == []


def of(*words: str) -> list[Config]:
    return [compose(["experiment=scenes", *words])]


@pytest.mark.parametrize(
    ("hydra", "words", "wanted"),
    [
        (["hydra/launcher=joblib"], ["trainer.devices=2"], "or give trainer.devices=1"),
        (["hydra/launcher=submitit_local"], ["trainer.devices=2"], "Leave hydra/launcher out"),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=4"],
            ["trainer.devices=2"],
            "Give as many tasks as devices",
        ),
    ],
)
def test_unsafe_settings_are_refused_with_the_alternative(hydra: list[str], words: list[str], wanted: str) -> None:
    (problem,) = launcher_problems(hydra, of("trainer.accelerator=cpu", *words))
    assert wanted in problem


def test_jobs_side_by_side_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_on_a_gpu", lambda cfg: True)
    (problem,) = launcher_problems(["hydra/launcher=joblib"], of())
    assert "hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1" in problem
    assert "trainer.accelerator=cpu" in problem
    assert launcher_problems(["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], of()) == []
    assert launcher_problems(["hydra/launcher=submitit_slurm"], of()) == []
    assert launcher_problems([], of("trainer.devices=2")) == []
