"""Rules between fields: what contradicts, and what was given but has no effect.

``contradictions`` makes a run impossible or meaningless; ``without_effect`` only deserves a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nd.data.prepared import data_folder
from nd.data.splits import SPLITS_OF
from nd.errors import did_you_mean
from nd.mapper_rules import mapper_contradictions, mapper_idle
from nd.results.identity import TRAINED_MAPPERS
from nd.schema import Config
from nd.schema.target import ALL

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
NEEDS = {  # targets a generator cannot do without
    "guided_diffusion": ("z", "c"),
    "pixels": ("pixels",),
    "vae": ("z",),
    "nearest_image": (),
    "mean_image": (),
    "random_image": (),
}
NO_VOXELS = ("mean_image", "random_image")  # generators that ignore the decoded targets
NSD_FORMS = ("nsd", "mindeye2")
# Fields of data that belong to some sources alone.
FIELDS_OF = {
    **dict.fromkeys(("n_train", "n_repeats", "n_voxels", "world_seed"), ("scenes",)),
    "n_test": ("scenes", "own"),
    "file": ("digits69",),
    **dict.fromkeys(("root", "in_place", "constant_voxels"), NSD_FORMS),
    **dict.fromkeys(("betas", "mask", "scaling", "sessions"), ("nsd",)),
    "captions": (*NSD_FORMS, "own"),
    **dict.fromkeys(("voxels", "image_ids", "images", "session_ids", "test_ids"), ("own",)),
}
PROTOCOLS_OF = {"scenes": "scenes", "digits69": "digits69", "nsd": "nd", "mindeye2": "nd", "own": "nd"}
TOWER_BLOCKS = 12  # blocks of the image towers in use (ViT-B/32 and the shipped ones)


def contradictions(cfg: Config, verb: str = "", multirun: bool = False) -> list[str]:
    """Return every contradiction between (or range violated by) fields whose types are already right."""
    rules = (_data, _method, _guidance, _targets, _evaluation, _trainer)
    found = [problem for rule in rules for problem in rule(cfg)] + mapper_contradictions(cfg, verb)
    if multirun and cfg.trainer.strategy in ("auto", "ddp") and (cfg.trainer.devices != 1 or cfg.trainer.num_nodes > 1):
        found.append(
            f"trainer.devices: {cfg.trainer.devices} devices with strategy {cfg.trainer.strategy} start this command"
            " again in every process, which inside a sweep (-m) would start the sweep again. Give each job one device"
            " (trainer.devices=1), or run the commands one by one without -m."
        )
    if cfg.target.name == ALL and verb == "train":
        found.append("target: all is for `nd extract`; `nd train` fits one target at a time. Give target=<name>.")
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
    yield from _at_least(
        1, data=data, names=("n_val", "n_train", "n_test", "n_repeats", "n_voxels", "image_size"), key="data"
    )
    yield from _source(cfg)
    if data.split not in SPLITS_OF[data.source]:
        own = " or ".join(SPLITS_OF[data.source])
        yield f"data.split: {data.split} does not cut data {data.name}; its split is {own}."
    n_train = data.n_train if data.source == "scenes" else DIGITS69_IMAGES.get(data.split, 0)
    if n_train and data.n_val >= n_train:
        yield f"data.n_val: {data.n_val} validation images leave nothing of {n_train} training images; give fewer."
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


def _method(cfg: Config) -> Iterator[str]:
    method = cfg.method
    yield from _at_least(1, data=method, names=("steps", "repeats"), key="method")
    if not 0 < method.strength <= 1:
        yield f"method.strength: {method.strength} lies outside (0, 1]."
    elif method.steps >= 1 and int(method.steps * method.strength) < 1:
        yield (
            f"method.strength: int(steps * strength) = int({method.steps} * {method.strength}) = 0 steps would be run;"
            " give more steps or a larger strength."
        )
    if method.cfg_scale < 1:
        yield f"method.cfg_scale: {method.cfg_scale} is below 1 (1 switches classifier-free guidance off)."
    if method.steps > 1000:
        yield f"method.steps: {method.steps} exceeds the 1000 training steps of the noise schedule."
    missing = [target for target in NEEDS[method.generator] if target not in method.targets]
    if missing:
        yield f"method.targets: generator {method.generator} needs {missing} beside {method.targets}."
    if method.generator == "nearest_image" and not method.targets:
        yield "method.targets: generator nearest_image needs at least one target to compare."
    if len(set(method.targets)) < len(method.targets):
        yield f"method.targets: {method.targets} names a target twice."


def _guidance(cfg: Config) -> Iterator[str]:
    guidance = cfg.guidance
    if guidance.kappa < 0:
        yield f"guidance.kappa: {guidance.kappa} is negative, which would steer away from the features; 0 switches off."
    if not 0 <= guidance.eta <= 1:
        yield f"guidance.eta: {guidance.eta} lies outside [0, 1] (share of the sampled steps that is guided)."
    if not guided(cfg):
        return
    if "g" not in cfg.method.targets:
        yield (
            f"guidance.kappa: guidance {guidance.kappa} needs target g, but method.targets is {cfg.method.targets};"
            " add g or choose guidance=none."
        )
    if len(guidance.layer_weights) != len(cfg.target.layers):
        yield (
            f"guidance.layer_weights: {len(guidance.layer_weights)} weights for {len(cfg.target.layers)} target.layers;"
            " give one weight per layer."
        )
    if any(weight < 0 for weight in guidance.layer_weights):
        yield f"guidance.layer_weights: {guidance.layer_weights} holds a negative weight."


def _targets(cfg: Config) -> Iterator[str]:
    layers = cfg.target.layers
    if not layers or any(not 0 <= layer < TOWER_BLOCKS for layer in layers) or len(set(layers)) < len(layers):
        yield f"target.layers: {layers} must be different block numbers from 0 to {TOWER_BLOCKS - 1}."
    yield from _at_least(0, data=cfg.target, names=("max_captions", "tokens"), key="target")
    yield from _at_least(1, data=cfg.target, names=("vdvae_layers",), key="target")
    for name in ("tower_mean", "tower_std"):
        if len(getattr(cfg.backbone, name)) != 3:
            yield f"backbone.{name}: {getattr(cfg.backbone, name)} must hold three numbers, one per RGB channel."
    if any(value <= 0 for value in cfg.backbone.tower_std):
        yield f"backbone.tower_std: {cfg.backbone.tower_std} must be positive."
    yield from _at_least(1, data=cfg.backbone, names=("image_size", "tower_size"), key="backbone")
    for name in ("weights", "image_tower"):
        given = getattr(cfg.backbone, name)
        if given.startswith(("/", "./", "../", "~")) and not Path(given).expanduser().exists():
            yield f"backbone.{name}: {given} does not exist."


def _evaluation(cfg: Config) -> Iterator[str]:
    fitting = PROTOCOLS_OF[cfg.data.source]
    # Scenes in the files of another release are still Scenes' pictures.
    disguised = cfg.data.simulated and cfg.data.source != "digits69" and cfg.protocol.name == "scenes"
    if cfg.protocol.name != fitting and not disguised:
        yield (
            f"protocol: {cfg.protocol.name} does not fit data {cfg.data.name}; choose protocol={fitting}"
            " (an experiment sets data, backbone, guidance and protocol together)."
        )
    yield from _at_least(1, data=cfg.protocol, names=("image_size", "network_size", "n_boot"), key="protocol")
    oracle = cfg.features == "oracle"
    if cfg.part == "val" and cfg.mapper.refit and not oracle and cfg.mapper.name not in TRAINED_MAPPERS:
        yield "part: val needs mapper.refit=false, otherwise the mapper has been fitted on the images it is judged on."
    if oracle and cfg.control != "none":
        yield f"control: {cfg.control} is about decoding, but features=oracle decodes nothing; leave one of them out."
    if cfg.debug.limit_images < 0:
        yield f"debug.limit_images: {cfg.debug.limit_images} is negative; 0 means all."


def _trainer(cfg: Config) -> Iterator[str]:
    trainer = cfg.trainer
    yield from _at_least(1, data=trainer, names=("num_nodes", "batch_size"), key="trainer")
    yield from _at_least(0, data=trainer, names=("num_workers",), key="trainer")
    if trainer.devices < 1 and trainer.devices != -1:
        yield f"trainer.devices: {trainer.devices} was given, wanted 1 or more, or -1 for all."


def _at_least(low: int, *, data: object, names: Sequence[str], key: str) -> Iterator[str]:
    for name in names:
        if getattr(data, name) < low:
            yield f"{key}.{name}: {getattr(data, name)} was given, wanted {low} or more."


def guided(cfg: Config) -> bool:
    """Whether feature guidance takes part in making the images."""
    return cfg.method.generator == "guided_diffusion" and cfg.guidance.kappa > 0 and cfg.guidance.eta > 0


def without_effect(cfg: Config, given: Sequence[str], verb: str = "") -> list[str]:
    """Return a warning for every field set by the user (dotted names) that changes nothing in this configuration."""
    silent = [(keys, why) for keys, why, applies in _idle(cfg, verb) if applies]
    found = [f"{key} has no effect: {why}." for keys, why in silent for key in given if key in keys]
    n_guided = int(int(cfg.method.steps * cfg.method.strength) * cfg.guidance.eta)
    if guided(cfg) and n_guided < 1 and any(key.startswith(("guidance", "method")) for key in given):
        found.append(f"guidance has no effect: int(steps run * eta) is 0 guided steps (eta {cfg.guidance.eta}).")
    made_for = {"scenes": cfg.data.simulated, "digits": cfg.data.source == "digits69"}
    if not made_for.get(cfg.backbone.name, True):
        found.append(f"backbone {cfg.backbone.name} was not made for data {cfg.data.name}.")
    return found


def _idle(cfg: Config, verb: str) -> list[tuple[tuple[str, ...], str, bool]]:
    """Fields that may be idle, why, and whether they are in this configuration."""
    sampling = ("method.steps", "method.strength", "method.cfg_scale")
    steering = tuple(f"guidance.{n}" for n in ("eta", "layer_weights", "through_unet", "normalise"))
    generator, logger = cfg.method.generator, cfg.logger.name
    no_diffusion = generator != "guided_diffusion"
    one = cfg.target.name if verb in ("extract", "train") and cfg.target.name != ALL else ""  # the only one worked on
    source = cfg.data.source
    return [
        (("guidance.kappa", *steering), f"generator {generator} is not guided", no_diffusion),
        (sampling, f"generator {generator} does not sample", no_diffusion),
        (steering, "guidance.kappa is 0", not no_diffusion and cfg.guidance.kappa == 0),
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
        (("control",), f"generator {generator} uses no voxels", generator in NO_VOXELS),
        (("logger.project", "logger.mode"), f"logger is {logger}", logger != "wandb"),
    ]
