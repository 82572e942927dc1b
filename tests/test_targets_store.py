"""Stores: several targets in one pass, killed and resumed, drift named, memory at NSD's size."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_backbone import IMAGE_SIZE, tiny_backbone
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.config import BackboneConfig, Config
from nd.config.application import compose
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.extract import extract
from nd.files import write_json
from nd.hdf5 import allocate
from nd.prepare import prepare
from nd.targets import reference
from nd.targets.base import Items
from nd.targets.components import build_extractor
from nd.targets.fill import check_store, extract_to_stores, is_finished
from nd.targets.reference import check_drift, drift, reference_features, reference_items
from nd.targets.store import TargetStore
from nd.targets.unfinished import Job

N_IMAGES = 24


@pytest.fixture(scope="module")
def overrides(tiny_backbone_config: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """24 Scenes images of 32 px and an untrained backbone."""
    root = tmp_path_factory.mktemp("stores")
    given = [f"backbone.{f}={getattr(tiny_backbone_config, f)}" for f in ("weights", "image_tower")]
    given += [f"{name}={IMAGE_SIZE}" for name in ("backbone.image_size", "backbone.tower_size")]
    given += ["data.n_train=18", "data.n_val=4", "data.n_test=6", "data.n_voxels=40", "data.image_size=32"]
    given += ["data.subjects=[subj01]", f"paths.data={root}/data", "trainer.progress=false", "trainer.accelerator=cpu"]
    prepare(compose(given))
    return given


@pytest.fixture
def cfg(overrides: list[str], tmp_path: Path) -> Config:
    return compose([*overrides, f"paths.cache={tmp_path / 'cache'}", "trainer.batch_size=5", "target=all"])


@pytest.fixture
def stimuli(cfg: Config) -> Stimuli:
    return Stimuli(stimuli_path(cfg))


class Counting:
    """An extractor that says which images it was given; a value of its own for the reference images."""

    def __init__(self, name: str, forward: Any = None, fail_at: int = -1) -> None:
        self.name, self.forward, self.fail_at = name, forward, fail_at
        self.needs, self.shape, self.seen = "images", (3,), []

    def fingerprint(self) -> dict[str, Any]:
        return {"target": self.name}

    def __call__(self, items: Items) -> NDArray[np.float32]:
        if items.images.shape[1:] == (32, 32, 3) and len(items.ids) == 4 and not self.seen:
            self.seen.append("reference")
        elif len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        else:
            self.seen.append(items.ids.tolist())
        values = items.once(self.forward) if self.forward else items.images
        return values.reshape(len(values), -1)[:, :3].astype(np.float32)


def test_targets_share_pictures_and_forward_passes(stimuli: Stimuli, tmp_path: Path) -> None:
    passes, reads = [], []

    def forward(items: Items) -> NDArray[np.uint8]:
        passes.append(len(items.ids))
        return items.images

    original = stimuli.images
    stimuli.images = lambda ids: reads.append(len(ids)) or original(ids)  # type: ignore[method-assign]
    jobs = [Job(Counting(name, forward), tmp_path / f"{name}.h5") for name in ("a", "b")]
    assert extract_to_stores(jobs, stimuli, batch_size=10, progress=False) == {"a": N_IMAGES, "b": N_IMAGES}
    assert reads == [10, 10, 4], "every image is read once"
    assert passes == [4, 4, 10, 10, 4], "each target's reference images, then one pass a batch for both"
    for job in jobs:
        np.testing.assert_array_equal(
            TargetStore(job.path).rows(stimuli.image_id), original(stimuli.image_id).reshape(N_IMAGES, -1)[:, :3]
        )


def test_the_bar_says_which_target_is_being_computed(
    stimuli: Stimuli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("nd.targets.fill.tqdm.set_postfix_str", lambda _, text, *__: said.append(text))
    jobs = [Job(Counting(name), tmp_path / f"{name}.h5") for name in ("a", "b")]
    extract_to_stores(jobs, stimuli, batch_size=20)
    assert [text for text in said if text.startswith("a")]
    assert said.index("a is checked") < said.index("b is checked")
    assert [text for text in said if "reference images" in text]


def test_a_store_that_has_an_image_is_not_computed_for_it_again(stimuli: Stimuli, tmp_path: Path) -> None:
    """The second target failed in the middle of a batch whose first target was written already."""
    first = [Counting("a"), Counting("b", fail_at=2)]
    jobs = [Job(extractor, tmp_path / f"{extractor.name}.h5") for extractor in first]
    with pytest.raises(KeyboardInterrupt):
        extract_to_stores(jobs, stimuli, batch_size=10, progress=False)
    again = [Counting("a"), Counting("b")]
    jobs = [Job(extractor, tmp_path / f"{extractor.name}.h5") for extractor in again]
    assert extract_to_stores(jobs, stimuli, batch_size=10, progress=False) == {"a": 4, "b": 14}
    for before, after in zip(first, again, strict=True):
        seen = [i for batch in (*before.seen, *after.seen) if batch != "reference" for i in batch]
        assert sorted(seen) == stimuli.image_id.tolist(), "each image once over both runs"


EXTRACT = """
import collections, os, signal, sys
import nd.targets.unfinished as unfinished
from nd.config.application import compose
from nd.extract import extract
write, calls, written = unfinished.Unfinished.write, [], collections.Counter()
def counting(self, rows, ids, features):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    written[self.job.extractor.name] += len(ids)
    write(self, rows, ids, features)
unfinished.Unfinished.write = counting
extract(compose(sys.argv[2:]))
print(dict(written))
"""


def extract_apart(overrides: list[str], die_at: int = 0) -> subprocess.CompletedProcess[str]:
    """Extract in a process of its own: threads and other surroundings are then the same for all that are compared."""
    command = [sys.executable, "-c", EXTRACT, str(die_at), *overrides]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_killed_on_the_way_and_resumed_to_the_same_bytes(cfg: Config, overrides: list[str], tmp_path: Path) -> None:
    whole = extract_apart([*overrides, "target=all", "trainer.batch_size=5", f"paths.cache={tmp_path / 'whole'}"])
    assert whole.returncode == 0, whole.stderr
    killed = extract_apart(cfg.overrides, die_at=8)  # in the third batch, between the stores of z and c
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "cache").rglob("*.h5"))
    resumed = extract_apart(cfg.overrides)
    assert resumed.stdout.splitlines()[-1] == "{'c': 14, 'g': 14, 'z': 9}", (
        "what was written before is not computed again"
    )
    a, b = (sorted((tmp_path / name / "targets").glob("*.h5")) for name in ("whole", "cache"))
    assert [path.name for path in a] == [path.name for path in b]
    assert len(a) == 3
    for one, other in zip(a, b, strict=True):
        assert one.read_bytes() == other.read_bytes(), f"{one.name} differs"


def test_extract_all_says_what_it_wrote_and_then_does_nothing(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    paths = extract(cfg)
    said = capsys.readouterr().out
    assert all(f"wrote target {name} " in said for name in ("z", "c", "g"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    extract(cfg)
    assert capsys.readouterr().out.count("nothing to do") == 3
    assert before == {path: path.stat().st_mtime_ns for path in paths}


# ---- drift -----------------------------------------------------------------------------------------------------------


def job_of(cfg: Config, name: str, path: Path, backbone: Backbone | None = None) -> Job:
    return Job(build_extractor(name, cfg, backbone or Backbone(cfg.backbone)), path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tower_filter": "bicubic"}, "filter: bilinear in the store, bicubic now"),
        ({"tower_antialias": False}, "antialias: True in the store, False now"),
        ({"tower_mean": [0.48, 0.45, 0.40]}, r"mean: \[0.485, 0.456, 0.406\] in the store, \[0.48, 0.45, 0.4\] now"),
        ({"tower_std": [0.26, 0.26, 0.27]}, r"std: \[0.229, 0.224, 0.225\] in the store, \[0.26, 0.26, 0.27\] now"),
    ],
)
def test_other_settings_are_refused_by_name(
    cfg: Config, stimuli: Stimuli, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    cfg.backbone.tower_mean, cfg.backbone.tower_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    path = tmp_path / "g.h5"
    extract_to_stores([job_of(cfg, "g", path)], stimuli, progress=False)
    assert is_finished(job_of(cfg, "g", path), stimuli)
    changed = replace(cfg, backbone=replace(cfg.backbone, **change))
    with pytest.raises(UserError, match=named):
        is_finished(job_of(changed, "g", path), stimuli)


def test_other_weights_are_refused_by_name(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    other = tiny_backbone(tmp_path / "other", seed=1)
    for name, key in (("g", "tower"), ("z", "vae"), ("c", "text_encoder")):
        path = tmp_path / f"{name}.h5"
        extract_to_stores([job_of(cfg, name, path)], stimuli, progress=False)
        weights = replace(cfg.backbone, weights=other.weights, image_tower=other.image_tower)
        with pytest.raises(UserError, match=rf"{name}.h5 was made otherwise .*\n  - {key}: \w+ in the store, \w+ now"):
            is_finished(job_of(replace(cfg, backbone=weights), name, path), stimuli)


def test_features_that_change_under_the_same_settings_are_drift(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    """As if a library had changed: the weights on disk, and so every hash, are the same."""
    path, backbone = tmp_path / "g.h5", Backbone(cfg.backbone)
    extract_to_stores([job_of(cfg, "g", path, backbone)], stimuli, progress=False)
    check_store(job_of(cfg, "g", path, backbone), stimuli)
    with torch.no_grad():
        backbone.tower.conv1.weight.mul_(1.05)
    with pytest.raises(UserError, match=r"four reference images have other features now than when it was made, by"):
        check_store(job_of(cfg, "g", path, backbone), stimuli)


def test_drift_names_the_packages_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    monkeypatch.setattr(reference, "versions", lambda: {"torch": "2.15.0", "timm": "1.0"})
    check_drift("x.h5", stored, stored * (1 + 1e-5), "float32", {"torch": "2.11.0"})
    with pytest.raises(UserError, match=r"x.h5: .*by 5.0% .*Since then: timm 0.9 -> 1.0, torch 2.11.0 -> 2.15.0"):
        check_drift("x.h5", stored, stored * 1.05, "float32", {"torch": "2.11.0", "timm": "0.9"})
    with pytest.raises(UserError, match="No version of a package changed"):
        check_drift("x.h5", stored, stored * 1.05, "float32", {"torch": "2.15.0", "timm": "1.0"})


def test_drift_is_the_largest_relative_distance() -> None:
    stored = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [5.0, 0.0]], np.float32)
    now = stored.copy()
    now[1] = [1.0, 0.25]
    assert drift(stored, now) == pytest.approx(0.25)
    now[2, 0] = np.nan
    assert drift(stored, now) == np.inf


def test_interrupted_extraction_does_not_go_on_with_other_features(stimuli: Stimuli, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract_to_stores([Job(Counting("a", fail_at=2), tmp_path / "a.h5")], stimuli, batch_size=10, progress=False)
    changed = Counting("a", lambda items: items.images[:, ::-1])
    with pytest.raises(UserError, match=r"a.h5.partial: four reference images have other features now"):
        extract_to_stores([Job(changed, tmp_path / "a.h5")], stimuli, batch_size=10, progress=False)


def test_a_finished_store_is_checked_once_in_new_surroundings(
    cfg: Config, stimuli: Stimuli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = extract(cfg)
    calls: list[Path] = []
    monkeypatch.setattr("nd.targets.fill.check_store", lambda job, stimuli: calls.append(job.path))
    extract(cfg)
    assert calls == []
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    record["checked_with"]["packages"]["torch"] = "1.0"
    write_json(path.with_suffix(".json"), record)
    extract(cfg)
    extract(cfg)
    assert calls == [path]


def test_reference_pictures_are_fixed_and_varied() -> None:
    items = reference_items(64)
    assert items.images.shape == (4, 64, 64, 3)
    assert items.images.dtype == np.uint8
    assert int(items.images.astype(np.int64).sum()) == int(reference_items(64).images.astype(np.int64).sum())
    assert [int(x) for x in items.images[:, 10, 20].reshape(-1)[:3]] == [81, 40, 174]
    assert all(picture.std() > 20 for picture in items.images[[0, 2, 3]])
    assert all(texts for texts in items.captions)


def test_reference_features_of_all_targets_are_finite(cfg: Config) -> None:
    backbone = Backbone(cfg.backbone)
    for extractor in [build_extractor(name, cfg, backbone) for name in ("z", "c", "g")]:
        features = reference_features(extractor, 32)
        assert np.isfinite(features).all()
        assert features.shape == (4, int(np.prod(extractor.shape)))


# ---- size ------------------------------------------------------------------------------------------------------------

FULL_SIZE = """
import sys
from pathlib import Path
import numpy as np
from nd.targets.store import TargetStore
def status(name):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
before = status("VmRSS")
store = TargetStore(Path(sys.argv[1]))
rows = store.rows(np.random.default_rng(0).permutation(73_000)[:42])
print(rows.shape, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_g_of_all_nsd_pictures_is_read_in_little_memory(tmp_path: Path) -> None:
    """73,000 x 6 x 50 x 768 halves, 33.6 GB; the file is sparse."""
    path, shape = tmp_path / "nsd-g-0.h5", (6, 50, 768)
    with h5py.File(path, "w") as handle:
        allocate(handle, "features", (73_000, int(np.prod(shape))), np.dtype(np.float16))
        handle["image_id"], handle["reference"] = np.arange(73_000), np.zeros((4, 3), np.float32)
        texts = {"details": "{}", "versions": "{}", "fingerprint": "0", "target": "g"}
        handle.attrs.update({"shape": json.dumps(shape), **texts})
    assert path.stat().st_size > 33.6e9
    done = subprocess.run([sys.executable, "-c", FULL_SIZE, str(path)], capture_output=True, text=True, check=True)
    size, memory = done.stdout.rsplit(maxsplit=1)
    assert size == "(42, 6, 50, 768)"
    assert float(memory) < 200
