"""All targets by name."""

from __future__ import annotations

from collections.abc import Callable

from nd.backbone.loading import Backbone
from nd.errors import unknown
from nd.schema import Config
from nd.targets.base import Extractor
from nd.targets.pixels import Pixels
from nd.targets.text_condition import TextCondition
from nd.targets.tower_features import TowerFeatures
from nd.targets.vae_latent import VaeLatent

EXTRACTORS: dict[str, Callable[[Config, Backbone], Extractor]] = {
    "z": lambda cfg, backbone: VaeLatent(backbone),
    "c": lambda cfg, backbone: TextCondition(backbone, cfg.target.max_captions),
    "g": lambda cfg, backbone: TowerFeatures(backbone, cfg.target.layers),
    "pixels": lambda cfg, backbone: Pixels(cfg.data.image_size),
}


def build_extractor(name: str, cfg: Config, backbone: Backbone) -> Extractor:
    """The extractor of target `name`; loads nothing yet. An unknown name is a `UserError`."""
    if name not in EXTRACTORS:
        raise unknown("target", name, EXTRACTORS)
    return EXTRACTORS[name](cfg, backbone)
