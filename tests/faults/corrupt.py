"""Spoil the files of a finished table one by one, and count what readers and verbs make of it.

    PYTHONPATH=tests python tests/faults/corrupt.py readers --number 2000 --seed 0
    PYTHONPATH=tests python tests/faults/corrupt.py verbs --number 100 --seed 0

``readers`` reads each spoilt file by its reader. ``verbs`` has everything that is made of the file made again in a copy
of the tree, by command lines in forks of this process, and compares all results with those of the tree that nothing
was done to.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import readers
from corruption import ways_for
from forked import counted_events, ended, remember_compositions
from readers import equal, outcome, reader_of
from tree import Tree, finished

from nd.verbs import OF_RUNS

BAD = ("TRACEBACK", "SILENT", "FOREIGN WORDS")
STAGES = ("train", "predict", "reconstruct", "evaluate")
WARNED = re.compile(r"damaged|changed|computed again|is without|of no use|begins anew|has no", re.IGNORECASE)


def spoil(path: Path, rng: np.random.Generator, quietly: bool) -> str:
    """Spoil a file in one way of many; with ``quietly`` its time of change stays. Returns what was done."""
    ways, state = ways_for(path), path.stat()
    way = ways[int(rng.integers(len(ways)))]
    done = way(path, rng)
    if quietly and path.exists():
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return f"{way.__name__}: {done}" if done else ""


def try_readers(tree: Tree, numbers: range, seed: int, show: bool) -> Counter[str]:
    """Spoil files and read them; returns how often each outcome came."""
    readers.REFERENCE = tree
    places = [path.relative_to(tree.root) for path in tree.files(("data", "cache", "runs"))]
    places = [place for place in places if reader_of(place)]
    by_reader: dict[str, list[Path]] = {}
    for place in places:
        by_reader.setdefault(reader_of(place).__name__, []).append(place)
    wanted = {place: reader_of(place)(tree, place) for place in places}
    counts = Counter[str]()
    kinds = sorted(by_reader)
    with tree.copied() as copy:
        for n in numbers:
            rng = np.random.default_rng([seed, n])
            among = by_reader[kinds[n % len(kinds)]]
            place = among[int(rng.integers(len(among)))]
            path, read = copy.root / place, reader_of(place)
            while not (done := spoil(path, rng, quietly=bool(n % 2))):
                pass
            found, said = outcome(read, copy, place, wanted[place])
            counts[found] += 1
            if show or found in BAD:
                print(f"{n}: {found}: {place}: {done}: {said}", flush=True)
            _restore(tree.root / place, path)
    return counts


def _restore(whole: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    shutil.copy2(whole, path)


def try_verbs(tree: Tree, numbers: range, seed: int, show: bool) -> Counter[str]:
    """Spoil files and have everything made of them again; returns how often each outcome came."""
    wanted, counts = tree.results(), Counter[str]()
    places = [path.relative_to(tree.root) for path in tree.files()]
    groups: dict[tuple[str, ...], list[Path]] = {}
    for place in places:
        groups.setdefault((*place.parts[:2], place.suffix), []).append(place)
    keys = sorted(groups)
    with tree.copied() as copy:  # imports once what forks then find
        copy.forget("cache", *STAGES, "results")
        for verb in ("run", "table", "report"):
            counted_events([verb, *copy.words], copy.root, copy.root.parent / "said")
        assert equal(copy.results(), wanted), "the table does not come out the same twice, undisturbed"
    for n in numbers:
        rng = np.random.default_rng([seed, n])
        among = groups[keys[int(rng.integers(len(keys)))]]
        place = among[int(rng.integers(len(among)))]
        with tree.copied() as copy:
            while not (done := spoil(copy.root / place, rng, quietly=bool(n % 2))):
                pass
            found, said = _verbs(copy, place, wanted)
        counts[found] += 1
        if show or found in BAD:
            print(f"{n}: {found}: {place}: {done}: {said}", flush=True)
    return counts


def _verbs(tree: Tree, place: Path, wanted: dict[str, object]) -> tuple[str, str]:
    """Make again what is made of a file, list and show it; return the outcome and what was said."""
    tree.forget(*_made_of(place))
    said, refused, warned = [], False, False
    commands = [("run",), ("table",), ("report",), ("ls", f"paths.root={tree.root}"), ("doctor", "deep=true")]
    commands += [("show", str(run), f"paths.root={tree.root}") for run in sorted((tree.root / "runs").glob("*/*"))[:2]]
    for verb, *words in commands:
        given = words if verb in OF_RUNS else [*tree.words, *words]
        done = ended([verb, *given], tree.root, tree.root.parent / "said")
        if done.bare or done.code < 0:
            return "TRACEBACK", f"nd {verb}: {done.code}: {done.err[-1500:]}"
        if readers.FOREIGN(done.err):
            return "FOREIGN WORDS", done.err
        if done.code:
            said.append(f"nd {verb}: {(done.err or done.out).strip()[-400:]}")
            refused = refused or verb != "doctor"
        warned = warned or bool(WARNED.search(done.err))
    if refused:
        return "refused", " | ".join(said)
    found = tree.results()
    other = [name for name in {*found, *wanted} if not equal(found.get(name), wanted.get(name))]
    if other and (other != [str(place)] or not any(place.name in text for text in said)):  # else said and not used
        return "SILENT", f"{other} {said}"
    return ("the same, with a message" if said or warned else "the same"), " | ".join(said)


def _made_of(place: Path) -> tuple[str, ...]:
    """What is made again of a file, so that it is read."""
    if place.parts[0] == "data":
        return ("cache", *STAGES, "results")
    if place.parts[0] == "weights":  # nothing but what was made with them says what they were: images, of the UNet
        return ("evaluate", "results")
    if place.parts[0] == "cache":
        return (*STAGES, "results") if place.parts[1] == "targets" else ("evaluate", "results")
    return (*STAGES[STAGES.index(place.parts[1]) + 1 :], "results")


def main() -> int:
    """Do what the command line says; the exit code is 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("readers", "verbs"))
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first corruption; each has a seed of its own"
    )
    parser.add_argument("--tree", type=Path, help="a finished tree that an earlier call left; default: a new one")
    parser.add_argument("--show", action="store_true", help="print every outcome")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = given.tree or Path(folder) / "whole"
        if not root.exists():
            finished(root)
        tree = Tree(shutil.copytree(root, Path(folder) / "lab"))
        remember_compositions(Path(folder) / "compositions")
        numbers = range(given.first, given.first + given.number)
        counts = {"readers": try_readers, "verbs": try_verbs}[given.what](tree, numbers, given.seed, given.show)
    print(f"{given.number} corruptions from {given.first} on, seed {given.seed}, {given.what}:")
    for name, count in counts.most_common():
        print(f"  {count:6} {name}")
    return int(any(counts[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
