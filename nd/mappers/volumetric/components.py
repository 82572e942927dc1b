"""mapper=volumetric: its fields, its rules, and what has no effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from nd.config.components import Idle, Mapper
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import MapperConfig
from nd.mappers.components import decoded_by
from nd.mappers.training.components import trained_idle, trained_rules, trained_verb_rules

if TYPE_CHECKING:
    from nd.config.schema import Config


@dataclass(kw_only=True)
class VolumetricSettings(MapperConfig):
    """volumetric: as two_stage, but voxels enter by their places on the grid, as tokens of regions or cubes.

    What SoulDiffuser's README and figure show of its encoder; neither paper nor code are public, so sizes are ours.
    """

    name: str = opt("volumetric", "mapper")
    rescale: str = opt(
        "none",
        "spread of the predictions: as fitted; or restored to that of the training targets, by the spread of"
        " predictions of validation images",
        choices=("none", "train"),
        since="predict",
    )
    tokenizer: str = opt(
        "regions",
        "what a token is of: attention over the voxels of a region, or a cube of the volume",
        choices=("regions", "cubes"),
    )
    regions: list[str] = opt(
        ["V1", "V2", "V3", "hV4", "ventral", "lateral", "parietal"],
        "tokenizer=regions: ROIs, or sets joined by '+'; a voxel is of the first that holds it, those of none make a"
        " region of their own. Empty: one region of all voxels",
    )
    region_tokens: int = opt(4, "tokenizer=regions: tokens of each region")
    voxel_numbers: bool = opt(
        False, "tokenizer=regions: every voxel has learned numbers beside its place, a subject's own"
    )
    cubes: list[int] = opt([6, 3, 3], "tokenizer=cubes: cubes along the axes of the box around a subject's voxels")
    cube: int = opt(6, "tokenizer=cubes: cells along the side of a cube; the box is resized to cubes * cube cells")
    coordinates: str = opt(
        "given",
        "places of the voxels: as prepared, exchanged among the voxels of a subject (a control), or left out",
        choices=("given", "shuffled", "none"),
    )
    mixer: str = opt(
        "state_space",
        "what mixes tokens: selective state spaces, or a transformer",
        choices=("state_space", "transformer"),
    )
    width: int = opt(32, "numbers of a token")
    region_blocks: int = opt(1, "tokenizer=regions: blocks of each region's own mixer")
    blocks: int = opt(1, "blocks of the mixer over all tokens")
    heads: int = opt(4, "heads of attention, over voxels and of the transformer; they divide the width")
    expand: int = opt(1, "inner width of a block as a multiple of the width")
    state: int = opt(4, "mixer=state_space: numbers of the state of each inner number")

    @property
    def n_regions(self) -> int:
        """The regions, and one of all other voxels."""
        return len(self.regions) + 1


def _rules(cfg: Config) -> Iterator[str]:
    yield from trained_rules(cfg, "volumetric")
    for _, one in decoded_by(cfg, "volumetric"):
        mapper = one.mapper
        assert isinstance(mapper, VolumetricSettings)
        yield from at_least(
            1, data=mapper, names=("region_tokens", "cube", "width", "heads", "expand", "state"), key="mapper"
        )
        yield from at_least(0, data=mapper, names=("region_blocks", "blocks"), key="mapper")
        if mapper.heads > 0 and mapper.width % mapper.heads:
            yield f"mapper.heads: {mapper.heads} heads do not divide a width of {mapper.width} (mapper.width)."
        if len(mapper.cubes) != 3 or min(mapper.cubes) < 1:
            yield f"mapper.cubes: {mapper.cubes} must hold three numbers of 1 or more, of cubes along each axis."
        if len(set(mapper.regions)) < len(mapper.regions):
            yield f"mapper.regions: {mapper.regions} names a region twice."
        if mapper.tokenizer == "cubes" and mapper.coordinates == "none":
            yield (
                "mapper.coordinates: none leaves nothing by which voxels could be put into cubes. Choose"
                " mapper.tokenizer=regions, or mapper.coordinates=shuffled."
            )
        if mapper.variant == "released":
            yield "mapper.variant: released, but no code of a volumetric encoder is public. Leave it out."
        if one.network.trunk != "residual":
            yield f"network.trunk: {one.network.trunk} is two_stage's; volumetric is followed by residual blocks."


def _idle(cfg: Config) -> Iterator[Idle]:
    yield from trained_idle(cfg)
    mapper = cfg.mapper
    if not isinstance(mapper, VolumetricSettings):
        return
    yield Idle(("training.align",), "mapper=volumetric has no layer of a subject that could be started by regression")
    of_regions = ("regions", "region_tokens", "voxel_numbers", "region_blocks")
    unread = ("cubes", "cube") if mapper.tokenizer == "regions" else of_regions
    yield Idle(tuple(f"mapper.{name}" for name in unread), f"mapper.tokenizer is {mapper.tokenizer}")
    if mapper.mixer != "state_space":
        yield Idle(("mapper.state",), f"mapper.mixer is {mapper.mixer}")


COMPONENTS = (
    Mapper(
        name="volumetric",
        settings=VolumetricSettings,
        trained=True,
        config_groups=("network", "training"),
        rules=_rules,
        verb_rules=partial(trained_verb_rules, mapper="volumetric"),
        idle=_idle,
        network=lambda: import_module("nd.mappers.volumetric.encoder").Volumetric,
        restore=lambda *fitted: import_module("nd.mappers.volumetric.encoder").Volumetric.restore(*fitted),
    ),
)
