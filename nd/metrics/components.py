"""Rules about the group ``protocol``: which measures there are, and what goes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nd.config.components import Idle, Rules, component, found
from nd.config.rules import at_least
from nd.errors import did_you_mean

if TYPE_CHECKING:
    from nd.config.schema import Config

OF_CAPTIONS = ("protocol.caption_references", "protocol.caption_clip", "protocol.sentence_model")


def _measures(cfg: Config) -> Iterator[str]:
    from nd.metrics.measures import encoded_layers, measures

    protocol, known = cfg.protocol, measures()
    yield from at_least(1, data=protocol, names=("image_size", "network_size", "n_boot"), key="protocol")
    yield from at_least(0, data=protocol, names=("picture_size", "n_images"), key="protocol")
    for name in (name for name in protocol.measures if name not in known):
        yield (f"protocol.measures: {name} is no measure.{did_you_mean(name, known)} Measures: {', '.join(known)}.")
    if len(set(protocol.measures)) < len(protocol.measures):
        yield f"protocol.measures: {protocol.measures} names a measure twice."
    yield from _selection(cfg)
    yield from _captions(cfg)
    layers = encoded_layers(protocol)
    for name in (name for name in protocol.brain if name not in layers):
        yield (
            f"protocol.brain: {name} is no layer that protocol {protocol.name} computes and that voxels can be "
            f"predicted from.{did_you_mean(name, layers)} Layers: {', '.join(layers) or 'none'}."
        )
    if protocol.resize_arithmetic == "bytes" and not protocol.resize_antialias:
        yield "protocol.resize_antialias: false needs resize_arithmetic=floats; Pillow (bytes) always low-passes."


def _captions(cfg: Config) -> Iterator[str]:
    """Measures of captions where no caption is decoded."""
    from nd.metrics.measures import caption_measures

    named = list(caption_measures(cfg.protocol))
    if not named:
        return
    yield from at_least(0, data=cfg.protocol, names=("caption_references",), key="protocol")
    if cfg.images:
        yield f"protocol.measures: {named} judge decoded captions, and images given have none. Leave them out."
    elif not component("generator", cfg.method.generator).captions(cfg):
        every: dict[str, Any] = found("generator").components
        able = [name for name, one in every.items() if one.captions(replace(cfg, method=one.settings()))]
        yield (
            f"protocol.measures: {named} judge decoded captions, and method {cfg.method.name} decodes none as it is"
            f" set. Leave them out, or choose a method that does (as they come, generators {', '.join(able)})."
        )


def _captions_now(cfg: Config, verb: str) -> Iterator[str]:
    """What measures of captions need and is not here, told before hours of work with what is."""
    if verb in ("run", "evaluate") and cfg.protocol.measures:
        from nd.metrics.captions import lacking

        yield from lacking(cfg)


def _idle(cfg: Config) -> Iterator[Idle]:
    from nd.metrics.measures import caption_measures

    if not caption_measures(cfg.protocol):
        yield Idle(OF_CAPTIONS, f"protocol {cfg.protocol.name} names no measure of captions")


def _selection(cfg: Config) -> Iterator[str]:
    protocol = cfg.protocol
    if not 0 <= protocol.min_decoding < 1:
        yield f"protocol.min_decoding: {protocol.min_decoding} lies outside [0, 1): it is a correlation; 0 scores all."
    if protocol.min_decoding <= 0:
        return
    lacking = [name for name in protocol.decoding_targets if name not in cfg.method.targets]
    if not protocol.decoding_targets or lacking:
        yield (
            f"protocol.min_decoding: method {cfg.method.name} does not decode {lacking or 'anything asked for'}. Give "
            f"protocol.decoding_targets=<some of {list(cfg.method.targets)}>, or a protocol that scores all images."
        )
    if cfg.features == "oracle" or cfg.images:
        what = "features=oracle decodes nothing" if cfg.features == "oracle" else "nothing is known of images given"
        yield f"protocol.min_decoding: {what}. Choose a protocol that scores all images."


COMPONENTS = (Rules(name="protocol", rules=_measures, verb_rules=_captions_now, idle=_idle),)
