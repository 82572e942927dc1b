"""Settings of components by their choosing field, for tests that build a ``Config`` by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nd.config import Config, DataConfig, MapperConfig, MethodConfig, TargetConfig
from nd.config.components import component, found


def data_settings(source: str = "scenes", **fields: Any) -> DataConfig:
    """Return the group ``data`` for a source."""
    settings: DataConfig = component("source", source).settings(source=source, **fields)
    return settings


def method_settings(generator: str = "guided_diffusion", **fields: Any) -> MethodConfig:
    """Return the group ``method`` for a generator; targets may be a list."""
    if isinstance(fields.get("targets"), list):
        fields["targets"] = {name: {} for name in fields["targets"]}
    settings: MethodConfig = component("generator", generator).settings(generator=generator, **fields)
    return settings


def target_settings(name: str = "z", **fields: Any) -> TargetConfig:
    """Return the group ``target`` for a target."""
    settings: TargetConfig = component("target", name).settings(name=name, **fields)
    return settings


def mapper_settings(name: str = "ridge", **fields: Any) -> MapperConfig:
    """Return the group ``mapper`` for a mapper; fields of other mappers are left out."""
    kind = component("mapper", name).settings
    settings: MapperConfig = kind(name=name, **{key: value for key, value in fields.items() if hasattr(kind(), key)})
    return settings


def with_fields(cfg: Config, **fields: Any) -> Config:
    """Return a configuration in which every target has those of some fields that it has."""
    decodings = {}
    for name in found("target").components:
        one = cfg.decoding(name)
        own = {key: value for key, value in fields.items() if hasattr(one.target, key)}
        decodings[name] = replace(one, target=replace(one.target, **own))
    target = decodings[cfg.target.name].target if cfg.target.name in decodings else cfg.target
    return replace(cfg, target=target, decodings=decodings)
