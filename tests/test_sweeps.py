"""`nd sweep`: what it lists, skips, resumes and retries; what a failure and a lost process leave; its launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
from helpers_commands import environment
from helpers_sweeps import N_POINTS, N_RUNS, WORDS, Place, breaking, copied, rows_of

from nd.config.application import compose
from nd.config.sweeps import Point
from nd.evaluation.scores import read_scores
from nd.locks import is_locked, locked
from nd.sweeps import launch as doing
from nd.sweeps.listing import runs_of


@pytest.fixture
def fresh(decoded_scenes: Place, tmp_path: Path) -> Place:
    return copied(decoded_scenes, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(decoded_scenes: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The whole table, done at once in this process. Read only."""
    whole = copied(decoded_scenes, tmp_path_factory.mktemp("undisturbed"))
    before = whole.files
    listing = whole.succeed(*whole.table, "dry_run=true")
    assert f"{N_POINTS} points, {N_RUNS} runs: {N_RUNS} missing; points that are the same run are done" in listing.out
    assert whole.files == before
    done = whole.succeed(*whole.table)
    assert f"{N_RUNS} of {N_RUNS} runs done, 0 failed, 0 not begun" in done.out
    (whole.own / "said.txt").write_text(done.out, encoding="utf-8")
    return whole


# ---- what is listed, skipped and done again


def test_the_table_holds_what_every_run_scored(undisturbed: Place) -> None:
    lines = [line for line in rows_of(undisturbed.csv) if line["metric"] == "pixcorr"]
    assert len(lines) == N_POINTS
    assert len({line["run"] for line in lines}) == len(undisturbed.done) == N_RUNS
    for line in lines:
        (folder,) = (undisturbed.own / "runs" / "evaluate").glob(f"*-{line['run']}")
        assert float(line["mean"]) == read_scores(folder).scores["pixcorr"].mean
    guided = {line["run"]: line["mean"] for line in lines if line["guidance.kappa"] not in ("", "0")}
    assert len(set(guided.values())) > len(guided) / 2  # guidance does something
    said = (undisturbed.own / "said.txt").read_text(encoding="utf-8")
    assert "points that are the same run were done once." in said
    assert all(line["run"] in said for line in lines)


def test_a_point_is_what_it_is_alone(undisturbed: Place, fresh: Place) -> None:
    fresh.succeed(
        "run", *WORDS, "table=", "method=neuraldiffuser_scenes", "guidance.kappa=3", "guidance.eta=1", *fresh.paths
    )
    (line,) = [
        line
        for line in rows_of(undisturbed.csv)
        if (line["metric"], line["guidance.kappa"], line["guidance.eta"]) == ("pixcorr", "3", "1")
    ]
    (alone,) = (fresh.own / "runs" / "evaluate").glob(f"*-{line['run']}")
    # Together and alone, sums are formed in other orders: single pixels may differ by one of 255.
    assert read_scores(alone).scores["pixcorr"].mean == pytest.approx(float(line["mean"]), abs=1e-3)


def test_what_is_done_is_not_done_again(undisturbed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, seen = copied(undisturbed, tmp_path), list[str]()
    breaking(monkeypatch, "evaluate", {}, seen)
    before = there.done
    done = there.succeed(*there.table)
    assert f"{N_RUNS} runs: {N_RUNS} done" in done.out
    assert seen == []
    assert there.done == before
    assert there.csv == undisturbed.csv


def test_a_listing_says_how_far_each_run_is_and_writes_nothing(undisturbed: Place, tmp_path: Path) -> None:
    there = copied(undisturbed, tmp_path)
    missing, failed, killed, busy = (f"kappa {k}, eta {eta}" for k, eta in ((1, 0.6), (1, 0.8), (3, 0.8), (3, 1)))
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nZeroDivisionError: by zero\n'
    for label, status in ((missing, None), (failed, f"failed\n{trace}"), (killed, "running\n"), (busy, "running\n")):
        path = there.folder(label).path / "status"
        path.write_text(status, encoding="utf-8") if status else path.unlink()
    before = there.files
    with locked(there.folder(busy).lock, "it"):
        before = there.files
        done = there.succeed(*there.table, "dry_run=true")
    assert there.files == before
    listed = {line[:12]: line for line in done.out.splitlines()}
    wanted = {missing: "missing", failed: "failed", killed: "interrupted", busy: "being computed"}
    for label in there.configs:
        line = listed[there.folder(label).run_id]
        assert f"{label} (subj01)" in line
        assert f"  {wanted.get(label, 'done')}" in line
    assert "11 runs: 7 done, 1 being computed, 1 failed, 1 interrupted, 1 missing" in done.out
    assert f"{failed} (subj01) failed: ZeroDivisionError: by zero" in done.out


def test_costs_are_those_of_finished_runs(undisturbed: Place, tmp_path: Path) -> None:
    """By the manifests: a unit is a sample of a step, a guided one counts more, so twice the repeats cost twice."""
    there = copied(undisturbed, tmp_path)
    guided = [label for label in there.configs if "eta 0.6" in label]
    for label in there.configs:
        if label not in guided:
            for verb in ("reconstruct", "evaluate"):
                (there.folder(label, verb).path / "status").unlink(missing_ok=True)
    manifests = [there.folder(label, "reconstruct").manifest for label in guided]
    once = median(one["seconds"] / one["execution"]["together"] for one in manifests)
    scoring = median(there.folder(label).manifest["seconds"] for label in guided)
    from nd.runs.catalogue import known_runs
    from nd.sweeps.cost import costs, kind_of, rates, units

    cfg = there.configs[guided[0]]
    words = [text for text in cfg.overrides if not text.startswith("method.repeats")]
    twice = compose([*words, "method.repeats=2"])
    known = known_runs(tmp_path / "runs")
    (run,) = runs_of([Point({}, compose([*twice.overrides, "table="]))])
    assert costs([run], known)[run.id] == pytest.approx(2 * once + scoring)
    assert units("reconstruct", twice) == 2 * units("reconstruct", cfg)
    found = there.succeed(*there.grid("guidance.kappa=1,5", "guidance.eta=0.6", "dry_run=true")).out
    assert "2 points, 2 runs: 1 done, 1 missing" in found
    assert kind_of("evaluate", cfg) in rates(known)
    other = there.succeed(*there.grid("method=random_image", "seed=1,2", "dry_run=true")).out
    assert "of 2 runs none of their kind has finished here, so their cost is not known" in other


def test_a_mapper_that_nobody_needs_any_more_costs_nothing(undisturbed: Place, tmp_path: Path) -> None:
    there = copied(undisturbed, tmp_path)
    whole = there.succeed(*there.grid("guidance.kappa=5,7", "dry_run=true")).out
    for status in (tmp_path / "runs" / "train").glob("*/status"):
        status.unlink()
    assert there.succeed(*there.grid("guidance.kappa=5,7", "dry_run=true")).out == whole


def test_finished_runs_of_other_inputs_are_failures(undisturbed: Place, tmp_path: Path) -> None:
    there = copied(undisturbed, tmp_path)
    (there.folder("mean image", "reconstruct").path / "images.h5").write_bytes(b"other")
    done = there.nd(*there.table)
    assert done.code == 1
    assert f"FAILED {there.folder('mean image').run_id} mean image (subj01): " in done.out
    assert f"{N_RUNS - 1} of {N_RUNS} runs done, 1 failed" in done.out


# ---- two at once


def test_a_run_that_another_process_makes_is_left_to_it(
    undisturbed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others come first; then it is waited for, and nothing is said to have failed."""
    there, label = copied(undisturbed, tmp_path), "kappa 3, eta 1"
    folder, seen = there.folder(label), list[str]()
    (folder.path / "status").write_text("running\n", encoding="utf-8")
    (there.folder("kappa 1, eta 1").path / "status").unlink()
    breaking(monkeypatch, "evaluate", {}, seen)
    code = (
        "import sys, time; from pathlib import Path; from nd.locks import locked\n"
        "folder = Path(sys.argv[1])\n"
        "with locked(folder / '.lock', 'it'):\n"
        "    print('held', flush=True); sys.stdin.readline(); (folder / 'status').write_text('done\\n')"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        waited = list[float]()

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 2 and other.stdin is not None:
                other.stdin.write("\n")
                other.stdin.flush()
            PAUSE(seconds)

        monkeypatch.setattr(doing, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        done = there.succeed(*there.table)
    finally:
        other.kill()
        other.communicate()
    assert f"waiting for 1 runs that other processes are making: {folder.run_id}" in done.out
    assert seen == ["1 1"]
    assert len(waited) >= 2
    assert f"{N_RUNS} of {N_RUNS} runs done, 0 failed" in done.out
    assert there.csv == undisturbed.csv


PAUSE = time.sleep


def test_two_sweeps_at_once_share_the_work(undisturbed: Place, fresh: Place) -> None:
    command = [sys.executable, "-m", "nd", *fresh.table]
    other = subprocess.Popen(command, cwd=fresh.own, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: bool(working(fresh)), other)
        other.send_signal(signal.SIGSTOP)
        listing = fresh.succeed(*fresh.table, "dry_run=true").out
        other.send_signal(signal.SIGCONT)
        own = fresh.succeed(*fresh.table)
        said, _ = other.communicate(timeout=120)
    finally:
        other.kill()
        other.wait()
    assert other.returncode == 0, said
    assert " being computed" in listing
    for out in (listing, own.out, said):
        assert "FAILED" not in out
        assert "failed:" not in out
    for out in (own.out, said):
        assert f"{N_RUNS} of {N_RUNS} runs done, 0 failed, 0 not begun" in out
    assert fresh.csv == undisturbed.csv


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 550) -> None:
    """Wait until something is so; fail where a process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


# ---- launchers

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}


def processes_of(parent: int) -> list[int]:
    """Return the descendants of a process."""
    ps = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True)
    children: dict[int, list[int]] = {}
    for pid, above in (map(int, line.split()) for line in ps.splitlines()):
        children.setdefault(above, []).append(pid)
    found, left = list[int](), [parent]
    while left:
        left += (own := children.get(left.pop(), []))
        found += own
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_that_was_disturbed_in_every_way_is_completed_exactly(
    launcher: str, undisturbed: Place, fresh: Place
) -> None:
    """One job fails at run time, one process is killed, then the launcher."""
    broken = fresh.folder("kappa 1, eta 0.8")
    (broken.path / "per_image.csv").mkdir(parents=True)  # which then cannot be written
    jobs = LAUNCHERS[launcher]
    said = fresh.own / "said.txt"
    command, left = [sys.executable, "-m", "nd", *fresh.table, *jobs], set[int]()
    with open(said, "w", encoding="utf-8") as out:
        sweep = subprocess.Popen(command, cwd=fresh.own, env=environment(), stdout=out, stderr=out, text=True)
    try:
        wait_for(lambda: broken.failed, sweep)
        assert "IsADirectoryError" in broken.traceback
        wait_for(lambda: bool(victims := working(fresh)) and not left.add(victims[0]), sweep)
        (victim,) = left
        n_before = len(fresh.done)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(fresh.done) >= n_before + 2, sweep)
        left |= set(processes_of(sweep.pid))
        sweep.kill()
        sweep.wait()
        assert "FAILED" in said.read_text(encoding="utf-8")
        assert ("LOST" in said.read_text(encoding="utf-8")) == (launcher != "joblib")  # which begins it again at once
        before = fresh.done
        assert n_before + 2 <= len(before) < N_RUNS - 1
    finally:
        sweep.kill()
        for pid in left:
            kill(pid)
    before = fresh.done
    listing = fresh.succeed(*fresh.table, "dry_run=true").out
    assert f"{len(before)} done" in listing
    assert "1 failed" in listing
    (broken.path / "per_image.csv").rmdir()
    done = fresh.succeed(*fresh.table, *jobs)
    assert f"{N_RUNS} of {N_RUNS} runs done, 0 failed, 0 not begun" in done.out
    ended = [line for line in done.out.splitlines() if " done (" in line]
    assert len(ended) == N_RUNS - len(before)  # the missing ones, each once
    assert {label: when for label, when in fresh.done.items() if label in before} == before
    assert fresh.csv == undisturbed.csv


def working(there: Place) -> list[int]:
    """Process ids of those that make a run of the table."""
    import json

    found = []
    for path in (there.own / "runs" / "reconstruct").glob("*/.lock"):
        if is_locked(path) and (text := path.read_text(encoding="utf-8")):
            found.append(int(json.loads(text)["pid"]))
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_submitit_s_local_executor_gives_the_same_table(undisturbed: Place, fresh: Place) -> None:
    done = fresh.succeed(*fresh.table, "hydra/launcher=submitit_local")
    assert f"{N_RUNS} of {N_RUNS} runs done, 0 failed" in done.out
    assert fresh.csv == undisturbed.csv
    (line,) = [
        line
        for line in rows_of(fresh.csv)
        if (line["metric"], line["guidance.kappa"], line["guidance.eta"]) == ("pixcorr", "3", "1")
    ]
    assert f"{float(line['mean']):.3f} [" in done.out  # scores reach the terminal
