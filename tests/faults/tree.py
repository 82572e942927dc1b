"""A finished table in the smallest size, copies of it, and what its results are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from helpers_backbone import tiny_backbone
from helpers_commands import Done, nd

from nd.digests import digest_array, digest_bytes

SIDE = 32  # of the images, pixels: the least that Scenes are drawn in
SPEC = """
# A table of the smallest methods.
title: t
experiment: scenes
subjects: [subj01]
columns: [{metric: pixcorr, name: PixCorr}, {metric: ssim, name: SSIM}]
rows:
  - {label: pixels, role: reference, overrides: [method=ridge_pixels]}
  - {label: decoded, overrides: []}
  - {label: mean, role: floor, overrides: [method=mean_image]}
images: [pixels, decoded]
paired: []
"""
SMALL = [
    "experiment=scenes", "debug=fast", "data.subjects=[subj01]", f"data.image_size={SIDE}",
    "trainer.accelerator=cpu", "trainer.progress=false", "trainer.batch_size=2", "protocol.brain=[]",
]  # fmt: skip
RESULTS = ("images.h5", "predictions.h5", "scores.json", "per_image.csv", "fold-00.safetensors", "t.md", "t.csv")


@dataclass(frozen=True)
class Tree:
    """A folder in which a table is made; ``words`` mean it there."""

    root: Path

    @property
    def words(self) -> list[str]:
        """What every command is given."""
        weights = self.root / "weights"
        own = [f"backbone.weights={weights}", f"backbone.image_tower={weights / 'image_tower'}"]
        own += [f"backbone.image_size={SIDE}", "backbone.tower_size=16"]
        return [*SMALL, *own, f"table={self.root / 't.yaml'}", f"paths.root={self.root}"]

    def do(self, verb: str, *words: str) -> Done:
        """Run a verb in this process."""
        return nd(verb, *(words or self.words), cwd=self.root)

    @contextmanager
    def copied(self) -> Iterator[Tree]:
        """Give a copy, always in the same place, which is gone afterwards."""
        copy = self.root.with_name("copy") / "lab"
        try:
            shutil.copytree(self.root, copy)
            yield Tree(copy)
        finally:
            shutil.rmtree(copy.parent)

    def results(self) -> dict[str, Any]:
        """Return digests of what has been made, by name."""
        return {
            str(path.relative_to(self.root)): _content(path, self.root)
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and _is_result(path)
        }

    def files(self, folders: Sequence[str] = ("data", "cache", "runs", "weights")) -> list[Path]:
        """Return the files that verbs read."""
        return sorted(
            path for folder in folders for path in (self.root / folder).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )  # fmt: skip

    def forget(self, *parts: str) -> None:
        """Remove results, so that they are made again: folders below runs, or 'cache', 'results'."""
        for part in parts:
            place = self.root / part if part in ("cache", "results") else self.root / "runs" / part
            shutil.rmtree(place, ignore_errors=True)


def finished(root: Path) -> Tree:
    """Make the table below a new folder."""
    root.mkdir(parents=True)
    tiny_backbone(root / "weights", image_size=SIDE)
    (root / "t.yaml").write_text(SPEC, encoding="utf-8")
    tree = Tree(root)
    for verb in ("run", "table", "report"):
        done = tree.do(verb)
        assert done.code == 0, f"nd {verb}: {done.out}{done.err}"
    return tree


def _digest(values: np.ndarray) -> str:
    return digest_bytes(repr(values.tolist()).encode()) if values.dtype.kind == "O" else digest_array(values)


def _is_result(path: Path) -> bool:
    """Whether a file is what a verb was asked for, or what `nd clean` was to remove."""
    shown = path.suffix in (".html", ".json", ".h5", ".md", ".tex", ".csv") and "results" in path.parts
    shown = shown or ("shown" in path.parts and path.suffix == ".png")  # images by `nd show`
    return path.name in RESULTS or shown or (path.name.startswith(".rubbish") and path.suffix != ".lock")


def _content(path: Path, root: Path) -> Any:
    """Digest of what a file says, without times and places."""
    if path.suffix == ".h5":
        with h5py.File(path) as handle:
            names = sorted(name for name in handle if isinstance(handle[name], h5py.Dataset))
            return {name: _digest(np.asarray(handle[name][()])) for name in names}
    content = path.read_bytes().replace(str(root).encode(), b"")
    if path.suffix == ".html":  # holds dates and costs
        return content.rstrip().endswith(b"</html>")
    if path.suffix == ".json":
        with suppress(ValueError):  # of a spoilt one, what it holds
            content = json.dumps({**json.loads(content), "digest": ""}, sort_keys=True).encode()
    return digest_bytes(content)
