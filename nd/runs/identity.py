"""What makes two runs the same run: the part of a configuration that decides a verb's output, hashed into ``run_id``.

Every field of the components that a step uses counts, unless its declaration says that results do not depend on it
(``identity=False``) or the component says that it has no effect in this configuration (``idle``). An identity holds the
values that differ from the declared defaults, so a new field with a default keeps every old id; ``SCHEMA_VERSION`` is
hashed with them and is raised when a field changes its meaning. A step leaves out what it does not read, so runs are
shared: guided and unguided sampling read the same predictions, every method reads the same mappers. Where weights and
data lie is not identity; their contents are compared when a finished run is used again (``nd.runs.inputs``).

Choices that are not obvious:

- ``features=oracle`` and the floors read no voxels, so mapper, ROI and control do not count. The subject still does:
  data sets whose test images differ by subject (NSD) then need no second rule, and a table row is one subject's.
- The seed counts only where something is drawn: sampling noise, random images, the shuffled control, training step by
  step. Closed-form mappers draw nothing.
- A pretrain stage is the same whatever sessions the subject it leaves out has.
- Of reconstructions made elsewhere (``nd evaluate images=...``) the content counts, not where they lie, nor any field
  that says how images are made.
- Guidance that guides no step (kappa 0, or eta below one step) is one thing, "off", whatever its other fields say.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from nd.config.components import Generator, Mapper, component
from nd.config.fields import declared
from nd.config.schema import SCHEMA_VERSION, Config, Decoding
from nd.errors import unknown
from nd.files import sha256_json

VERBS = ("train", "predict", "reconstruct", "evaluate")  # the verbs that write run folders
Identity = dict[str, Any]


def generator_of(cfg: Config) -> Generator:
    """Return what the chosen generator declares."""
    found: Generator = component("generator", cfg.method.generator)
    return found


def mapper_of(one: Decoding | Config) -> Mapper:
    """Return what the mapper of a decoding, or of a configuration for one target, declares."""
    found: Mapper = component("mapper", one.mapper.name)
    return found


def reads_targets(cfg: Config) -> bool:
    """Say whether the generator turns targets into images (the other generators are floors that read none)."""
    return generator_of(cfg).reads_targets


def reads_predictions(cfg: Config) -> bool:
    """Say whether ``reconstruct`` needs a predict run: not for oracle features, not for floors that read no targets."""
    return reads_targets(cfg) and cfg.features == "predicted"


def trained_together(cfg: Config) -> list[str]:
    """Return the targets whose mapper one training makes: one, or with ``network.share=all`` all of the method that
    have the same mapper, network and training."""
    if not (mapper_of(cfg).trained and cfg.network.share == "all"):
        return [cfg.target.name]
    own = (cfg.mapper, cfg.network, cfg.training, cfg.subject.roi)
    every = {name: cfg.decoding(name) for name in cfg.method.targets}
    return [name for name, one in every.items() if (one.mapper, one.network, one.training, one.roi) == own]


def counted(
    group: Any, prefix: str, *, verb: str = "", idle: Collection[str] = (), parts: Collection[str] | None = None
) -> Identity:
    """Return the fields of one group that count and differ from their default, by dotted name.

    Args:
        group: dataclass of the group.
        prefix: its name.
        verb: the verb that reads it; fields that only a later one reads (``since``) are left out.
        idle: dotted names of fields without effect.
        parts: of the backbone: the parts that are read; fields of other parts are left out. None: all.
    """
    default = type(group)()
    found: Identity = {}
    for one in fields(group):
        facts, key = declared(one), f"{prefix}.{one.name}"
        early = facts.since and VERBS.index(facts.since) > VERBS.index(verb or VERBS[-1])
        elsewhere = bool(facts.of) and parts is not None and not set(facts.of) & set(parts)
        if facts.identity and not (early or elsewhere or key in idle):
            value = getattr(group, one.name)
            if value != getattr(default, one.name):
                found[key] = list(value) if isinstance(value, (list, tuple)) else value
    return found


def _data(cfg: Config) -> Identity:
    return counted(cfg.data, "data")


def _target(cfg: Config, name: str) -> Identity:
    """What one target's features depend on."""
    found = {"target.name": name, **counted(cfg.decoding(name).target, "target")}
    parts = component("target", name).parts
    return found | (counted(cfg.backbone, "backbone", parts=parts) if parts else {})


def decoding_identity(cfg: Config, name: str, verb: str) -> Identity:
    """Return what the mapper of one target, or its predictions, depends on, beside data and subject."""
    own = cfg.with_target(name)
    kind = mapper_of(own)
    idle = {key for one in kind.idle(own) for key in one.fields}
    found = {**_target(cfg, name), "mapper.name": own.mapper.name, "subject.roi": own.subject.roi}
    found |= counted(own.mapper, "mapper", verb=verb, idle=idle)
    for group in kind.config_groups:
        found |= counted(getattr(own, group), group, idle=idle)
    if kind.trained:
        found["seed"] = cfg.seed
        found |= {"trained with": sorted(trained_together(own))} if cfg.network.share == "all" else {}
    return found


def _train(cfg: Config) -> Identity:
    pretrain = mapper_of(cfg).trained and cfg.training.stage == "pretrain"
    sessions = {} if pretrain else {"subject.sessions": cfg.subject.sessions}
    together = {name: decoding_identity(cfg, name, "train") for name in sorted(trained_together(cfg))}
    control = {"control": cfg.control, "seed": cfg.seed} if cfg.control == "shuffled_labels" else {}
    return {**_data(cfg), "subject.name": cfg.subject.name, **sessions, "targets": together, **control}


def _predict(cfg: Config) -> Identity:
    seed = {"control": cfg.control, "seed": cfg.seed} if cfg.control != "none" else {}
    every = {name: decoding_identity(cfg, name, "predict") for name in sorted(cfg.method.targets)}
    subject = {"subject.name": cfg.subject.name, "subject.sessions": cfg.subject.sessions}
    return {**_data(cfg), **subject, "part": cfg.part, "targets": every, **seed}


def _reconstruct(cfg: Config) -> Identity:
    kind = generator_of(cfg)
    idle = {key for one in kind.idle(cfg) for key in one.fields}
    found = {**_data(cfg), "subject.name": cfg.subject.name, "part": cfg.part, "method.name": cfg.method.name}
    found |= {"method.generator": kind.name, "debug.limit_images": cfg.debug.limit_images}
    found |= counted(cfg.method, "method", idle=idle)
    if reads_predictions(cfg):
        found |= _predict(cfg)
    elif reads_targets(cfg):
        found |= {"features": cfg.features, "targets": {n: _target(cfg, n) for n in sorted(cfg.method.targets)}}
    if parts := kind.parts(cfg):
        found |= counted(cfg.backbone, "backbone", parts=parts)
    found |= {"seed": cfg.seed} if kind.draws else {}
    for group in kind.all_config_groups:
        read = group in kind.config_groups(cfg)
        found |= counted(getattr(cfg, group), group, idle=idle) if read else {group: "off"}
    return found


def _evaluate(cfg: Config) -> Identity:
    protocol = {"protocol.name": cfg.protocol.name, **counted(cfg.protocol, "protocol")}
    if cfg.images_hash:  # images made elsewhere: nothing is known of how
        own = {"images_hash": cfg.images_hash, "subject.name": cfg.subject.name, "part": cfg.part}
        return {**own, **_data(cfg), **protocol}
    return {**_reconstruct(cfg), **protocol}


PARTS = {"train": _train, "predict": _predict, "reconstruct": _reconstruct, "evaluate": _evaluate}


def identity_of(verb: str, cfg: Config) -> Identity:
    """Return what decides a verb's output: its values by dotted name, those of each target below ``targets``.

    Raises:
        UserError: a verb that writes no run folder.
    """
    if verb not in PARTS:
        raise unknown("verb with run folders", verb, VERBS)
    return {**PARTS[verb](cfg), "verb": verb, "schema": SCHEMA_VERSION}


def flat(identity: Identity) -> Identity:
    """Return an identity by dotted key, of a target ``<target>.<key>``, without what runs of one verb share."""
    inner = {f"{name}.{key}": value for name, one in identity.get("targets", {}).items() for key, value in one.items()}
    return {key: value for key, value in (identity | inner).items() if key not in ("targets", "verb", "schema")}


def run_id(verb: str, cfg: Config) -> str:
    """Return the 12 hexadecimal digits that name a run: the start of ``identity_of``'s SHA-256. Errors as there."""
    return sha256_json(identity_of(verb, cfg))


def prepared_identity(cfg: Config) -> Identity:
    """Return what ``prepare`` depends on, as far as it is not found in the files: equal for steps that do the same."""
    own = {"subject.name": cfg.subject.name} if component("source", cfg.data.source).by_subject else {}
    return {**_data(cfg), **own}


def extracted_identity(cfg: Config, names: Collection[str]) -> Identity:
    """Return what the features of some targets depend on beside the stimuli."""
    return {**_data(cfg), "targets": {name: _target(cfg, name) for name in sorted(names)}}


def _recipe(cfg: Config) -> list[str]:
    oracle = reads_targets(cfg) and cfg.features == "oracle"
    return [cfg.method.name, *generator_of(cfg).words(cfg), *(["oracle"] if oracle else [])]


def _mappers(cfg: Config) -> str:
    return "_".join(dict.fromkeys(mapper.name for mapper in cfg.mappers)) or cfg.mapper.name


def run_name(verb: str, cfg: Config) -> str:
    """Return a short readable name; it is a function of the identity and has only letters, digits, ``_ . -``.

    Words joined by dashes: data, subject, what was trained, decoded or made, and what sets it apart.
    """
    words = [cfg.data.name, cfg.subject.name]
    if verb == "evaluate" and cfg.images_hash:
        words += ["given", *([cfg.part] if cfg.part != "test" else [])]
        return _safe(words)
    if verb == "train":
        words += ["_".join(sorted(trained_together(cfg))), cfg.mapper.name]
        words += ["pretrain"] if mapper_of(cfg).trained and cfg.training.stage == "pretrain" else []
    elif verb == "predict":
        words += ["_".join(sorted(cfg.method.targets)), _mappers(cfg)]
    else:
        words += _recipe(cfg)
    if verb == "predict" or (verb != "train" and reads_predictions(cfg)):
        words += ["shuffled"] if cfg.control == "shuffled_voxels" else []
    if cfg.control == "shuffled_labels" and (verb in ("train", "predict") or reads_predictions(cfg)):
        words.append("shuffled_labels")
    if verb != "train" and cfg.part != "test":
        words.append(cfg.part)
    return _safe(words)


def _safe(words: list[str]) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words))
