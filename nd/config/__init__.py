"""The configuration: schema, components, composition of conf/, overrides, checks and help."""

from nd.config.groups import (
    BackboneConfig,
    DebugConfig,
    GuidanceConfig,
    LoggerConfig,
    PathsConfig,
    ProtocolConfig,
    TrainerConfig,
    TuneConfig,
)
from nd.config.schema import (
    ALL,
    SCHEMA_VERSION,
    Config,
    DataConfig,
    Decoding,
    MapperConfig,
    MethodConfig,
    SubjectConfig,
    TargetConfig,
)
from nd.config.training import NetworkConfig, TrainingConfig, trained_heads

__all__ = [
    "ALL",
    "SCHEMA_VERSION",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "Decoding",
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
    "TuneConfig",
    "trained_heads",
]
