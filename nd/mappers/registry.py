"""All mappers by name."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from nd.config import MapperConfig
from nd.errors import unknown
from nd.mappers.base import Mapper
from nd.mappers.fastl2lir import FastL2LiR
from nd.mappers.linear import Linear
from nd.mappers.ridge import Ridge

MAPPERS: dict[str, type[Linear]] = {"ridge": Ridge, "fastl2lir": FastL2LiR}


def build_mapper(config: MapperConfig, device: torch.device | None = None) -> Linear:
    """An unfitted linear mapper; an unknown name is a `UserError`."""
    return _kind(config.name)(config, device)


def restore_mapper(config: MapperConfig, state: dict[str, NDArray[Any]], details: dict[str, Any]) -> Mapper:
    """A fitted mapper from a checkpoint's arrays and details."""
    if config.name == "two_stage":
        from nd.mappers.two_stage import TwoStage  # imports the network, which linear mappers do without

        return TwoStage.restore(config, state, details)
    return _kind(config.name).restore(config, state, details)


def _kind(name: str) -> type[Linear]:
    if name not in MAPPERS:
        raise unknown("mapper", name, MAPPERS)
    return MAPPERS[name]
