"""All targets by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.errors import unknown
from nd.targets.base import Extractor
from nd.targets.clip_features import ClipImage, ClipText, ClipVision, clip_of, vision_pass
from nd.targets.colour import ColourMosaic
from nd.targets.edge import EdgeMap
from nd.targets.pixels import Pixels
from nd.targets.text_condition import TextCondition
from nd.targets.tower_features import TowerFeatures, tower_pass
from nd.targets.vae_latent import SmallLatent, VaeLatent
from nd.targets.vdvae import VdvaeLatents

EXTRACTORS: dict[str, Callable[[Config, Backbone], Extractor]] = {
    "z": lambda cfg, backbone: VaeLatent(backbone, cfg.target.picture, cfg.target.posterior),
    "c": lambda cfg, backbone: TextCondition(backbone, cfg.target.max_captions, cfg.target.tokens),
    "g": lambda cfg, backbone: TowerFeatures(tower_pass(backbone, cfg.target.layers)),
    "z40": lambda cfg, backbone: SmallLatent(backbone, cfg.target.posterior),
    "edge": lambda cfg, backbone: EdgeMap(),
    "colour": lambda cfg, backbone: ColourMosaic(),
    "clip_vision": lambda cfg, backbone: ClipVision(vision_pass(cfg.target, backbone)),
    "clip_text": lambda cfg, backbone: ClipText(clip_of(cfg.target, backbone), cfg.target.max_captions),
    "clip_image": lambda cfg, backbone: ClipImage(vision_pass(cfg.target, backbone)),
    "pixels": lambda cfg, backbone: Pixels(cfg.data.image_size),
    "vdvae": lambda cfg, backbone: VdvaeLatents(backbone, cfg.target),
}


def build_extractors(names: Sequence[str], cfg: Config, backbone: Backbone) -> list[Extractor]:
    """The extractors of several targets, which share the forward passes they have in common; loads nothing yet.

    Networks and passes that several targets use are kept by the backbone (`Backbone.shared`), so that whoever builds
    them, together or one by one, gets the same objects; `Items.once` then runs a pass once for each batch.
    """
    return [build_extractor(name, cfg, backbone) for name in names]


def build_extractor(name: str, cfg: Config, backbone: Backbone) -> Extractor:
    """The extractor of target `name`; loads nothing yet. An unknown name is a `UserError`."""
    if name not in EXTRACTORS:
        raise unknown("target", name, EXTRACTORS)
    return EXTRACTORS[name](cfg, backbone)


def column_groups(name: str, shape: tuple[int, ...], layers: Sequence[int]) -> list[tuple[str, int, int]]:
    """Parts of a flattened target that are decoded with settings of their own: (label, first column, end column).

    Layers of g differ in scale and in how well they can be decoded; the other targets are one part.
    """
    size = math.prod(shape)
    if name != "g":
        return [(name, 0, size)]
    width = size // shape[0]
    return [(f"block {layer}", k * width, (k + 1) * width) for k, layer in enumerate(layers)]
