"""The whole configuration as dataclasses: one per group, one comment per field (``nd.config.fields.opt``)."""

from nd.config.data_group import DataConfig
from nd.config.fields import opt
from nd.config.mapper_group import MapperConfig, NetworkConfig, TrainingConfig, trained_heads
from nd.config.schema import (
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
from nd.config.target_group import TARGETS, TargetConfig

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
