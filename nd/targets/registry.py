"""Extractors of targets by name, as their declarations (``nd.targets.components``) build them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nd.backbone.loading import Backbone
from nd.config import Config, TargetConfig
from nd.config.components import component
from nd.targets.base import Extractor


def build_extractors(names: Sequence[str], cfg: Config, backbone: Backbone) -> list[Extractor]:
    """Return the extractors of several targets, which share the forward passes they have in common; loads nothing yet.

    Networks and passes that several targets use are kept by the backbone (`Backbone.shared`), so that whoever builds
    them, together or one by one, gets the same objects; `Items.once` then runs a pass once for each batch.

    Args:
        names: of targets.
        cfg: whose settings of each target count.
        backbone: that their networks are parts of.

    Returns:
        The extractors in the order of ``names``.
    """
    return [build_extractor(name, cfg, backbone) for name in names]


def build_extractor(name: str, cfg: Config, backbone: Backbone) -> Extractor:
    """Return the extractor of a target with its settings in this configuration; loads nothing yet.

    Args:
        name: of the target.
        cfg: whose settings of that target count.
        backbone: that its networks are parts of.

    Returns:
        The extractor: of stimuli to features.

    Raises:
        UserError: there is no target of that name.
    """
    extractor: Extractor = component("target", name).build(cfg.decoding(name).target, cfg, backbone)
    return extractor


def column_groups(settings: TargetConfig, shape: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Return the parts of a flattened target that are decoded with settings of their own: (label, first, end column).

    Layers of g differ in scale and in how well they can be decoded; most targets are one part.
    """
    groups = component("target", settings.name).groups
    return groups(settings, shape) if groups else [(settings.name, 0, math.prod(shape))]
