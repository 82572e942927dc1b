"""Sweeps over guidance on Scenes in the smallest size: a world prepared and decoded once, and runs beside it."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from helpers_commands import Done, nd, succeed

from nd.config.application import compose
from nd.config.schema import Config
from nd.run import entries_of
from nd.runs.folder import RunFolder

WORDS = [
    "experiment=scenes", "debug=fast", "debug.limit_images=2", "debug.limit_grid=0", "data.subjects=[subj01]",
    "protocol.brain=[]", "protocol.network=none", "method.repeats=1", "trainer.accelerator=cpu",
    "trainer.progress=false",
]  # fmt: skip
# Of two steps eta below .5 guides none, so these 24 points are 10 runs; a mean image knows no method.steps.
TABLE = """
title: Guidance
experiment: scenes
subjects: [subj01]
rows:
  - {label: mean image, role: floor, overrides: [method=mean_image]}
  - label: kappa {kappa}, eta {eta}
    overrides: [method=neuraldiffuser_scenes]
    grid: {guidance.kappa: [0, 1, 3, 10], guidance.eta: [0.1, 0.2, 0.4, 0.6, 0.8, 1]}
"""
N_POINTS, N_RUNS = 25, 11


@dataclass(frozen=True)
class Place:
    """Runs and results of their own, over data and features that all share."""

    root: Path
    own: Path

    @property
    def paths(self) -> list[str]:
        """Overrides that mean this place."""
        return [f"paths.root={self.root}", f"paths.runs={self.own / 'runs'}", f"paths.results={self.own / 'results'}"]

    @property
    def table(self) -> list[str]:
        """The words of a sweep over the table."""
        return ["sweep", str(self.root / "guidance.yaml"), *WORDS, *self.paths, "method.steps=4"]

    def grid(self, *words: str) -> list[str]:
        """Return the words of a sweep without a table."""
        return ["sweep", *WORDS, "table=", *self.paths, *words]

    def nd(self, *words: str) -> Done:
        """Run a command in this process."""
        return nd(*words, cwd=self.own)

    def succeed(self, *words: str) -> Done:
        """Run a command in this process; fail where it fails."""
        return succeed(*words, cwd=self.own)

    @cached_property
    def configs(self) -> dict[str, Config]:
        """The configuration of every run of the table, by the label of its first point."""
        cfg = compose([*WORDS, f"table={self.root / 'guidance.yaml'}", *self.paths])
        found = {RunFolder.open(entry.cfg, "evaluate").run_id: entry for entry in reversed(entries_of(cfg))}
        return {entry.row.label: entry.cfg for entry in reversed(found.values())}

    def folder(self, label: str, verb: str = "evaluate") -> RunFolder:
        """Return the folder of a run of the table."""
        return RunFolder.open(self.configs[label], verb)

    @property
    def done(self) -> dict[str, int]:
        """When every finished run of the table was finished, in ns, by its label."""
        folders = {label: self.folder(label) for label in self.configs}
        return {label: (folder.path / "status").stat().st_mtime_ns for label, folder in folders.items() if folder.done}

    @property
    def csv(self) -> str:
        """The one table of a sweep that was written."""
        (path,) = (self.own / "results").glob("sweep-*.csv")
        return path.read_text(encoding="utf-8")

    @property
    def files(self) -> dict[Path, int]:
        """Every file, with the time of its last change."""
        return {path: path.stat().st_mtime_ns for path in sorted(self.own.rglob("*"))}


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    return list(csv.DictReader(io.StringIO(text)))


def decoded(there: Place, *words: str) -> Place:
    """Prepare, extract, train and predict, so that a place has all that comes before guidance; returns it."""
    there.succeed("run", *WORDS, "table=", "guidance.kappa=0", *there.paths, *words)
    for verb in ("reconstruct", "evaluate"):
        shutil.rmtree(there.own / "runs" / verb)
    return there


def decoded_world(root: Path) -> Place:
    """Make the data that all places share, and the table's spec, below ``root``."""
    (root / "guidance.yaml").write_text(TABLE, encoding="utf-8")
    return decoded(Place(root, root))


def copied(there: Place, own: Path) -> Place:
    """Return a place with all the runs of another one."""
    shutil.copytree(there.own / "runs", own / "runs")
    return Place(there.root, own)


def breaking(monkeypatch: pytest.MonkeyPatch, verb: str, broken: dict[str, BaseException], seen: list[str]) -> None:
    """Let a verb raise for runs whose ``kappa eta`` is named, in this process; those that it is asked for are noted."""
    import importlib

    module = importlib.import_module(f"nd.{verb}")
    plain = getattr(module, verb)

    def act(cfg: Config) -> object:
        name = f"{cfg.guidance.kappa:g} {cfg.guidance.eta:g}"
        seen.append(name)
        if name in broken:
            with RunFolder.open(cfg, verb).writing(cfg):
                raise broken[name]
        return plain(cfg)

    monkeypatch.setattr(module, verb, act)
