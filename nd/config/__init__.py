"""The configuration: schema, components, composition of conf/, overrides, checks and help."""

from nd.config.groups import (
    BackboneConfig,
    GuidanceConfig,
    PathsConfig,
    ProtocolConfig,
    TrainerConfig,
)
from nd.config.schema import (
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
    "BackboneConfig",
    "Config",
    "DataConfig",
    "Decoding",
    "GuidanceConfig",
    "MapperConfig",
    "MethodConfig",
    "NetworkConfig",
    "PathsConfig",
    "ProtocolConfig",
    "SubjectConfig",
    "TargetConfig",
    "TrainerConfig",
    "TrainingConfig",
    "trained_heads",
]
