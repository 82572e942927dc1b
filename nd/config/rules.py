"""Rules between fields: what contradicts, and what was given but has no effect.

``contradictions`` makes a run impossible or meaningless; ``without_effect`` only deserves a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nd.config import Config
from nd.config.mapper_rules import mapper_contradictions, mapper_idle
from nd.config.sampling_rules import at_least, guidance_rules, guided, method_rules, sampling_idle
from nd.config.target_group import ALL
from nd.data.prepared import data_folder
from nd.data.splits import BY_CLUSTER, SPLITS_OF
from nd.errors import did_you_mean
from nd.metrics.measures import MEASURES, encoded_layers
from nd.runs.identity import TRAINED_MAPPERS, flat

DIGITS69_IMAGES = {"digits69-cv10": 90, "digits69-given": 90}  # training images of a fold, validation included
TARGETS_WITH = {  # fields of target that belong to some targets alone
    "picture": ("z",),
    "posterior": ("z", "z40", "vdvae"),
    "max_captions": ("c", "clip_text"),
    "tokens": ("c",),
    "layers": ("g",),
    "vdvae_layers": ("vdvae",),
    "vdvae": ("vdvae",),
    "clip": ("clip_vision", "clip_text", "clip_image"),
}
NO_VOXELS = ("mean_image", "random_image")  # generators that ignore the decoded targets
NSD_FORMS = ("nsd", "mindeye2")
# Fields of data that belong to some sources alone.
FIELDS_OF = {
    **dict.fromkeys(("n_train", "n_repeats", "n_voxels", "world_seed"), ("scenes",)),
    "n_test": ("scenes", "own"),
    "file": ("digits69",),
    "orientation": ("own",),
    **dict.fromkeys(("root", "in_place", "constant_voxels"), NSD_FORMS),
    **dict.fromkeys(("betas", "mask", "scaling", "sessions"), ("nsd",)),
    "captions": (*NSD_FORMS, "own"),
    **dict.fromkeys(("voxels", "image_ids", "images", "session_ids", "test_ids"), ("own",)),
}
PUBLISHED = ("brain_diffuser", "mindeye1", "mindeye2", "minddiffuser")  # protocols defined on NSD's test images
PROTOCOLS_OF = {  # the usual one first
    "scenes": ("scenes",),
    "digits69": ("digits69",),
    **dict.fromkeys(NSD_FORMS, ("nd", *PUBLISHED)),
    "own": ("nd",),
}
# What says how images are made, of which nothing counts where they are given.
MAKING_GROUPS = ("method", "target", "mapper", "network", "training", "backbone", "guidance")
MAKING_FIELDS = ("subject.roi", "seed", "features", "control", "debug.limit_images")
MAKING = (*MAKING_GROUPS, *MAKING_FIELDS, *(name for name in flat(Config()) if name.split(".")[0] in MAKING_GROUPS))
TOWER_BLOCKS = 12  # blocks of the image towers in use (ViT-B/32 and the shipped ones)


def contradictions(cfg: Config, verb: str = "", multirun: bool = False) -> list[str]:
    """Return every contradiction between (or range violated by) fields whose types are already right."""
    rules = (_data, method_rules, guidance_rules, _targets, _protocol, _evaluation, _given_images, _trainer)
    found = [problem for rule in rules for problem in rule(cfg)] + mapper_contradictions(cfg, verb)
    if multirun and cfg.trainer.strategy in ("auto", "ddp") and (cfg.trainer.devices != 1 or cfg.trainer.num_nodes > 1):
        found.append(
            f"trainer.devices: {cfg.trainer.devices} devices with strategy {cfg.trainer.strategy} start this command"
            " again in every process, which inside a sweep (-m) would start the sweep again. Give each job one device"
            " (trainer.devices=1), or run the commands one by one without -m."
        )
    if cfg.target.name == ALL and verb == "train":
        found.append("target: all is for `nd extract`; `nd train` fits one target at a time. Give target=<name>.")
    if cfg.images and verb not in ("", "evaluate"):
        found.append(f"images: images made elsewhere are for `nd evaluate`; `nd {verb}` cannot use them. Leave it out.")
    return found + _files(cfg, verb)


def _files(cfg: Config, verb: str) -> list[str]:
    """What this verb reads from disk and cannot make itself."""
    found, prepared = [], data_folder(cfg)
    if cfg.data.source == "digits69" and verb in ("prepare", "run") and not cfg.data.file and not prepared.is_dir():
        from nd.data.digits69 import SOURCE  # imports scipy, which every other command line can do without

        found.append(
            f"data.file: digits69 is not prepared under {prepared} and no file was given. {SOURCE}. Pass it as"
            " data.file=<path>/digit69_28x28.mat."
        )
    return found


def _data(cfg: Config) -> Iterator[str]:
    data = cfg.data
    yield from at_least(2, data=data, names=("n_val", "n_train", "n_test"), key="data")
    yield from at_least(1, data=data, names=("n_repeats", "n_voxels", "image_size"), key="data")
    yield from _source(cfg)
    if data.split not in SPLITS_OF[data.source]:
        own = " or ".join(SPLITS_OF[data.source])
        yield f"data.split: {data.split} does not cut data {data.name}; its split is {own}."
    n_train = data.n_train if data.source == "scenes" else DIGITS69_IMAGES.get(data.split, 0)
    if n_train and data.n_val > n_train - 2:
        yield f"data.n_val: {data.n_val} validation images leave fewer than 2 of {n_train} training images; give fewer."
    if cfg.subject.sessions < 0:
        yield f"subject.sessions: {cfg.subject.sessions} was given, wanted 1 or more, or 0 for all."
    if cfg.subject.name not in data.subjects:
        near, listed = did_you_mean(cfg.subject.name, data.subjects), ", ".join(data.subjects)
        yield f"subject: {cfg.subject.name} is not a subject of {data.name}.{near} Subjects: {listed}."
    if len(set(data.subjects)) < len(data.subjects):
        yield f"data.subjects: {data.subjects} names a subject twice."


def _source(cfg: Config) -> Iterator[str]:
    data = cfg.data
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", data.name):
        yield f"data.name: {data.name!r} names a folder; use letters, digits, '_' and '.' alone."
    if data.sessions < 0:
        yield f"data.sessions: {data.sessions} was given, wanted 1 or more, or 0 for all."
    if data.variant != "released":
        transductive = {"scaling": data.scaling == "session", "test_scaling": data.test_scaling == "own"}
        for name in (name for name, chosen in transductive.items() if chosen):
            yield (
                f"data.{name}: {getattr(data, name)} fits statistics on test trials, as published code does. Ask for it"
                " with data.variant=released, which marks every result, or leave it out."
            )
    if data.test_scaling == "own" and cfg.mapper.voxel_power:
        yield "data.test_scaling: own leaves no room for voxel weights; it needs mapper.voxel_power=0."
    if cfg.layout != "prepared" and data.source != "scenes":
        yield f"layout: {cfg.layout} is a form in which data=scenes is written, but data is {data.name}."
    if cfg.layout != "prepared" and data.split == BY_CLUSTER:
        yield f"layout: {cfg.layout} has no split {data.split}; use data.split=scenes."


def _targets(cfg: Config) -> Iterator[str]:
    layers = cfg.target.layers
    if not layers or any(not 0 <= layer < TOWER_BLOCKS for layer in layers) or len(set(layers)) < len(layers):
        yield f"target.layers: {layers} must be different block numbers from 0 to {TOWER_BLOCKS - 1}."
    yield from at_least(0, data=cfg.target, names=("max_captions", "tokens"), key="target")
    yield from at_least(1, data=cfg.target, names=("vdvae_layers",), key="target")
    for name in ("tower_mean", "tower_std"):
        if len(getattr(cfg.backbone, name)) != 3:
            yield f"backbone.{name}: {getattr(cfg.backbone, name)} must hold three numbers, one per RGB channel."
    if any(value <= 0 for value in cfg.backbone.tower_std):
        yield f"backbone.tower_std: {cfg.backbone.tower_std} must be positive."
    yield from at_least(1, data=cfg.backbone, names=("image_size", "tower_size"), key="backbone")
    for name in ("weights", "image_tower"):
        given = getattr(cfg.backbone, name)
        if given.startswith(("/", "./", "../", "~")) and not Path(given).expanduser().exists():
            yield f"backbone.{name}: {given} does not exist."


def _protocol(cfg: Config) -> Iterator[str]:
    protocol, (fitting, *others) = cfg.protocol, PROTOCOLS_OF[cfg.data.source]
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
    yield from _measures(cfg)


def _measures(cfg: Config) -> Iterator[str]:
    protocol = cfg.protocol
    yield from at_least(1, data=protocol, names=("image_size", "network_size", "n_boot"), key="protocol")
    yield from at_least(0, data=protocol, names=("picture_size", "n_images"), key="protocol")
    for name in (name for name in protocol.measures if name not in MEASURES):
        yield (
            f"protocol.measures: {name} is no measure.{did_you_mean(name, MEASURES)} Measures: {', '.join(MEASURES)}."
        )
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


def _given_images(cfg: Config) -> Iterator[str]:
    for name in ("order", "images_hash"):
        if getattr(cfg, name) and not cfg.images:
            yield f"{name}: it is about images made elsewhere. Give them (images=<folder or file>), or leave it out."


def _evaluation(cfg: Config) -> Iterator[str]:
    oracle, fits = cfg.features == "oracle", cfg.mapper.refit and not cfg.images
    if cfg.part == "val" and fits and not oracle and cfg.mapper.name not in TRAINED_MAPPERS:
        yield "part: val needs mapper.refit=false, otherwise the mapper has been fitted on the images it is judged on."
    if oracle and cfg.control != "none":
        yield f"control: {cfg.control} is about decoding, but features=oracle decodes nothing; leave one of them out."
    if cfg.debug.limit_images < 0:
        yield f"debug.limit_images: {cfg.debug.limit_images} is negative; 0 means all."


def _trainer(cfg: Config) -> Iterator[str]:
    trainer = cfg.trainer
    yield from at_least(1, data=trainer, names=("num_nodes", "batch_size"), key="trainer")
    yield from at_least(0, data=trainer, names=("num_workers", "memory_gb"), key="trainer")
    if trainer.devices < 1 and trainer.devices != -1:
        yield f"trainer.devices: {trainer.devices} was given, wanted 1 or more, or -1 for all."


def without_effect(cfg: Config, given: Sequence[str], verb: str = "") -> list[str]:
    """Return a warning for every field set by the user (dotted names) that changes nothing in this configuration."""
    silent = [(keys, why) for keys, why, applies in _idle(cfg, verb) if applies]
    found = [f"{key} has no effect: {why}." for keys, why in silent for key in given if key in keys]
    if guided(cfg) and not cfg.guided_steps and any(key.startswith(("guidance", "method")) for key in given):
        found.append(f"guidance has no effect: int(steps run * eta) is 0 guided steps (eta {cfg.guidance.eta}).")
    made_for = {"scenes": cfg.data.simulated, "digits": cfg.data.source == "digits69"}
    if not made_for.get(cfg.backbone.name, True):
        found.append(f"backbone {cfg.backbone.name} was not made for data {cfg.data.name}.")
    return found


def _idle(cfg: Config, verb: str) -> list[tuple[tuple[str, ...], str, bool]]:
    """Fields that may be idle, why, and whether they are in this configuration."""
    generator, logger = cfg.method.generator, cfg.logger.name
    one = cfg.target.name if verb in ("extract", "train") and cfg.target.name != ALL else ""  # the only one worked on
    source = cfg.data.source
    return [
        *sampling_idle(cfg),
        *(
            ((f"data.{name}",), f"it belongs to data={' and data='.join(owners)}, not {source}", source not in owners)
            for name, owners in FIELDS_OF.items()
        ),
        (("layout",), "only `nd prepare` writes it", verb != "prepare" and cfg.layout != "prepared"),
        *(
            ((f"target.{name}",), f"it belongs to target {' and '.join(owners)}, not {one}", one not in ("", *owners))
            for name, owners in TARGETS_WITH.items()
        ),
        *mapper_idle(cfg),
        (MAKING, "the images are given (images=...), so nothing is made", bool(cfg.images)),
        (("control",), f"generator {generator} uses no voxels", generator in NO_VOXELS),
        (("protocol.weights",), f"protocol {cfg.protocol.name} names no measures", not cfg.protocol.measures),
        (("logger.project", "logger.mode"), f"logger is {logger}", logger != "wandb"),
    ]
