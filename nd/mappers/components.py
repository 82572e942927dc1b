"""Mappers that are fitted in closed form: their fields and rules, and fields without effect; and mappers by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nd.config.components import Idle, Mapper, component
from nd.config.fields import opt
from nd.config.schema import ALL, MapperConfig
from nd.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from nd.config.schema import Config, Decoding
    from nd.mappers.base import Mapper as FittedMapper
    from nd.mappers.linear import Linear


@dataclass(kw_only=True)
class LinearSettings(MapperConfig):
    """Fields of mappers that are fitted in closed form."""

    refit: bool = opt(True, "after alpha is chosen, fit again on training and validation images together")
    trials: str = opt(
        "mean", "responses fitted on: the mean of an image's trials, or every single trial", choices=("mean", "single")
    )
    keep: float = opt(
        1.0,
        "share of each group's columns that is kept, those best predicted over keep_folds folds; the others are"
        " predicted as 0 and marked",
    )
    keep_folds: int = opt(5, "folds over which columns are judged where keep is below 1")
    keep_on: str = opt(
        "train",
        "images over which columns are judged: training images, or validation images too, whose scores then flatter",
        choices=("train", "seen"),
    )


@dataclass(kw_only=True)
class RidgeSettings(LinearSettings):
    """ridge: linear regression with a penalty on all voxels, in closed form."""

    name: str = opt("ridge", "mapper")
    alphas: list[float] = opt(
        [1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5],
        "ridge: penalties tried on held-out images; they add to the un-normalised Gram matrix",
    )
    alpha_per: str = opt(
        "group",
        "ridge: one penalty for each group of columns (a layer of g, or the whole target), or one for every column",
        choices=("group", "column"),
    )
    intercept: bool = opt(True, "ridge: centre the targets; false leaves their mean to be predicted from the voxels")
    folds: int = opt(
        0,
        "choose alpha over this many folds of the images fitted on; 0: on the validation images (variant=released"
        " without intercept: of the trials as measured, scaled once and not centred, as himalaya has them)",
    )
    ddof: int = opt(0, "ridge: voxels are divided by a standard deviation over n - ddof images, 0 or 1")
    voxel_power: float = opt(
        0.0,
        "ridge: weigh each voxel by the share of its variance that the target explains, to this power; 0: all alike",
    )


@dataclass(kw_only=True)
class FastL2LiRSettings(LinearSettings):
    """fastl2lir: linear regression of every target column on the voxels that correlate most with it."""

    name: str = opt("fastl2lir", "mapper")
    n_feat: int = opt(
        500, "fastl2lir: voxels chosen for each target column, those that correlate most with it; 0: one of n_feats"
    )
    penalty: float = opt(0.15, "fastl2lir: penalty of the coefficients, the bias included; 0: one of penalties")
    n_feats: list[int] = opt(
        [150, 450, 850, 3000], "fastl2lir: with n_feat=0, numbers of voxels that are tried on the validation images"
    )
    penalties: list[float] = opt(
        [0.15, 1.5, 15.0, 150.0, 1500.0, 15000.0],
        "fastl2lir: with penalty=0, penalties that are tried on the validation images, with every number of voxels",
    )
    seen_statistics: str = opt(
        "none",
        "fastl2lir: what is z-scored by mean and spread of training and validation images, although fewer are fitted"
        " on (refit=false): nothing, the target's columns, or voxels too",
        choices=("none", "columns", "all"),
    )


def decoded_by(cfg: Config, name: str) -> list[tuple[str, Decoding]]:
    """Return the targets that a mapper decodes in a configuration, with how."""
    names = [*cfg.method.targets, *([] if cfg.target.name == ALL else [cfg.target.name])]
    every = [(target, cfg.decoding(target)) for target in dict.fromkeys([*names, *cfg.decodings])]
    return [(target, one) for target, one in every if one.mapper.name == name]


def _linear(mapper: Any) -> Iterator[str]:
    if not 0 < mapper.keep <= 1:
        yield f"mapper.keep: {mapper.keep} lies outside (0, 1] (share of the columns that is kept)."
    if mapper.keep_folds < 2:
        yield f"mapper.keep_folds: {mapper.keep_folds} was given, wanted 2 or more."


def _judged(mapper: LinearSettings, chosen: str, remedy: str) -> Iterator[str]:
    """What is wrong with ``mapper.keep_on`` where something is chosen on the validation images."""
    if mapper.keeps_some and mapper.keep_on == "seen":
        yield (
            f"mapper.keep_on: seen fits on validation images when columns are judged, and {chosen} would be chosen on"
            f" the same images. Give {remedy}, or mapper.keep_on=train."
        )


def rescaled(mapper: MapperConfig) -> Iterator[str]:
    """What is wrong with ``mapper.rescale`` and ``mapper.spread``."""
    yield from spread_out_of_range(mapper)
    if mapper.rescale == "test" and mapper.variant != "released":
        yield (
            "mapper.rescale: test standardises predictions over the test images, as published code does. Ask for it"
            " with mapper.variant=released, which marks every result, or choose none or train."
        )


def spread_out_of_range(mapper: MapperConfig) -> Iterator[str]:
    """What is wrong with ``mapper.spread``."""
    if mapper.spread <= 0:
        yield f"mapper.spread: {mapper.spread} was given, wanted a positive number; 1 leaves predictions as they are."


def _ridge_rules(cfg: Config) -> Iterator[str]:
    for _, one in decoded_by(cfg, "ridge"):
        mapper = one.mapper
        assert isinstance(mapper, RidgeSettings)
        if not mapper.alphas or any(alpha <= 0 for alpha in mapper.alphas):
            yield f"mapper.alphas: {mapper.alphas} must hold one or more positive numbers."
        if mapper.folds < 0 or mapper.folds == 1:
            yield f"mapper.folds: {mapper.folds} must be 0 (choose alpha on the validation images) or at least 2."
        if mapper.ddof not in (0, 1):
            yield f"mapper.ddof: {mapper.ddof} was given, wanted 0 or 1."
        if mapper.voxel_power < 0:
            yield f"mapper.voxel_power: {mapper.voxel_power} must be at least 0."
        if not mapper.folds and len(set(mapper.alphas)) > 1:
            yield from _judged(mapper, "alpha", "mapper.folds of 2 or more, or one of mapper.alphas")
        if cfg.data.test_scaling == "own" and mapper.voxel_power:
            yield "data.test_scaling: own leaves no room for voxel weights; it needs mapper.voxel_power=0."
        if mapper.spread != 1 and not mapper.intercept and mapper.rescale != "test":
            yield (
                "mapper.spread: without an intercept the mean of the training targets, around which predictions would"
                " be spread, is not fitted. Leave mapper.spread=1, or give mapper.intercept=true."
            )
        yield from (*_linear(mapper), *rescaled(mapper))


def _fastl2lir_rules(cfg: Config) -> Iterator[str]:
    for _, one in decoded_by(cfg, "fastl2lir"):
        mapper = one.mapper
        assert isinstance(mapper, FastL2LiRSettings)
        yield from _chosen(mapper)
        if not (mapper.n_feat and mapper.penalty):
            yield from _judged(mapper, "n_feat or penalty", "both mapper.n_feat and mapper.penalty")
        if mapper.refit and mapper.seen_statistics != "none":
            yield (
                f"mapper.seen_statistics: {mapper.seen_statistics} needs mapper.refit=false; where validation images"
                " are fitted on too, their statistics count anyway."
            )
        yield from (*_linear(mapper), *rescaled(mapper))


def _chosen(mapper: FastL2LiRSettings) -> Iterator[str]:
    """What is wrong with numbers of voxels and penalties, given or to be chosen."""
    if mapper.n_feat < 0:
        yield f"mapper.n_feat: {mapper.n_feat} was given, wanted 1 or more voxels for each column, or 0 (chosen)."
    if mapper.penalty < 0:
        yield f"mapper.penalty: {mapper.penalty} must be positive, or 0 (chosen)."
    if not mapper.n_feat and (not mapper.n_feats or min(mapper.n_feats) < 1):
        yield f"mapper.n_feats: {mapper.n_feats} must hold one or more numbers of voxels, 1 or more each."
    if not mapper.penalty and (not mapper.penalties or min(mapper.penalties) <= 0):
        yield f"mapper.penalties: {mapper.penalties} must hold one or more positive numbers."


def _untrained_idle(cfg: Config) -> Iterator[Idle]:
    if not any(component("mapper", one.name).trained for one in cfg.mappers or [cfg.mapper]):
        for group in ("network", "training"):
            fields = tuple(f"{group}.{name}" for name in vars(getattr(cfg, group)))
            yield Idle(fields, f"it belongs to mapper=two_stage, not {cfg.mapper.name}")


def _rescale_idle(cfg: Config) -> Iterator[Idle]:
    if cfg.mapper.rescale == "train":
        yield Idle(
            ("mapper.rescale",),
            f"train is of ridge and trained networks; {cfg.mapper.name} has none or (variant=released) test",
        )


def _fastl2lir_idle(cfg: Config) -> Iterator[Idle]:
    yield from (*_untrained_idle(cfg), *_rescale_idle(cfg))
    for field, candidates in (("n_feat", "n_feats"), ("penalty", "penalties")):
        given = [getattr(one.mapper, field) for _, one in decoded_by(cfg, "fastl2lir")]
        if given and all(given):
            yield Idle((f"mapper.{candidates}",), f"mapper.{field} is {given[0]:g}; 0 chooses")


COMPONENTS = (
    Mapper(
        name="ridge",
        settings=RidgeSettings,
        rules=_ridge_rules,
        idle=_untrained_idle,
        build=lambda own, device: import_module("nd.mappers.ridge").Ridge(own, device),
        restore=lambda *fitted: import_module("nd.mappers.ridge").Ridge.restore(*fitted),
    ),
    Mapper(
        name="fastl2lir",
        settings=FastL2LiRSettings,
        rules=_fastl2lir_rules,
        idle=_fastl2lir_idle,
        build=lambda own, device: import_module("nd.mappers.fastl2lir").FastL2LiR(own, device),
        restore=lambda *fitted: import_module("nd.mappers.fastl2lir").FastL2LiR.restore(*fitted),
    ),
)


def build_mapper(config: MapperConfig, device: torch.device | None = None) -> Linear:
    """Return an unfitted mapper.

    Raises:
        UserError: there is none of that name, or it is trained step by step.
    """
    build = component("mapper", config.name).build
    if build is None:
        raise UserError(f"mapper {config.name!r} is trained step by step (`nd train`), not fitted in closed form.")
    mapper: Linear = build(config, device)
    return mapper


def restore_mapper(config: MapperConfig, state: dict[str, NDArray[Any]], details: dict[str, Any]) -> FittedMapper:
    """Return a fitted mapper from a checkpoint's arrays and details."""
    mapper: FittedMapper = component("mapper", config.name).restore(config, state, details)
    return mapper
