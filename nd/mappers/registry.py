"""All mappers by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nd.errors import unknown
from nd.mappers.base import Mapper
from nd.mappers.ridge import Ridge
from nd.schema import MapperConfig

MAPPERS = {"ridge": Ridge}


def build_mapper(config: MapperConfig, device: torch.device | None = None) -> Mapper:
    """An unfitted mapper; an unknown name is a `UserError`."""
    return _kind(config.name)(config, device)


def restore_mapper(config: MapperConfig, state: dict[str, NDArray[np.float32]], details: dict[str, Any]) -> Mapper:
    """A fitted mapper from a checkpoint's arrays and details."""
    return _kind(config.name).restore(config, state, details)


def _kind(name: str) -> type[Ridge]:
    if name not in MAPPERS:
        raise unknown("mapper", name, MAPPERS)
    return MAPPERS[name]
