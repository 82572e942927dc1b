"""Rules between fields: what contradicts, and what was given but has no effect.

``contradictions`` makes a run impossible or meaningless; ``without_effect`` only deserves a warning. What concerns one
component stands with the component (``nd.config.components``); here is what concerns all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from nd.config.components import chosen, component
from nd.config.known import known_fields
from nd.config.schema import ALL, Config
from nd.errors import did_you_mean
from nd.files import located

# What says how images are made, of which nothing counts where they are given.
MAKING_GROUPS = ("method", "target", "mapper", "network", "training", "backbone", "guidance")
MAKING_FIELDS = ("subject.roi", "seed", "features", "control", "debug.limit_images")


def contradictions(cfg: Config, verb: str = "", multirun: bool = False) -> list[str]:
    """Return every contradiction between (or range violated by) fields whose types are already right."""
    rules = (_data, _subject, _targets, _backbone, _protocol, _evaluation, _given_images, _trainer, _logger, _paths)
    found = [problem for rule in rules for problem in rule(cfg)]
    for one in chosen(cfg).values():
        found += [*one.rules(cfg), *one.verb_rules(cfg, verb)]
    if multirun and cfg.trainer.num_nodes > 1:
        found.append(
            f"trainer.num_nodes: {cfg.trainer.num_nodes} machines cannot share the jobs of a sweep, which one command"
            " starts. Give each job one machine (trainer.num_nodes=1), or run the commands one by one without -m."
        )
    if cfg.target.name == ALL and verb == "train":
        found.append("target: all is for `nd extract`; `nd train` fits one target at a time. Give target=<name>.")
    if cfg.images and verb not in ("", "evaluate"):
        found.append(f"images: images made elsewhere are for `nd evaluate`; `nd {verb}` cannot use them. Leave it out.")
    return list(dict.fromkeys(found))


def _data(cfg: Config) -> Iterator[str]:
    data, source = cfg.data, component("source", cfg.data.source)
    yield from at_least(2, data=data, names=("n_val",), key="data")
    yield from at_least(1, data=data, names=("image_size",), key="data")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", data.name):
        yield f"data.name: {data.name!r} names a folder; use letters, digits, '_' and '.' alone."
    if data.variant != "released" and data.test_scaling == "own":
        yield (
            "data.test_scaling: own fits statistics on test trials, as published code does. Ask for it with"
            " data.variant=released, which marks every result, or leave it out."
        )
    for stream, rois in data.streams.items():
        if not isinstance(rois, list) or not rois or not all(isinstance(roi, str) for roi in rois):
            yield f"data.streams: {stream} is {rois!r}, wanted a list of ROIs: data.streams={{{stream}: [V1, V2]}}."
    if cfg.layout != "prepared" and data.source != "scenes":
        yield f"layout: {cfg.layout} is a form in which data=scenes is written, but data is {data.name}."
    if data.split not in source.splits:
        near, listed = did_you_mean(data.split, source.splits), " or ".join(source.splits)
        yield f"data.split: {data.split} does not cut data {data.name}; its split is {listed}.{near}"
    if len(set(data.subjects)) < len(data.subjects):
        yield f"data.subjects: {data.subjects} names a subject twice."


def _subject(cfg: Config) -> Iterator[str]:
    data = cfg.data
    if cfg.subject.sessions < 0:
        yield f"subject.sessions: {cfg.subject.sessions} was given, wanted 1 or more, or 0 for all."
    if cfg.subject.name not in data.subjects:
        near, listed = did_you_mean(cfg.subject.name, data.subjects), ", ".join(data.subjects)
        yield f"subject: {cfg.subject.name} is not a subject of {data.name}.{near} Subjects: {listed}."


def _targets(cfg: Config) -> Iterator[str]:
    generator = component("generator", cfg.method.generator)
    missing = [target for target in generator.needs if target not in cfg.method.targets]
    if missing:
        yield f"method.targets: generator {generator.name} needs {missing} beside {list(cfg.method.targets)}."


def _backbone(cfg: Config) -> Iterator[str]:
    for name in ("tower_mean", "tower_std"):
        if len(getattr(cfg.backbone, name)) != 3:
            yield f"backbone.{name}: {getattr(cfg.backbone, name)} must hold three numbers, one per RGB channel."
    if any(value <= 0 for value in cfg.backbone.tower_std):
        yield f"backbone.tower_std: {cfg.backbone.tower_std} must be positive."
    yield from at_least(1, data=cfg.backbone, names=("image_size", "tower_size"), key="backbone")
    for name in ("weights", "image_tower"):
        given = getattr(cfg.backbone, name)
        if given.startswith(("/", "./", "../", "~")) and not located(given).exists():
            yield f"backbone.{name}: {given} does not exist."


def _protocol(cfg: Config) -> Iterator[str]:
    protocol, (fitting, *others) = cfg.protocol, component("source", cfg.data.source).protocols
    # Scenes in the files of another release are still Scenes' images.
    disguised = cfg.data.simulated and cfg.data.source != "digits69" and protocol.name == "scenes"
    if protocol.name not in (fitting, *others) and not disguised:
        yield (
            f"protocol: {protocol.name} does not fit data {cfg.data.name}; choose protocol={fitting}"
            " (an experiment sets data, backbone, guidance and protocol together)."
        )
    elif protocol.split and cfg.data.split != protocol.split:
        yield (
            f"protocol: {protocol.name} is defined on the {protocol.n_images} test images of split {protocol.split},"
            f" but data.split is {cfg.data.split}. Give data.split={protocol.split} or protocol={fitting}."
        )
    limit = 0 if cfg.images else cfg.debug.limit_images
    if protocol.n_images and (cfg.part == "val" or 0 < limit < protocol.n_images):
        which = "part=val" if cfg.part == "val" else f"debug.limit_images={limit}"
        yield (
            f"protocol: {protocol.name} is defined on all {protocol.n_images} test images, but {which}. Leave that out,"
            f" choose protocol={fitting}, or give protocol.n_images=0, which marks the protocol as changed."
        )


def _given_images(cfg: Config) -> Iterator[str]:
    for name in ("order", "images_hash", "subset"):
        if getattr(cfg, name) and not cfg.images:
            yield f"{name}: it is about images made elsewhere. Give them (images=<folder or file>), or leave it out."
    if cfg.subset and cfg.order:
        yield (
            "subset: images of some test images have no place in an order; name them by image id, without"
            f" order={cfg.order}."
        )
    if cfg.subset and cfg.protocol.n_images:
        yield (
            f"subset: protocol {cfg.protocol.name} is defined on all {cfg.protocol.n_images} test images. Choose"
            " another, or give protocol.n_images=0, which marks the protocol as changed."
        )


def _evaluation(cfg: Config) -> Iterator[str]:
    oracle = cfg.features == "oracle"
    refits = any(getattr(mapper, "refit", False) for mapper in cfg.mappers) and not cfg.images
    if cfg.part == "val" and refits and not oracle:
        yield "part: val needs mapper.refit=false, otherwise the mapper has been fitted on the images it is judged on."
    if oracle and cfg.control != "none":
        yield f"control: {cfg.control} is about decoding, but features=oracle decodes nothing; leave one of them out."
    for name in ("limit_images", "limit_grid"):
        if (limit := getattr(cfg.debug, name)) < 0:
            yield f"debug.{name}: {limit} is negative; 0 means all."


def _trainer(cfg: Config) -> Iterator[str]:
    trainer = cfg.trainer
    yield from at_least(1, data=trainer, names=("num_nodes", "batch_size"), key="trainer")
    yield from at_least(0, data=trainer, names=("num_workers", "memory_gb"), key="trainer")
    if trainer.devices < 1 and trainer.devices != -1:
        yield f"trainer.devices: {trainer.devices} was given, wanted 1 or more, or -1 for all."


def _logger(cfg: Config) -> Iterator[str]:
    yield from at_least(0, data=cfg.logger, names=("images",), key="logger")
    yield from at_least(1, data=cfg.tune, names=("trials",), key="tune")
    if cfg.logger.group and not re.fullmatch(r"[\w.-]+", cfg.logger.group):  # it names a file, too
        yield f"logger.group: {cfg.logger.group!r} names a group; use letters, digits, '_', '-' and '.' alone."


def _paths(cfg: Config) -> Iterator[str]:
    for name, given in vars(cfg.paths).items():
        if not given:  # as of a shell variable that is not set: what lies below it would lie in /
            yield f"paths.{name}: it is empty, wanted a folder; '.' is the one you are in."
        elif located(given).is_file():
            yield f"paths.{name}: {given} is a file, wanted a folder, there or not."


def at_least(low: int, *, data: object, names: Sequence[str], key: str) -> Iterator[str]:
    """Yield the fields of ``data`` that lie below ``low``."""
    for name in names:
        if getattr(data, name) < low:
            yield f"{key}.{name}: {getattr(data, name)} was given, wanted {low} or more."


def without_effect(cfg: Config, given: Sequence[str], verb: str = "") -> list[str]:
    """Return a warning for every field set by the user (dotted names) that changes nothing in this configuration."""
    found = [f"{key} has no effect: {why}." for keys, why in _idle(cfg, verb) for key in given if key in keys]
    guided = "guidance" in component("generator", cfg.method.generator).all_config_groups
    sampling = guided and cfg.sampled_steps and cfg.guidance.kappa > 0 and cfg.guidance.eta > 0
    if sampling and not cfg.guided_steps and any(key.startswith(("guidance", "method")) for key in given):
        found.append(f"guidance has no effect: int(steps run * eta) is 0 guided steps (eta {cfg.guidance.eta}).")
    made_for = {"scenes": cfg.data.simulated, "digits": cfg.data.source == "digits69"}
    if not made_for.get(cfg.backbone.name, True) and verb != "prepare" and _reads_backbone(cfg):
        found.append(f"backbone {cfg.backbone.name} was not made for data {cfg.data.name}.")
    return list(dict.fromkeys(found))


def _reads_backbone(cfg: Config) -> bool:
    """Whether anything of the method is read from the backbone."""
    targets = (component("target", name).parts for name in cfg.method.targets)
    return bool(component("generator", cfg.method.generator).parts(cfg)) or any(targets)


def _idle(cfg: Config, verb: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield fields that have no effect in this configuration, and why."""
    for one in chosen(cfg).values():
        yield from ((idle.fields, idle.why) for idle in one.idle(cfg))
    if verb in ("extract", "train") and cfg.target.name != ALL:
        yield _of_other_targets(cfg), f"it does not belong to target {cfg.target.name}"
    if verb != "prepare" and cfg.layout != "prepared":
        yield ("layout",), "only `nd prepare` writes it"
    if cfg.images:
        yield _making(), "the images are given (images=...), so nothing is made"
    if not cfg.protocol.measures:
        yield ("protocol.weights",), f"protocol {cfg.protocol.name} names no measures"
    if cfg.logger.name != "wandb":
        own = ("logger.project", "logger.mode", "logger.group", "logger.images")
        yield own, f"logger is {cfg.logger.name}"


def _of_other_targets(cfg: Config) -> tuple[str, ...]:
    own: set[Any] = {f"target.{name}" for name in vars(cfg.target)}
    return tuple(key for key in known_fields() if key.startswith("target.") and key not in own)


def _making() -> tuple[str, ...]:
    groups = tuple(f"{group}." for group in MAKING_GROUPS)
    return (*MAKING_GROUPS, *MAKING_FIELDS, *(key for key in known_fields() if key.startswith(groups)))
