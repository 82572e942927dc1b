"""Roughly how much memory training the network takes, from the shapes of data and targets, before anything is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from nd.config import Config, NetworkConfig, trained_heads
from nd.doctor.extent import Extent, extent
from nd.doctor.memory import target_shapes
from nd.doctor.tree import Tree
from nd.errors import UserError
from nd.launch import n_processes
from nd.mappers.network.heads import TargetSlice, slices_of
from nd.mappers.network.trunk import Front
from nd.mappers.training.memory import Estimate, largest_levers, training_bytes
from nd.mappers.training.objective import patch_tokens
from nd.mappers.training.stage import mapper_class
from nd.runs.identity import mapper_of, trained_together


@dataclass(frozen=True)
class TrainingNeed:
    """One training: of which targets, in which stage, and what it takes in one process.

    Attributes: ``front``: of the subjects; ``n_samples`` of a step in one process.
    """

    targets: tuple[str, ...]
    stage: str
    network: NetworkConfig
    parts: tuple[TargetSlice, ...]
    front: Front
    n_samples: int
    how: Mapping[str, Any]

    @property
    def n_voxels(self) -> Mapping[str, int]:
        """By subject."""
        return self.front.n_voxels

    @property
    def estimate(self) -> Estimate:
        """Parameters, and bytes."""
        return training_bytes(self.network, self.parts, self.front, self.n_samples, **self.how)

    @property
    def advice(self) -> str:
        """What it takes in words, and which settings lower it."""
        return largest_levers(self.network, self.parts, self.front, self.n_samples, **self.how)


def training_needs(cfg: Config, n_voxels: Mapping[str, int]) -> Iterator[TrainingNeed]:
    """Every training of a configuration with the trained mapper.

    n_voxels: of ``cfg.subject.name`` and of every other subject of the data set. UserError: a target without a head.
    """
    shapes = target_shapes(cfg)
    trained = [name for name in cfg.method.targets if name in shapes and mapper_of(cfg.decoding(name)).trained]
    for targets in dict.fromkeys(tuple(trained_together(cfg.with_target(name))) for name in trained):
        own = cfg.with_target(targets[0])
        training = own.training
        how = {"variant": own.mapper.variant, "ema": training.ema > 0, "precision": training.precision}
        parts = tuple(part for name in targets for part in slices_of(name, shapes[name]))
        width = _aux_width(own, shapes) if any(part.is_map for part in parts) else 0
        n_samples = math.ceil(training.batch_size / n_processes(cfg.trainer))
        for stage, seen in stages(own, n_voxels).items():
            network = trained_heads(own.network, training)
            front = mapper_class(own.mapper).stand_in(own.mapper, seen)
            yield TrainingNeed(targets, stage, network, parts, front, n_samples, {**how, "aux_width": width})


def stages(cfg: Config, n_voxels: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Voxels of the subjects that each stage trains on."""
    own = {cfg.subject.name: n_voxels[cfg.subject.name]}
    others = {name: n for name, n in n_voxels.items() if name not in own}
    pretraining = cfg.training.stage == "pretrain" or (cfg.training.pretrain and not cfg.training.pretrained)
    found = {"pretraining": others} if pretraining and others else {}
    return found if cfg.training.stage == "pretrain" else {**found, "fine-tuning": own}


def voxel_counts(cfg: Config, size: Extent, raw: Tree | None) -> dict[str, int]:
    """Voxels of the subject, whose extent is ``size``, and of the data set's others; as many where they are unknown."""
    found = {cfg.subject.name: size.voxels}
    for name in cfg.data.subjects:
        if name not in found:
            other = replace(cfg, subject=replace(cfg.subject, name=name, sessions=0))
            found[name] = extent(other, raw).voxels or size.voxels
    return found


def _aux_width(cfg: Config, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of a token that teaches a latent map's auxiliary head; 0 where none does."""
    target = cfg.training.aux_target
    if not target or not cfg.training.aux_weight or target not in shapes:
        return 0
    return int(patch_tokens(torch.empty(1, *shapes[target], device="meta")).shape[-1])


def largest_training(cfg: Config, n_voxels: Mapping[str, int]) -> tuple[TrainingNeed, Estimate] | str:
    """The training that takes most, with its estimate; or why the network cannot be built."""
    try:
        found = [(need, need.estimate) for need in training_needs(cfg, n_voxels)]
    except UserError as error:
        return str(error)
    return max(found, key=lambda pair: pair[1].total) if found else "no target of the method is known"
