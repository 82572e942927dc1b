"""Disturb every verb while it works, give the same command again, and compare with what nobody disturbed.

    PYTHONPATH=tests python tests/faults/disturb.py kill --number 200 --seed 0
    PYTHONPATH=tests python tests/faults/disturb.py all --number 40 --seed 0

A trial removes what a verb makes from a copy of a finished tree, runs the verb, disturbs it, runs the same command
again undisturbed, and compares every result: images, predictions, checkpoints, scores, tables. What is done to the
verb is one of DISTURBANCES; ``all`` takes them in turn.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from forked import Ended, Fork, counted_events, dies_at, ended, remember_compositions, started
from helpers_backbone import tiny_backbone
from helpers_training import SMALL as NETWORK
from helpers_training import write_world
from tree import Tree, finished

from nd.config.application import check
from nd.files import read_json, write_json
from nd.tables.specs import rows_of
from nd.verbs import OF_RUNS

Rng = np.random.Generator
MB = 1 << 20
NOBODY = 65534
BEING_WRITTEN = "is being written by"
# What a verb makes, removed before it is disturbed, and the words that it gets beside those of the tree.
MADE: dict[str, tuple[list[str], list[str]]] = {
    "prepare": (["data"], ["table="]),
    "extract": (["cache/targets"], ["table=", "target=all"]),
    "train": (["runs/train/*-z-ridge-*"], ["table=", "target=z"]),
    "predict": (["runs/predict/*-c_g_z-*"], ["table="]),
    "reconstruct": (["runs/reconstruct/*-neuraldiffuser*"], ["table="]),
    "evaluate": (["runs/evaluate/*-neuraldiffuser*", "cache/stimulus_features"], ["table="]),
    "run": (["runs", "cache"], []),
    "table": (["results/t.md", "results/t.csv"], []),
    "report": (["results/t.html"], []),
}
# Those whose results are in no finished table.
BESIDE = {
    "sweep": (["runs/reconstruct", "runs/evaluate"], []),
    "tune": ([], ["table=", "guidance.kappa=1,3"]),
    "roi": ([], ["table=", "rois=[V1,V2]"]),
    "show": ([], []),
    "log": ([], ["runs=all", "logger=csv"]),
    "clean": ([], ["apply=true"]),
}
NETWORKS = ("network",)  # a training step by step, on a tree of its own
ALL = [*MADE, *BESIDE, *NETWORKS]


@dataclass
class Lab:
    """A finished tree, its results, and how long each verb takes there and how many file operations it makes."""

    tree: Tree
    world: list[str]
    wanted: dict[str, Any]
    cost: dict[str, tuple[int, float]]
    logs: Path

    def words(self, tree: Tree, verb: str) -> list[str]:
        """The command line of a verb in a copy of the tree."""
        if verb in NETWORKS:
            own = [word for word in self.world if not word.startswith("paths.root=")]
            return ["train", *own, *NETWORK, "target=c", "trainer.checkpoint_minutes=0", f"paths.root={tree.root}"]
        if verb not in OF_RUNS:
            return [verb, *tree.words, *(MADE | BESIDE)[verb][1]]
        run = next((tree.root / "runs/reconstruct").glob("*-neuraldiffuser*")).name
        shown = [run, f"out={tree.root / 'results/shown'}"] if verb == "show" else []
        return [verb, *shown, *BESIDE[verb][1], f"paths.root={tree.root}"]

    @contextmanager
    def copy(self, verb: str) -> Iterator[Tree]:
        """A copy of the tree in which what a verb makes is missing."""
        if verb in NETWORKS:
            with Tree(self.logs / "world").copied() as copy:
                yield copy
            return
        with self.tree.copied() as copy:
            for pattern in (MADE | BESIDE)[verb][0]:
                for path in copy.root.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if verb == "clean":
                _leave_rubbish(copy.root)
            yield copy

    def wanted_of(self, verb: str) -> dict[str, Any]:
        """Results that a copy must have in the end."""
        return self.wanted[verb]


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _leave_rubbish(root: Path) -> None:
    """Leave what `nd clean` removes: a run of an earlier version, a half store, a temporary file."""
    run = next((root / "runs/reconstruct").iterdir())
    old = run.with_name(f"old-{'0' * 12}")
    shutil.copytree(run, old)
    content = read_json(old / "manifest.json")
    content["identity"]["schema"] = 1
    write_json(old / "manifest.json", content)
    for place in ("cache/targets/.rubbish.h5.partial", "results/.rubbish.1.tmp"):
        (root / place).write_bytes(bytes(9))
        os.utime(root / place, (1e9, 1e9))


def prepared(root: Path, verbs: list[str], made: Path | None = None) -> Lab:
    """Make the trees, or take a finished one, and measure every verb once, undisturbed."""
    logs = root / "logs"
    logs.mkdir(parents=True)
    remember_compositions(root / "compositions")
    tree = Tree(shutil.copytree(made, root / "lab")) if made else finished(root / "lab")
    world = write_world(logs / "world", tiny_backbone(logs / "weights"))
    lab = Lab(tree, world, {}, {}, logs)
    for verb in verbs:
        with lab.copy(verb) as copy:
            if verb not in OF_RUNS:  # reads what there is to read of conf/, which forks then find
                words = lab.words(copy, verb)
                check(words[0], words[1:], verb in ("sweep", "tune"), rows_of)
            begun = _processor_s()
            lab.cost[verb] = counted_events(lab.words(copy, verb), copy.root, logs / verb)
            spent, lab.wanted[verb] = _processor_s() - begun, copy.results()
            if verb in MADE and (other := _other(lab.wanted[verb], tree.results())):
                raise RuntimeError(f"nd {verb} does not give the same twice, undisturbed: {other}")
        n_events, took = lab.cost[verb]
        print(f"  {verb:<12} {n_events:6} file operations, {took:7.1f} s, {spent:5.1f} s of processors", flush=True)
    return lab


# ---- disturbances: each runs a verb in a copy of the tree, disturbs it, and returns how it ended


def killed_at_an_operation(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    number = int(rng.integers(1, lab.cost[verb][0] + 1))
    return ended(lab.words(tree, verb), tree.root, lab.logs / "x", dies_at(number, tree.root))


def _signalled(lab: Lab, verb: str, tree: Tree, rng: Rng, which: signal.Signals) -> Ended:
    fork = started(lab.words(tree, verb), tree.root, lab.logs / "x", _with_usual_signals)
    time.sleep(float(rng.uniform(0, lab.cost[verb][1])))
    _send(fork, which)
    return fork.wait()


def _with_usual_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _send(fork: Fork, which: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(fork.pid, which)


def killed_at_a_time(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    return _signalled(lab, verb, tree, rng, signal.SIGKILL)


def interrupted(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    return _signalled(lab, verb, tree, rng, signal.SIGINT)


def terminated(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    return _signalled(lab, verb, tree, rng, signal.SIGTERM)


def large_files_refused(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """As on a full disk: files larger than some size cannot be written."""
    size = int(10 ** rng.uniform(3.5, 6))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return ended(lab.words(tree, verb), tree.root, lab.logs / "x", limit)


def disk_full(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """A file system of its own that is nearly full; needs leave to mount one."""
    files = [path for path in tree.root.rglob("*") if path.is_file()]
    pages = sum(-(-path.stat().st_size // 4096) for path in files)  # they take whole ones
    room = int(4096 * pages + 10 ** rng.uniform(3.5, 6.5))
    place = tree.root.with_name("small")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room // 4096 * 4096}", "none", str(place)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        place.rmdir()
        return Ended(0, "", "cannot mount a file system here")
    try:
        small = place / "lab"
        shutil.copytree(tree.root, small)
        done = ended(lab.words(Tree(small), verb), small, lab.logs / "x")
        shutil.rmtree(tree.root)
        shutil.copytree(small, tree.root)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    return done


def read_only(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """Run by somebody who may read and not write."""
    for path in [tree.root, *tree.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    tree.root.parent.chmod(0o755)

    def become_nobody() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    done = ended(lab.words(tree, verb), tree.root, lab.logs / "x", become_nobody if os.getuid() == 0 else lambda: None)
    for path in [tree.root, *tree.root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return done


def out_of_memory(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    more = int(10 ** rng.uniform(6, 8.7))

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return ended(lab.words(tree, verb), tree.root, lab.logs / "x", limit)


def clock_jumps_back(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """Killed; by then the clock was a day ahead, so that everything that is there was written tomorrow."""
    killed = killed_at_an_operation(lab, verb, tree, rng)
    tomorrow = time.time_ns() + 86_400 * 10**9
    for path in tree.root.rglob("*"):
        state = path.stat()
        if path.is_file() and state.st_mtime_ns > time.time_ns() - 3_600 * 10**9:
            os.utime(path, ns=(tomorrow, tomorrow))
    return killed


def two_at_once(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    words = lab.words(tree, verb)
    first = started(words, tree.root, lab.logs / "x")
    time.sleep(float(rng.uniform(0, 0.5 * lab.cost[verb][1])))
    second = ended(words, tree.root, lab.logs / "y")
    one = first.wait()
    if not one.well and not second.well:
        return Ended(99, "", f"neither came to its end: {one.err} {second.err}")
    refused = [done for done in (one, second) if not done.well]
    if any(BEING_WRITTEN not in done.err and "meanwhile been finished" not in done.err for done in refused):
        return Ended(98, "", f"refused for another reason: {refused}")
    return one if one.well else second


def pipe_closed(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """Output goes to a program that has ended."""

    def close() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # that of a file would seek in the pipe
        os.close(reader)

    return ended(lab.words(tree, verb), tree.root, lab.logs / "x", close)


def worker_lost(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """A process that reads batches ahead is killed."""
    words = [*lab.words(tree, verb), "trainer.num_workers=1"]
    fork = started(words, tree.root, lab.logs / "x")
    end = time.monotonic() + 60
    while time.monotonic() < end and (mine := _children(fork.pid)) == []:
        if os.waitid(os.P_PID, fork.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.005)
    for pid in mine:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return fork.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(word) for word in text.read_text(encoding="ascii").split()]
    except OSError:
        return []


def half_copied(lab: Lab, verb: str, tree: Tree, rng: Rng) -> Ended:
    """Killed; of one of the files that it has left a half is gone."""
    before = {path for path in tree.root.rglob("*") if path.is_file()}
    killed = killed_at_an_operation(lab, verb, tree, rng)
    left = sorted(path for path in tree.root.rglob("*") if path.is_file() and path not in before)
    left = [path for path in left if path.stat().st_size > 1 and path.suffix in (".h5", ".safetensors", ".ckpt")]
    if left:
        path = left[int(rng.integers(len(left)))]
        os.truncate(path, path.stat().st_size // 2)
    return killed


DISTURBANCES: dict[str, Callable[[Lab, str, Tree, Rng], Ended]] = {
    "kill": killed_at_an_operation, "kill-late": killed_at_a_time, "interrupt": interrupted, "terminate": terminated,
    "large-files": large_files_refused, "disk-full": disk_full, "read-only": read_only, "memory": out_of_memory,
    "clock": clock_jumps_back, "two": two_at_once, "pipe": pipe_closed, "worker": worker_lost, "half": half_copied,
}  # fmt: skip
MAY_REFUSE = ("half",)  # what the message says is done then, and the command given once more
BY_DESIGN = {-signal.SIGKILL, -signal.SIGTERM, 0, 2, 130, 141}  # exit codes that a disturbed command may have


def trial(lab: Lab, what: str, verb: str, rng: Rng) -> tuple[str, str]:
    """Disturb a verb once; return the outcome and what was said."""
    with lab.copy(verb) as copy:
        first = DISTURBANCES[what](lab, verb, copy, rng)
        if first.bare and what != "memory":
            return "TRACEBACK", first.err[-1500:]
        again = ended(lab.words(copy, verb), copy.root, lab.logs / "z")
        if what in MAY_REFUSE and again.code == 2:
            _obey(copy, again.err)
            again = ended(lab.words(copy, verb), copy.root, lab.logs / "z")
        if not again.well:
            return "NOT RESUMED", f"{first.code}: {first.err[-300:]} then {again.code}: {again.err[-1200:]}"
        found, wanted = copy.results(), lab.wanted_of(verb)
        if other := _other(found, wanted):
            return "OTHER RESULT", f"{first.code}: {other}"
        if first.code not in BY_DESIGN and what != "memory":
            return "EXIT CODE", f"{first.code}: {first.err[-800:]}"
        return f"the same, after exit code {first.code}", ""


def _other(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


def _obey(tree: Tree, message: str) -> None:
    """Remove what a message says is of no use."""
    words = message.replace("\n", " ").split()
    for word in words:
        path = Path(word.rstrip(".,;:"))
        if path.is_absolute() and path.is_relative_to(tree.root) and path.exists() and path != tree.root:
            inside = path.relative_to(tree.root).parts
            gone = tree.root / Path(*inside[:3]) if inside[0] == "runs" else path
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
            return


def main() -> int:
    """Do what the command line says; the exit code is 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*DISTURBANCES, "all"])
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial; each has a seed of its own")
    parser.add_argument("--verbs", nargs="+", default=ALL, choices=ALL)
    parser.add_argument("--tree", type=Path, help="a finished tree that corrupt.py left; default: a new one")
    parser.add_argument("--show", action="store_true", help="print every outcome")
    given = parser.parse_args()
    counts = Counter[tuple[str, str]]()
    whats = list(DISTURBANCES) if given.what == "all" else [given.what]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lab = prepared(Path(folder) / "trees", given.verbs, given.tree)
        for n in range(given.first, given.first + given.number):
            what, verb = whats[n % len(whats)], given.verbs[n // len(whats) % len(given.verbs)]
            if what == "worker" and "network" in given.verbs:
                verb = "network"  # no other verb has loaders
            outcome, said = trial(lab, what, verb, np.random.default_rng([given.seed, n]))
            counts[what, outcome] += 1
            if given.show or outcome.isupper():
                print(f"{n}: {what} {verb}: {outcome}: {said}", flush=True)
    print(f"{given.number} disturbances from {given.first} on, seed {given.seed}, of {', '.join(given.verbs)}:")
    for (what, outcome), count in sorted(counts.items()):
        print(f"  {count:5} {what:<12} {outcome}")
    return int(any(outcome.isupper() for _, outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
