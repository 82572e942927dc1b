"""Rules between fields of the mapper groups: what contradicts, and what was given but has no effect."""

from __future__ import annotations

from collections.abc import Iterator

from nd.config import Config, trained_heads
from nd.config.target_group import ALL
from nd.runs.identity import TRAINED_MAPPERS, trained_together

# Fields of mapper that belong to some mappers alone.
FIELDS_OF = {
    **dict.fromkeys(("alphas", "alpha_per", "intercept", "folds", "voxel_power"), ("ridge",)),
    **dict.fromkeys(("n_feat", "penalty"), ("fastl2lir",)),
    **dict.fromkeys(("refit", "keep", "keep_folds"), ("ridge", "fastl2lir")),
}
SHARES = ("dropout", "subject_dropout", "prior_drop")
POSITIVE = {
    "network": ("hidden", "prior_depth", "prior_heads", "prior_head_width", "prior_growth", "latent_channels"),
    "training": ("epochs", "pretrain_epochs", "batch_size", "accumulate", "validate_every"),
}
NOT_NEGATIVE = ("least_steps", "finetune_lr", "weight_decay", "subject_decay", "clip_norm", "patience", "prior_weight",
                "token_weight",
                "contrast_weight", "latent_weight", "aux_weight")  # fmt: skip
# Targets that are maps of places, which latent heads predict; the others are tokens.
MAPS = ("z", "z40", "pixels", "colour")


def mapper_contradictions(cfg: Config, verb: str = "") -> list[str]:
    """Return every contradiction between (or range violated by) fields of the mapper groups."""
    found = [*_linear(cfg), *_columns(cfg)]
    if cfg.mapper.name in TRAINED_MAPPERS:
        found += [*_network(cfg), *_training(cfg), *_targets(cfg, verb)]
    return found


def _linear(cfg: Config) -> Iterator[str]:
    mapper = cfg.mapper
    if not mapper.alphas or any(alpha <= 0 for alpha in mapper.alphas):
        yield f"mapper.alphas: {mapper.alphas} must hold one or more positive numbers."
    if mapper.folds < 0 or mapper.folds == 1:
        yield f"mapper.folds: {mapper.folds} must be 0 (choose alpha on the validation images) or at least 2."
    if mapper.voxel_power < 0:
        yield f"mapper.voxel_power: {mapper.voxel_power} must be at least 0."
    if mapper.n_feat < 1:
        yield f"mapper.n_feat: {mapper.n_feat} was given, wanted 1 or more voxels for each column."
    if mapper.penalty <= 0:
        yield f"mapper.penalty: {mapper.penalty} must be positive."


def _columns(cfg: Config) -> Iterator[str]:
    mapper = cfg.mapper
    if not 0 < mapper.keep <= 1:
        yield f"mapper.keep: {mapper.keep} lies outside (0, 1] (share of the columns that is kept)."
    if mapper.keep_folds < 2:
        yield f"mapper.keep_folds: {mapper.keep_folds} was given, wanted 2 or more."
    if mapper.rescale == "test" and mapper.variant != "released":
        yield (
            "mapper.rescale: test standardises predictions over the test images, as published code does. Ask for it"
            " with mapper.variant=released, which marks every result, or choose none or train."
        )
    if mapper.rescale == "train" and mapper.name != "ridge":
        yield f"mapper.rescale: train is ridge's; {mapper.name} has none or (variant=released) test."


def _network(cfg: Config) -> Iterator[str]:
    network = cfg.network
    for name in SHARES:
        if not 0 <= getattr(network, name) < 1:
            yield f"network.{name}: {getattr(network, name)} lies outside [0, 1)."
    for name in POSITIVE["network"]:
        if getattr(network, name) < 1:
            yield f"network.{name}: {getattr(network, name)} was given, wanted 1 or more."
    if network.blocks < 0:
        yield f"network.blocks: {network.blocks} was given, wanted 0 or more."
    if not network.decoder_channels or min(network.decoder_channels) < 1:
        yield f"network.decoder_channels: {network.decoder_channels} must hold one or more positive numbers."
    if not 2 <= network.prior_steps <= network.prior_timesteps:
        yield (
            f"network.prior_steps: {network.prior_steps} noise levels of {network.prior_timesteps} were given, wanted 2"
            " to network.prior_timesteps."
        )
    if network.predict == "prior" and not has_prior(cfg):
        yield "network.predict: prior needs network.prior=true and training.prior_weight above 0; or predict=tokens."


def _training(cfg: Config) -> Iterator[str]:
    training = cfg.training
    for name in POSITIVE["training"]:
        if getattr(training, name) < 1:
            yield f"training.{name}: {getattr(training, name)} was given, wanted 1 or more."
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
    if training.align and cfg.mapper.variant == "released":
        yield "training.align: published code starts a new subject's layer from chance; give training.align=false."
    temperatures = (training.mixco_temperature, training.aux_temperature, *training.soft_temperatures)
    if min(temperatures) <= 0 or training.mixco_beta <= 0:
        yield "training: temperatures and mixco_beta must be positive."
    if len(training.soft_temperatures) != 2:
        yield f"training.soft_temperatures: {training.soft_temperatures} must hold two, of the first and last epoch."


def _targets(cfg: Config, verb: str) -> Iterator[str]:
    others = [name for name in cfg.data.subjects if name != cfg.subject.name]
    wants_others = cfg.training.stage == "pretrain" or (cfg.training.pretrain and not cfg.training.pretrained)
    if wants_others and not others and verb in ("train", "run"):
        yield (
            f"training.pretrain: data {cfg.data.name} has no subject beside {cfg.subject.name} (data.subjects), so"
            " there is nobody to pretrain on. Give training.pretrain=false, or training.pretrained=<folder>."
        )
    together, wanted = trained_together(cfg), cfg.target.name
    predicted = together if verb == "train" else cfg.method.targets
    if not has_prior(cfg) and cfg.training.token_weight == 0 and not set(predicted) <= set(MAPS):
        yield "training.token_weight: 0 without a prior leaves nothing that learns the tokens; give one or the other."
    if verb == "train" and wanted not in (*together, ALL):
        yield (
            f"target: network.share=all trains {together} (method.targets) at once, {wanted} is not among them. Add it"
            " to method.targets, or choose network.share=target."
        )


def has_prior(cfg: Config) -> bool:
    """Whether token parts have a prior: one that no loss trains is left out of the network."""
    return trained_heads(cfg.network, cfg.training).prior


def mapper_idle(cfg: Config) -> list[tuple[tuple[str, ...], str, bool]]:
    """Return fields that may be idle, why, and whether they are in this configuration."""
    name, trained = cfg.mapper.name, cfg.mapper.name in TRAINED_MAPPERS
    whose = "it belongs to mapper="
    groups = {"network": vars(cfg.network), "training": vars(cfg.training)}
    return [
        *(
            (
                (f"mapper.{field}",),
                f"it belongs to mapper={' and mapper='.join(owners)}, not {name}",
                name not in owners,
            )
            for field, owners in FIELDS_OF.items()
        ),
        *(
            (tuple(f"{group}.{field}" for field in values), f"{whose}two_stage, not {name}", not trained)
            for group, values in groups.items()
        ),
        *((fields, why, trained and applies) for fields, why, applies in _network_idle(cfg)),
    ]


def _network_idle(cfg: Config) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """The same of the trained mapper alone."""
    network, training = cfg.network, cfg.training
    of_prior = tuple(f"network.{name}" for name in vars(network) if name.startswith("prior_"))
    mixing = tuple(f"training.{name}" for name in vars(training) if name.startswith(("mixco_", "soft_")))
    only_later = ("training.epochs", "training.pretrain", "training.pretrained")
    nothing_earlier = not training.pretrain and training.stage == "finetune"
    yield ("training.pretrain_epochs", "training.pretrained"), "nothing is pretrained", nothing_earlier
    yield ("training.finetune_lr", "training.align"), "nothing is pretrained", nothing_earlier
    yield ("training.pretrain_epochs",), "training.pretrained is given", bool(training.pretrained)
    yield (
        (*only_later, "training.finetune_lr", "training.align"),
        "training.stage is pretrain",
        training.stage == "pretrain",
    )
    yield (*of_prior, "training.prior_weight"), "there is no prior (network.prior)", not network.prior
    without_contrast = not trained_heads(network, training).projector
    yield mixing, "there is no contrastive loss (network.projector, training.contrast_weight)", without_contrast
    yield ("training.aux_weight", "training.aux_temperature"), "training.aux_target is empty", not training.aux_target
