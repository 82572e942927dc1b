"""Scenes as a data source: its fields of the group ``data``, its splits, and its rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from nd.config.components import Source
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import DataConfig
from nd.data.components import too_many_for_validation
from nd.data.splits import BY_CLUSTER

if TYPE_CHECKING:
    from nd.config.schema import Config


@dataclass(kw_only=True)
class ScenesData(DataConfig):
    """scenes: drawn images and simulated brains, made here."""

    source: str = opt("scenes", "where the data come from", identity=False)
    n_train: int = opt(1600, "scenes: training images, validation included")
    n_test: int = opt(200, "scenes: test images; own: test images where test_ids names none")
    n_repeats: int = opt(3, "scenes: presentations of every image")
    n_voxels: int = opt(1500, "scenes: approximate voxels per subject")
    betas: str = opt(
        "betas_fithrf_GLMdenoise_RR",
        "nsd: version of the single-trial betas; scenes: the one that layout=nsd writes",
        identity=False,
        choices=("betas_fithrf", "betas_fithrf_GLMdenoise_RR"),
    )
    world_seed: int = opt(7, "scenes: seed of the images and of the simulated brains")


def _rules(cfg: Config) -> Iterator[str]:
    data = cfg.data
    assert isinstance(data, ScenesData)
    yield from at_least(2, data=data, names=("n_train", "n_test"), key="data")
    yield from at_least(1, data=data, names=("n_repeats", "n_voxels"), key="data")
    if data.n_train >= 2 and data.n_val > data.n_train - 2:
        yield too_many_for_validation(cfg, data.n_train)
    if cfg.layout != "prepared" and data.split == BY_CLUSTER:
        yield f"layout: {cfg.layout} has no split {data.split}; use data.split=scenes."


COMPONENTS = (
    Source(
        name="scenes",
        settings=ScenesData,
        splits=("scenes", BY_CLUSTER),
        protocols=("scenes",),
        pieces=lambda cfg: import_module("nd.scenes.world").pieces_of(cfg.data),
        rules=_rules,
    ),
)
