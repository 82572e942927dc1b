"""mapper=two_stage: its fields, its rules and those of its groups network and training, and what has no effect.

Other mappers that are trained by the same module share the rules of those groups (`trained_rules` and the next two).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from nd.config.components import Idle, Mapper, component, found, not_a_component
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import ALL, MapperConfig
from nd.config.training import trained_heads
from nd.mappers.components import decoded_by, rescaled

if TYPE_CHECKING:
    from nd.config.schema import Config, Decoding

SHARES = ("dropout", "subject_dropout", "prior_drop")
POSITIVE = {
    "network": ("hidden", "prior_depth", "prior_heads", "prior_head_width", "prior_growth", "latent_channels"),
    "training": ("epochs", "pretrain_epochs", "batch_size", "accumulate", "validate_every"),
}
NOT_NEGATIVE = (
    "least_steps", "epoch_steps", "finetune_lr", "weight_decay", "subject_decay", "clip_norm", "patience",
    "prior_weight", "token_weight", "contrast_weight", "latent_weight", "aux_weight",
)  # fmt: skip


@dataclass(kw_only=True)
class TwoStageSettings(MapperConfig):
    """two_stage: a network, pretrained on other subjects and fine-tuned on this one (groups network and training)."""

    name: str = opt("two_stage", "mapper")
    # Applied to the finished predictions, so one training serves both.
    rescale: str = opt(
        "none",
        "spread of the predictions: as fitted; restored to that of the training targets, by the spread of predictions"
        " of validation images; or (variant=released) standardised over the test images and given mean and spread of"
        " the training targets",
        choices=("none", "train", "test"),
        since="predict",
    )


def trained_rules(cfg: Config, mapper: str) -> Iterator[str]:
    """What contradicts in the groups network and training of the targets that a trained mapper decodes."""
    for _, one in decoded_by(cfg, mapper):
        yield from (*_network(one), *_training(one), *rescaled(one.mapper))


def trained_verb_rules(cfg: Config, verb: str, mapper: str) -> Iterator[str]:
    """What is wrong with the targets that a verb works on: ``train`` on one, others on all of the method."""
    if not verb:  # composed for whatever comes
        return
    decoded = dict(decoded_by(cfg, mapper))
    together = cfg.network.share == "all" and cfg.target.name in cfg.method.targets
    names = [cfg.target.name] if verb == "train" and not together else list(cfg.method.targets)
    for name in (name for name in names if name in decoded):
        one, axes = decoded[name], component("target", name).axes
        if axes == "none":
            yield f"mapper: {mapper} has no head for target {name}. Give mapper=ridge for it."
        elif axes != "map" and not has_prior(one) and one.training.token_weight == 0:
            yield (
                "training.token_weight: 0 without a prior leaves nothing that learns the tokens; give one or the other."
            )
    if verb in ("train", "run") and decoded:
        yield from _others(cfg, verb)


def _others(cfg: Config, verb: str) -> Iterator[str]:
    """What training cannot do for want of other subjects or targets."""
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
    if min(network.decoder_channels, default=1) < 1:
        yield f"network.decoder_channels: {network.decoder_channels} must hold positive numbers, or none."
    if not network.decoder_channels and one.training.aux_target:
        yield (
            "training.aux_target: the auxiliary head reads the coarse map of a decoder, and network.decoder_channels=[]"
            " has none. Give decoder_channels, or leave aux_target out."
        )
    if not 2 <= network.prior_steps <= network.prior_timesteps:
        yield (
            f"network.prior_steps: {network.prior_steps} noise levels of {network.prior_timesteps} were given, wanted 2"
            " to network.prior_timesteps."
        )
    if network.prior_half_eps <= 0:
        yield f"network.prior_half_eps: {network.prior_half_eps} must be positive."
    if network.predict == "prior" and not has_prior(one):
        yield "network.predict: prior needs network.prior=true and training.prior_weight above 0; or predict=tokens."


def _training(one: Decoding) -> Iterator[str]:
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
    if name not in found("target").components:
        yield not_a_component("target", name).replace("target.name", "training.aux_target")
    elif component("target", name).axes in ("map", "none"):
        yield f"training.aux_target: {name} has no patch tokens. Choose g or clip_vision, or leave it empty."


def has_prior(one: Decoding) -> bool:
    """Whether token parts have a prior: one that no loss trains is left out of the network."""
    return trained_heads(one.network, one.training).prior


def trained_idle(cfg: Config) -> Iterator[Idle]:
    """Fields of a trained mapper and of its groups that change nothing."""
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
    if training.epoch_steps:
        yield Idle(("training.least_steps",), "training.epoch_steps is given")
    if not network.decoder_channels:
        yield Idle(("network.latent_channels",), "network.decoder_channels is empty")
    if not network.prior:
        of_prior = tuple(f"network.{name}" for name in vars(network) if name.startswith("prior_"))
        yield Idle((*of_prior, "training.prior_weight"), "there is no prior (network.prior)")
    if not trained_heads(network, training).projector:
        mixing = tuple(f"training.{name}" for name in vars(training) if name.startswith(("mixco_", "soft_")))
        yield Idle(mixing, "there is no contrastive loss (network.projector, training.contrast_weight)")
    if not training.aux_target:
        yield Idle(("training.aux_weight", "training.aux_temperature"), "training.aux_target is empty")


COMPONENTS = (
    Mapper(
        name="two_stage",
        settings=TwoStageSettings,
        trained=True,
        config_groups=("network", "training"),
        rules=partial(trained_rules, mapper="two_stage"),
        verb_rules=partial(trained_verb_rules, mapper="two_stage"),
        idle=trained_idle,
        network=lambda: import_module("nd.mappers.two_stage").TwoStage,
        restore=lambda *fitted: import_module("nd.mappers.two_stage").TwoStage.restore(*fitted),
    ),
)
