"""Rules about the group ``protocol``: which measures there are, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nd.config.components import Rules
from nd.config.rules import at_least
from nd.errors import did_you_mean

if TYPE_CHECKING:
    from nd.config.schema import Config


def _measures(cfg: Config) -> Iterator[str]:
    from nd.metrics.measures import encoded_layers, measures

    protocol, known = cfg.protocol, measures()
    yield from at_least(1, data=protocol, names=("image_size", "network_size", "n_boot"), key="protocol")
    yield from at_least(0, data=protocol, names=("picture_size", "n_images"), key="protocol")
    for name in (name for name in protocol.measures if name not in known):
        yield (f"protocol.measures: {name} is no measure.{did_you_mean(name, known)} Measures: {', '.join(known)}.")
    if len(set(protocol.measures)) < len(protocol.measures):
        yield f"protocol.measures: {protocol.measures} names a measure twice."
    layers = encoded_layers(protocol)
    for name in (name for name in protocol.brain if name not in layers):
        yield (
            f"protocol.brain: {name} is no layer that protocol {protocol.name} computes and that voxels can be "
            f"predicted from.{did_you_mean(name, layers)} Layers: {', '.join(layers) or 'none'}."
        )
    if protocol.resize_arithmetic == "bytes" and not protocol.resize_antialias:
        yield "protocol.resize_antialias: false needs resize_arithmetic=floats; Pillow (bytes) always low-passes."


COMPONENTS = (Rules(name="protocol", rules=_measures),)
