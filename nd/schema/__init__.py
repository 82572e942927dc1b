"""The whole configuration as dataclasses: one per group, one comment per field (``nd.schema.fields.opt``)."""

from nd.schema.config import (
    SCHEMA_VERSION,
    BackboneConfig,
    Config,
    DebugConfig,
    GuidanceConfig,
    LoggerConfig,
    MethodConfig,
    PathsConfig,
    ProtocolConfig,
    SubjectConfig,
    TrainerConfig,
)
from nd.schema.data import DataConfig
from nd.schema.fields import opt
from nd.schema.mapper import MapperConfig, NetworkConfig, TrainingConfig, trained_heads
from nd.schema.target import TARGETS, TargetConfig

__all__ = [
    "SCHEMA_VERSION",
    "TARGETS",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "GuidanceConfig",
    "LoggerConfig",
    "MapperConfig",
    "MethodConfig",
    "NetworkConfig",
    "PathsConfig",
    "ProtocolConfig",
    "SubjectConfig",
    "TargetConfig",
    "TrainerConfig",
    "TrainingConfig",
    "opt",
    "trained_heads",
]
