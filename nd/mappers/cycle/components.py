"""mapper=cycle: its fields, its rules, and what has no effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from nd.config.components import Idle, Mapper
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import MapperConfig
from nd.mappers.components import decoded_by, spread_out_of_range

if TYPE_CHECKING:
    from nd.config.schema import Config

MAPS = ("edge", "colour", "pixels")  # targets that are square maps
OF_THIRD = ("cycle_weight", "cycle_noise", "unlabelled")


@dataclass(kw_only=True)
class CycleSettings(MapperConfig):
    """cycle: an encoder from maps to voxels, a decoder back, and both in a row on images without voxels."""

    name: str = opt("cycle", "mapper")
    channels: int = opt(16, "cycle: channels of both networks' convolutions")
    encode_steps: int = opt(600, "cycle: most steps of stage 1, maps to voxels")
    decode_steps: int = opt(600, "cycle: most steps of stage 2, voxels to maps")
    cycle_steps: int = opt(600, "cycle: most steps of stage 3, maps to voxels to maps; 0 leaves it out")
    batch: int = opt(64, "cycle: images in a step, and in stage 3 as many again without their voxels")
    rate: float = opt(5e-4, "cycle: AdamW's largest learning rate; it falls to 0 over a stage")
    weight_decay: float = opt(0.1, "cycle: of AdamW")
    voxel_dropout: float = opt(0.5, "cycle: share of the voxels that are hidden from the decoder in a step, in [0, 1)")
    cycle_weight: float = opt(1.0, "cycle: weight of maps decoded from predicted voxels beside those of measured")
    cycle_noise: float = opt(
        1.0,
        "cycle: noise of predicted voxels, in sizes of what the encoder leaves unexplained in measured; 0: none",
    )
    unlabelled: bool = opt(
        True,
        "cycle: stage 3 also sees maps of images whose voxels were not measured or are left out (subject.sessions):"
        " training images of this split and of other subjects (data.subjects), never test or validation images",
    )
    seed: int = opt(0, "cycle: of first weights, batches and noise")


def _rules(cfg: Config) -> Iterator[str]:
    for name, one in decoded_by(cfg, "cycle"):
        mapper = one.mapper
        assert isinstance(mapper, CycleSettings)
        if name not in MAPS:
            yield f"mapper: cycle decodes maps, targets {', '.join(MAPS)}; {name} is none. Give mapper=ridge for it."
        yield from at_least(1, data=mapper, names=("channels", "encode_steps", "decode_steps", "batch"), key="mapper")
        yield from at_least(
            0, data=mapper, names=("cycle_steps", "cycle_weight", "cycle_noise", "weight_decay", "seed"), key="mapper"
        )
        if mapper.rate <= 0:
            yield f"mapper.rate: {mapper.rate} must be positive."
        if not 0 <= mapper.voxel_dropout < 1:
            yield f"mapper.voxel_dropout: {mapper.voxel_dropout} lies outside [0, 1)."
        yield from spread_out_of_range(mapper)
        if mapper.rescale == "test":
            yield "mapper.rescale: test is for linear mappers and two_stage; cycle has none."


def _idle(cfg: Config) -> Iterator[Idle]:
    mapper = cfg.mapper
    if mapper.rescale == "train":
        yield Idle(("mapper.rescale",), "train is ridge's; cycle has none")
    if not getattr(mapper, "cycle_steps", 1):
        yield Idle(tuple(f"mapper.{name}" for name in OF_THIRD), "mapper.cycle_steps is 0")


COMPONENTS = (
    Mapper(
        name="cycle",
        settings=CycleSettings,
        rules=_rules,
        idle=_idle,
        build=lambda own, device: import_module("nd.mappers.cycle.mapper").Cycle(own, device),
        restore=lambda *fitted: import_module("nd.mappers.cycle.mapper").Cycle.restore(*fitted),
    ),
)
