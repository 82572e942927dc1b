"""Several processes of one command: started, shown once, stopped together, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_commands import environment
from helpers_training import SMALL, curve_of

from nd.config.application import compose
from nd.errors import UserError
from nd.mappers.training.fit import Files
from nd.processes import run_processes
from nd.runs.folder import RunFolder

# What a process does by its rank; each writes its process id first.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from nd.errors import UserError
from nd.terminal import exit_with

rank, what = int(os.environ["RANK"]), sys.argv[2:]
Path(sys.argv[1], f"pid-{rank}").write_text(str(os.getpid()))


def answer():
    print("line of", rank, flush=True)
    print("whispered by", rank, file=sys.stderr, flush=True)
    match what[rank]:
        case "well":
            return 0
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "mistaken":
            raise UserError("voxels hold NaN\\nin row 7")
        case "broken":
            raise ZeroDivisionError("by zero")
        case "late":
            time.sleep(1)
            raise RuntimeError("connection closed by peer")
        case "interrupted":
            raise KeyboardInterrupt
        case "lost":
            sys.stderr.write("terminate called\\n")
            os._exit(3)
    time.sleep(600)


exit_with("work", answer)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Callable[..., list[int]]:
    """Runs one process for each word of what they do; returns their process ids."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")

    def run(*what: str) -> None:
        surroundings = [{**environment(), "RANK": str(rank)} for rank in range(len(what))]
        run_processes([sys.executable, str(script), str(tmp_path), *what], surroundings)

    return run


def left(folder: Path) -> list[int]:
    """Process ids of those that still live."""
    pids = [int(path.read_text(encoding="utf-8")) for path in folder.glob("pid-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_what_the_first_prints_is_shown_once(
    worker: Callable[..., None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    worker("well", "well")
    shown = capfd.readouterr()
    assert shown.out == "line of 0\n"
    assert shown.err == "whispered by 0\n"
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "kind", "wanted"),
    [
        (("wait", "killed"), UserError, "process 1 of this run was ended by SIGKILL, so the others were stopped"),
        (("killed", "wait"), UserError, "process 0 of this run was ended by SIGKILL"),
        (("late", "mistaken"), UserError, r"^voxels hold NaN\nin row 7$"),
        (("mistaken", "mistaken"), UserError, "^voxels hold NaN"),
        (("late", "broken"), RuntimeError, r"process 1 of this run failed: ZeroDivisionError: by zero\nTraceback"),
        (("wait", "interrupted"), KeyboardInterrupt, "^$"),
        (("wait", "lost"), RuntimeError, "process 1 of this run failed: terminate called"),
    ],
)
def test_one_that_stops_ends_all_with_what_explains_it(
    what: tuple[str, ...],
    kind: type[BaseException],
    wanted: str,
    worker: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said by whoever catches it, and nowhere else; nothing of the others stays."""
    monkeypatch.setattr("nd.processes.GRACE_S", 3.0)
    with pytest.raises(kind, match=wanted):
        worker(*what)
    assert "Traceback" not in capfd.readouterr().err
    assert left(tmp_path) == []


def test_they_end_with_whoever_watches_them(tmp_path: Path) -> None:
    """However it ends."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    code = (
        "import os, sys; from nd.processes import run_processes\n"
        "run_processes([sys.executable, *sys.argv[1:]], [{**os.environ, 'RANK': str(r)} for r in range(2)])"
    )
    words = [sys.executable, "-c", code, str(script), str(tmp_path), "wait", "wait"]
    watching = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(left(tmp_path)) == 2)
    watching.kill()
    watching.wait()
    wait_for(lambda: left(tmp_path) == [])


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_of_ddp_is_one_message_and_the_same_command_goes_on(
    linear_world: list[str], tmp_path: Path
) -> None:
    few = ["training.pretrain=false", "training.epochs=400", "trainer.checkpoint_minutes=0", "target=c"]
    given = [*linear_world, *SMALL, *few, f"paths.runs={tmp_path}", "trainer.devices=2", "trainer.strategy=ddp"]
    folder = RunFolder.open(compose(given), "train")
    files = Files(folder.path, 0)
    command = [sys.executable, "-m", "nd.train", *given]
    surroundings = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    running = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: files.checkpoint.exists() or running.poll() is not None, 200)
        victims = children(running.pid)
        assert len(victims) == 2, running.communicate()
        os.kill(victims[-1], signal.SIGKILL)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 2, err
    assert "of this run was ended by SIGKILL" in err
    said = [line for line in err.splitlines() if line.startswith("nd train:")]
    assert len([line for line in said if "warning" not in line]) == 1
    assert len(said) == len(set(said))
    assert "Traceback" not in err
    assert out == ""
    assert not folder.done
    assert not folder.busy
    seen = len(curve_of(folder.path))
    ended = [*given, f"training.epochs={seen + 3}"]  # another run: that its processes say things once
    done = subprocess.run(
        [sys.executable, "-m", "nd.train", *ended], env=surroundings, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 1 network at") == 1
    assert not any(word in done.stderr for word in ("GLOBAL_RANK", "distributed_backend", "GPU available", "Traceback"))


def children(pid: int) -> list[int]:
    """Process ids of the processes that another one has started, in that order."""
    ps = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True)
    pairs = [line.split() for line in ps.splitlines()]
    return sorted(int(one) for one, parent in pairs if int(parent) == pid)
