"""Fixtures shared by the tests of all parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_config import data_settings

from nd.config import BackboneConfig, Config
from nd.data.prepared import data_folder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_backbone_config(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    """A tiny untrained backbone in the real layout, built once; see helpers_backbone."""
    from helpers_backbone import tiny_backbone

    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def digits69_file() -> Path:
    """The measured data of digits69; skips with the reason where it is absent."""
    given = os.environ.get("ND_DIGITS69_FILE")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "digit69_28x28.mat"
    if not path.is_file():
        pytest.skip("needs digit69_28x28.mat (public, DGMM repository): set ND_DIGITS69_FILE to its path")
    return path


@pytest.fixture(scope="session")
def coco_ids_file() -> Path:
    """COCO ids of the images of four NSD subjects; skips with the reason where the file is absent."""
    given = os.environ.get("ND_NSD_COCO_IDS")
    path = Path(given) if given else ROOT.parent / "shared" / "data" / "nsd_coco_ids.zip"
    if not path.is_file():
        pytest.skip("needs nsd_coco_ids.zip (COCO ids of NSD's images): set ND_NSD_COCO_IDS to its path")
    return path


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose Scenes folder is prepared: 2 subjects, 60 + 12 images, 2 repeats. Read only."""
    from nd.scenes.world import write_world

    data = data_settings(subjects=["subj01", "subj02"], n_train=60, n_val=10, n_test=12, n_repeats=2, n_voxels=150)
    cfg = Config(data=data)
    cfg.paths.data = str(tmp_path_factory.mktemp("world"))
    data_folder(cfg).mkdir()
    write_world(data, data_folder(cfg))
    return cfg


@pytest.fixture(scope="session")
def linear_world(tiny_backbone_config: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that mean a world in which voxels and targets are linear; see helpers_training. Read only."""
    from helpers_training import write_world

    return write_world(tmp_path_factory.mktemp("linear") / "world", tiny_backbone_config)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are split alike wherever they are computed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lightning callbacks that further trainings get."""
    from nd.mappers.training import fit

    added: list[Any] = []
    plain = fit.build_trainer

    def build(*args: Any) -> Any:
        trainer = plain(*args)
        trainer.callbacks[:0] = added  # type: ignore[attr-defined]
        return trainer

    monkeypatch.setattr(fit, "build_trainer", build)
    return added
