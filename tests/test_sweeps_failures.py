"""What a sweep makes of runs that fail and of processes that are lost, and which launchers it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_commands import apart, nd
from helpers_sweeps import WORDS, Place, breaking, copied

from nd.config import Config
from nd.config import launchers as launching
from nd.config.application import compose
from nd.config.launchers import launcher_problems, lost_job, wait_for_others
from nd.config.sweeps import Point
from nd.sweeps import launch as doing
from nd.sweeps.launch import Sweep
from nd.sweeps.listing import runs_of
from nd.sweeps.work import Jobs, Outcome


@pytest.fixture
def fresh(decoded_scenes: Place, tmp_path: Path) -> Place:
    return copied(decoded_scenes, tmp_path)


# ---- failures


FOUR = ["guidance.kappa=1,3", "guidance.eta=0.6,1"]


def test_a_failure_is_kept_at_once_and_the_others_go_on(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, statuses = list[str](), list[str]()

    class Late(list[str]):
        def append(self, name: str) -> None:
            statuses.extend(path.read_text("utf-8") for path in (fresh.own / "runs" / "evaluate").glob("*/status"))
            super().append(name)

    seen = Late()
    with monkeypatch.context() as patched:
        breaking(patched, "evaluate", {"1 1": ZeroDivisionError("by zero")}, seen)
        done = fresh.nd(*fresh.grid(*FOUR))
    assert seen == ["1 0.6", "1 1", "3 0.6", "3 1"]
    assert done.code == 1
    assert [text.partition("\n")[0] for text in statuses].count("failed") == 2  # as the third and fourth began
    assert "ZeroDivisionError: by zero\n" in next(text for text in statuses if text.startswith("failed"))
    summary = done.out[done.out.index("### Sweep") :]
    assert "guidance.kappa=1 guidance.eta=1: evaluate" in summary
    assert "    Traceback (most recent call last):" in summary
    assert "raise broken[name]\n    ZeroDivisionError: by zero" in summary
    assert "3 of 4 runs done, 1 failed, 0 not begun" in summary
    assert done.out.count("by zero") < 8
    before = {path: path.stat().st_mtime_ns for path in (fresh.own / "runs" / "evaluate").glob("*/scores.json")}
    again = fresh.succeed(*fresh.grid(*FOUR))
    assert "4 points, 4 runs: 3 done, 1 failed" in again.out
    assert "4 of 4 runs done, 0 failed" in again.out
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(before) == 3


def test_fail_fast_begins_nothing_more(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()
    breaking(monkeypatch, "evaluate", {"1 1": ZeroDivisionError("by zero")}, seen)
    done = fresh.nd(*fresh.grid(*FOUR, "fail_fast=true"))
    assert seen == ["1 0.6", "1 1"]
    assert done.code == 1
    assert "1 of 4 runs done, 1 failed, 2 not begun" in done.out


def test_what_stops_all_points_at_once_is_no_failure_of_each(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory together, say: they are sampled alone, and one that has not been tried is not called failed."""
    import nd.reconstruct as verb

    plain, tried = verb.make_images, list[int]()

    def make(cfgs: Sequence[Config], *rest: Any) -> Any:
        tried.append(len(cfgs))
        if len(cfgs) > 1 or len(tried) == 2:
            raise MemoryError("too much")
        return plain(cfgs, *rest)

    monkeypatch.setattr(verb, "make_images", make)
    done = fresh.nd(*fresh.grid(*FOUR, "fail_fast=true"))
    assert tried == [4, 1]
    assert "0 of 4 runs done, 1 failed, 3 not begun" in done.out
    assert "4 runs: 1 failed, 3 interrupted" in fresh.succeed(*fresh.grid(*FOUR, "dry_run=true")).out
    assert "4 of 4 runs done" in fresh.succeed(*fresh.grid(*FOUR)).out
    assert tried == [4, 1, 4, 1, 1, 1, 1]


def test_an_error_outside_of_every_step_takes_no_other_run_with_it(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nd.runs import chain

    plain = chain.check_finished

    def check(steps: Sequence[chain.Step]) -> None:
        if steps[-1].cfg.guidance.kappa == 3:
            raise LookupError("nowhere")
        plain(steps)

    monkeypatch.setattr(chain, "check_finished", check)
    done = fresh.nd(*fresh.grid("guidance.kappa=1,3", "guidance.eta=0.6"))
    assert done.code == 1
    assert "1 of 2 runs done, 1 failed" in done.out
    assert "    LookupError: nowhere" in done.out[done.out.index("### Sweep") :]


def test_a_logger_shows_the_points_as_one_group(fresh: Place) -> None:
    """The names are there before a run begins, as with `nd run -m`."""
    words = ["method=random_image", "seed=1,2"]
    fresh.succeed(*fresh.grid(*words, "logger=csv"))
    ((names),) = (fresh.own / "runs" / "groups").glob("*.json")
    (table,) = (fresh.own / "results").glob("sweep-*.md")
    assert names.stem == table.stem
    assert "seed=1" in names.read_text("utf-8")


# ---- launchers


class GoneError(Exception):
    """What a launcher raises when it has lost a process."""


GoneError.__module__ = "joblib.externals"


def lost_runs(
    monkeypatch: pytest.MonkeyPatch, there: Place, launcher: str, killed: str
) -> tuple[Sweep, list[list[str]]]:
    """A sweep whose launcher runs two jobs at once, of which one kills its process whenever it is begun."""
    launched: list[list[str]] = []
    words = [*WORDS, "table=", *there.paths, "method=random_image"]
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


def test_a_job_that_loses_its_process_takes_no_other_run_with_it(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, launched = lost_runs(monkeypatch, fresh, "joblib", "seed=3")
    states = [one.state for one in ordered(sweep, sweep.do())]
    assert states == ["done", "done", "lost", "done", "done"]
    assert launched == [[f"seed={k}" for k in range(1, 6)], ["seed=3"], ["seed=4"], ["seed=5"]]


def test_on_a_cluster_a_lost_job_is_said_to_be_lost(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, launched = lost_runs(monkeypatch, fresh, "submitit_slurm", "seed=5")
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

    declared = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    extras = declared["project"]["optional-dependencies"]
    for package, _, extra in launching.PLUGINS.values():
        assert any(one.startswith(package) for one in extras[extra])
    assert any(one.startswith("optuna") for one in extras["tune"])


def test_an_unknown_launcher_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    words = ["sweep", "experiment=scenes", "table=", "seed=1,2", "hydra/launcher=joblibb"]
    done = apart(
        *words, cwd=tmp_path
    )  # Hydra's error is an OSError, after which a verb leaves without further cleaning
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
