"""Mappers by name, as their declarations (``nd.mappers.components``) build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nd.config import MapperConfig
from nd.config.components import component
from nd.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from nd.mappers.base import Mapper
    from nd.mappers.linear import Linear


def build_mapper(config: MapperConfig, device: torch.device | None = None) -> Linear:
    """Return an unfitted mapper.

    Raises:
        UserError: there is none of that name, or it is trained step by step.
    """
    build = component("mapper", config.name).build
    if build is None:
        raise UserError(f"mapper {config.name!r} is trained step by step (`nd train`), not fitted in closed form.")
    mapper: Linear = build(config, device)
    return mapper


def restore_mapper(config: MapperConfig, state: dict[str, NDArray[Any]], details: dict[str, Any]) -> Mapper:
    """Return a fitted mapper from a checkpoint's arrays and details."""
    mapper: Mapper = component("mapper", config.name).restore(config, state, details)
    return mapper
