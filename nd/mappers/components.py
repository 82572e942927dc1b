"""The mappers that nd has: their fields, rules, and which fields have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nd.config.components import Idle, Mapper, component
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import ALL, MapperConfig
from nd.config.training import trained_heads

if TYPE_CHECKING:
    from nd.config.schema import Config, Decoding

SHARES = ("dropout", "subject_dropout", "prior_drop")
POSITIVE = {
    "network": ("hidden", "prior_depth", "prior_heads", "prior_head_width", "prior_growth", "latent_channels"),
    "training": ("epochs", "pretrain_epochs", "batch_size", "accumulate", "validate_every"),
}
NOT_NEGATIVE = (
    "least_steps", "finetune_lr", "weight_decay", "subject_decay", "clip_norm", "patience", "prior_weight",
    "token_weight", "contrast_weight", "latent_weight", "aux_weight",
)  # fmt: skip


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
    folds: int = opt(0, "choose alpha over this many folds of the images fitted on; 0: on the validation images")
    voxel_power: float = opt(
        0.0,
        "ridge: weigh each voxel by the share of its variance that the target explains, to this power; 0: all alike",
    )


@dataclass(kw_only=True)
class FastL2LiRSettings(LinearSettings):
    """fastl2lir: linear regression of every target column on the voxels that correlate most with it."""

    name: str = opt("fastl2lir", "mapper")
    n_feat: int = opt(500, "fastl2lir: voxels chosen for each target column, those that correlate most with it")
    penalty: float = opt(0.15, "fastl2lir: penalty of the coefficients, the bias included")


@dataclass(kw_only=True)
class TwoStageSettings(MapperConfig):
    """two_stage: a network, pretrained on other subjects and fine-tuned on this one (groups network and training)."""

    name: str = opt("two_stage", "mapper")
    # Applied to the finished predictions, so one training serves both.
    rescale: str = opt(
        "none",
        "spread of the predictions: as fitted; or (variant=released) standardised over the test images and given mean"
        " and spread of the training targets",
        choices=("none", "train", "test"),
        since="predict",
    )


def _decoded_by(cfg: Config, name: str) -> list[tuple[str, Decoding]]:
    """Return the targets that a mapper decodes in a configuration, with how."""
    names = [*cfg.method.targets] or ([] if cfg.target.name == ALL else [cfg.target.name])
    every = [(target, cfg.decoding(target)) for target in dict.fromkeys([*names, *cfg.decodings])]
    return [(target, one) for target, one in every if one.mapper.name == name]


def _linear(mapper: Any) -> Iterator[str]:
    if not 0 < mapper.keep <= 1:
        yield f"mapper.keep: {mapper.keep} lies outside (0, 1] (share of the columns that is kept)."
    if mapper.keep_folds < 2:
        yield f"mapper.keep_folds: {mapper.keep_folds} was given, wanted 2 or more."


def rescaled(mapper: MapperConfig) -> Iterator[str]:
    """What is wrong with ``mapper.rescale``."""
    if mapper.rescale == "test" and mapper.variant != "released":
        yield (
            "mapper.rescale: test standardises predictions over the test images, as published code does. Ask for it"
            " with mapper.variant=released, which marks every result, or choose none or train."
        )


def _ridge_rules(cfg: Config) -> Iterator[str]:
    for _, one in _decoded_by(cfg, "ridge"):
        mapper = one.mapper
        assert isinstance(mapper, RidgeSettings)
        if not mapper.alphas or any(alpha <= 0 for alpha in mapper.alphas):
            yield f"mapper.alphas: {mapper.alphas} must hold one or more positive numbers."
        if mapper.folds < 0 or mapper.folds == 1:
            yield f"mapper.folds: {mapper.folds} must be 0 (choose alpha on the validation images) or at least 2."
        if mapper.voxel_power < 0:
            yield f"mapper.voxel_power: {mapper.voxel_power} must be at least 0."
        if cfg.data.test_scaling == "own" and mapper.voxel_power:
            yield "data.test_scaling: own leaves no room for voxel weights; it needs mapper.voxel_power=0."
        yield from (*_linear(mapper), *rescaled(mapper))


def _fastl2lir_rules(cfg: Config) -> Iterator[str]:
    for _, one in _decoded_by(cfg, "fastl2lir"):
        mapper = one.mapper
        assert isinstance(mapper, FastL2LiRSettings)
        if mapper.n_feat < 1:
            yield f"mapper.n_feat: {mapper.n_feat} was given, wanted 1 or more voxels for each column."
        if mapper.penalty <= 0:
            yield f"mapper.penalty: {mapper.penalty} must be positive."
        yield from (*_linear(mapper), *rescaled(mapper))


def _two_stage_rules(cfg: Config) -> Iterator[str]:
    decoded = _decoded_by(cfg, "two_stage")
    for target, one in decoded:
        yield from (*_network(one), *_training(cfg, one), *rescaled(one.mapper))
        is_map = component("target", target).map
        if not has_prior(one) and one.training.token_weight == 0 and not is_map:
            yield (
                "training.token_weight: 0 without a prior leaves nothing that learns the tokens; give one or the other."
            )


def _others(cfg: Config, verb: str) -> Iterator[str]:
    """What training cannot do for want of other subjects or targets."""
    if verb not in ("train", "run"):
        return
    others = [name for name in cfg.data.subjects if name != cfg.subject.name]
    training = cfg.training
    wants_others = training.stage == "pretrain" or (training.pretrain and not training.pretrained)
    if wants_others and not others:
        yield (
            f"training.pretrain: data {cfg.data.name} has no subject beside {cfg.subject.name} (data.subjects), so"
            " there is nobody to pretrain on. Give training.pretrain=false, training.pretrained=<folder>, or"
            " mapper=ridge, which needs no training."
        )
    wanted = cfg.target.name
    if cfg.network.share == "all" and verb == "train" and wanted not in (*cfg.method.targets, ALL):
        yield (
            f"target: network.share=all trains {list(cfg.method.targets)} (method.targets) at once, {wanted} is not"
            " among them. Add it to method.targets, or choose network.share=target."
        )


def _network(one: Decoding) -> Iterator[str]:
    network = one.network
    for name in SHARES:
        if not 0 <= getattr(network, name) < 1:
            yield f"network.{name}: {getattr(network, name)} lies outside [0, 1)."
    yield from at_least(1, data=network, names=POSITIVE["network"], key="network")
    yield from at_least(0, data=network, names=("blocks",), key="network")
    if not network.decoder_channels or min(network.decoder_channels) < 1:
        yield f"network.decoder_channels: {network.decoder_channels} must hold one or more positive numbers."
    if not 2 <= network.prior_steps <= network.prior_timesteps:
        yield (
            f"network.prior_steps: {network.prior_steps} noise levels of {network.prior_timesteps} were given, wanted 2"
            " to network.prior_timesteps."
        )
    if network.predict == "prior" and not has_prior(one):
        yield "network.predict: prior needs network.prior=true and training.prior_weight above 0; or predict=tokens."


def _training(cfg: Config, one: Decoding) -> Iterator[str]:
    training = one.training
    yield from at_least(1, data=training, names=POSITIVE["training"], key="training")
    for name in NOT_NEGATIVE:
        if getattr(training, name) < 0:
            yield f"training.{name}: {getattr(training, name)} is negative."
    if training.lr <= 0:
        yield f"training.lr: {training.lr} must be positive."
    if not 0 <= training.warmup < 1:
        yield f"training.warmup: {training.warmup} lies outside [0, 1)."
    for name, low, high in (("mixco_share", 0, 1), ("mixco_select", 0, 1), ("ema", 0, 0.99999)):
        if not low <= getattr(training, name) <= high:
            yield f"training.{name}: {getattr(training, name)} lies outside [{low}, {high}]."
    if training.align and one.mapper.variant == "released":
        yield "training.align: published code starts a new subject's layer from chance; give training.align=false."
    temperatures = (training.mixco_temperature, training.aux_temperature, *training.soft_temperatures)
    if min(temperatures) <= 0 or training.mixco_beta <= 0:
        yield "training: temperatures and mixco_beta must be positive."
    if len(training.soft_temperatures) != 2:
        yield f"training.soft_temperatures: {training.soft_temperatures} must hold two, of the first and last epoch."
    if training.aux_target:
        yield from _teacher(training.aux_target)


def _teacher(name: str) -> Iterator[str]:
    from nd.config.components import found, not_a_component

    if name not in found("target").components:
        yield not_a_component("target", name).replace("target.name", "training.aux_target")


def has_prior(one: Decoding) -> bool:
    """Whether token parts have a prior: one that no loss trains is left out of the network."""
    return trained_heads(one.network, one.training).prior


def _untrained_idle(cfg: Config) -> Iterator[Idle]:
    if not any(component("mapper", one.name).trained for one in cfg.mappers or [cfg.mapper]):
        for group in ("network", "training"):
            fields = tuple(f"{group}.{name}" for name in vars(getattr(cfg, group)))
            yield Idle(fields, f"it belongs to mapper=two_stage, not {cfg.mapper.name}")


def _rescale_idle(cfg: Config) -> Iterator[Idle]:
    if cfg.mapper.rescale == "train":
        yield Idle(("mapper.rescale",), f"train is ridge's; {cfg.mapper.name} has none or (variant=released) test")


def _fastl2lir_idle(cfg: Config) -> Iterator[Idle]:
    yield from (*_untrained_idle(cfg), *_rescale_idle(cfg))


def _two_stage_idle(cfg: Config) -> Iterator[Idle]:
    yield from _rescale_idle(cfg)
    network, training = cfg.network, cfg.training
    if training.stage == "finetune" and not training.pretrain:
        yield Idle(
            tuple(f"training.{name}" for name in ("pretrain_epochs", "pretrained", "finetune_lr", "align")),
            "nothing is pretrained",
        )
    if training.stage == "pretrain":
        only_later = ("epochs", "pretrain", "pretrained", "finetune_lr", "align")
        yield Idle(tuple(f"training.{name}" for name in only_later), "training.stage is pretrain")
    if training.pretrained:
        yield Idle(("training.pretrain_epochs",), "training.pretrained is given")
    if not network.prior:
        of_prior = tuple(f"network.{name}" for name in vars(network) if name.startswith("prior_"))
        yield Idle((*of_prior, "training.prior_weight"), "there is no prior (network.prior)")
    if not trained_heads(network, training).projector:
        mixing = tuple(f"training.{name}" for name in vars(training) if name.startswith(("mixco_", "soft_")))
        yield Idle(mixing, "there is no contrastive loss (network.projector, training.contrast_weight)")
    if not training.aux_target:
        yield Idle(("training.aux_weight", "training.aux_temperature"), "training.aux_target is empty")


def _ridge(settings: Any, device: Any) -> Any:
    from nd.mappers.ridge import Ridge

    return Ridge(settings, device)


def _restored_ridge(settings: Any, state: Any, details: Any) -> Any:
    from nd.mappers.ridge import Ridge

    return Ridge.restore(settings, state, details)


def _fastl2lir(settings: Any, device: Any) -> Any:
    from nd.mappers.fastl2lir import FastL2LiR

    return FastL2LiR(settings, device)


def _restored_fastl2lir(settings: Any, state: Any, details: Any) -> Any:
    from nd.mappers.fastl2lir import FastL2LiR

    return FastL2LiR.restore(settings, state, details)


def _restored_two_stage(settings: Any, state: Any, details: Any) -> Any:
    from nd.mappers.two_stage import TwoStage

    return TwoStage.restore(settings, state, details)


COMPONENTS = (
    Mapper(
        name="ridge",
        settings=RidgeSettings,
        rules=_ridge_rules,
        idle=_untrained_idle,
        build=_ridge,
        restore=_restored_ridge,
    ),
    Mapper(
        name="fastl2lir",
        settings=FastL2LiRSettings,
        rules=_fastl2lir_rules,
        idle=_fastl2lir_idle,
        build=_fastl2lir,
        restore=_restored_fastl2lir,
    ),
    Mapper(
        name="two_stage",
        settings=TwoStageSettings,
        trained=True,
        config_groups=("network", "training"),
        rules=_two_stage_rules,
        verb_rules=_others,
        idle=_two_stage_idle,
        restore=_restored_two_stage,
    ),
)
