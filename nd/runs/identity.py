"""What makes two runs the same run: the part of a configuration that decides a verb's output, hashed into ``run_id``.

An identity holds the values that differ from the dataclass defaults, so a new field with a default keeps every old id;
``SCHEMA_VERSION`` is hashed with them and is raised when a field changes its meaning. Fields that a verb's output does
not depend on are left out, so runs are shared: guided and unguided sampling read the same predictions, every method
reads the same mappers. Where weights and data lie is not identity; their contents are compared when a finished run is
used again (``nd.runs.inputs``).

Choices that are not obvious:

- ``features=oracle`` and the floors read no voxels, so mapper, ROI and control do not count. The subject still does:
  data sets whose test images differ by subject (NSD) then need no second rule, and a table row is one subject's.
- The seed counts only where something is drawn: sampling noise, random images, the shuffled control, training step by
  step. Closed-form mappers draw nothing.
- A pretrain stage is the same whatever sessions the subject it leaves out has; what only the other stage reads, or
  belongs to other mappers, does not count.
- Of reconstructions made elsewhere (``nd evaluate images=...``) the content counts, not where they lie, nor any field
  that says how images are made.
- Guidance that guides no step (kappa 0, or eta below one step) is one thing, "off", whatever its other fields say.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

from nd.config import SCHEMA_VERSION, Config
from nd.errors import unknown
from nd.files import sha256_json

VERBS = ("train", "predict", "reconstruct", "evaluate")  # the verbs that write run folders
TRANSFORMING = ("guided_diffusion", "pixels", "vae", "nearest_image")  # generators that read decoded targets
DRAWING = ("guided_diffusion", "random_image")  # generators that draw random numbers, one set per repeat
TRAINED_MAPPERS = ("two_stage",)  # mappers trained step by step, which draw random numbers

TARGET_FIELDS: dict[str, tuple[str, ...]] = {
    "z": ("target.picture", "target.posterior"),
    "c": ("target.max_captions", "target.tokens"),
    "g": ("target.layers",),
    "clip_text": ("target.max_captions",),
    "vdvae": ("target.vdvae_layers", "target.posterior"),
    "z40": ("target.posterior",),
    **dict.fromkeys(("pixels", "clip_vision", "clip_image", "edge", "colour"), ()),
}
# Not the backbone's dtype: targets are extracted in target.precision, whatever the sampler's arithmetic is.
BACKBONE_FIELDS: dict[str, tuple[str, ...]] = {
    "z": ("backbone.name", "backbone.image_size"),
    "c": ("backbone.name",),
    "g": (
        "backbone.name",
        *(f"backbone.tower_{field}" for field in ("size", "mean", "std", "filter", "antialias")),
    ),
    "z40": ("backbone.name",),
    **dict.fromkeys(("pixels", "clip_vision", "clip_text", "clip_image", "vdvae", "edge", "colour"), ()),
}
METHOD_FIELDS = ("method.name", "method.generator")
DIFFUSION_FIELDS = (
    *(f"method.{name}" for name in ("variant", "steps", "strength", "cfg_scale", "sag_scale")),
    "backbone.*",
)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the identity fields of a configuration as ``{"group.field": value}``."""
    values: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            values |= flat(value, f"{prefix}{item.name}.")
        elif item.metadata.get("identity", True):
            values[prefix + item.name] = list(value) if isinstance(value, (list, tuple)) else value
    return values


def reads_targets(cfg: Config) -> bool:
    """Say whether the generator turns targets into images (the other generators are floors that read none)."""
    return cfg.method.generator in TRANSFORMING


def reads_predictions(cfg: Config) -> bool:
    """Say whether ``reconstruct`` needs a predict run: not for oracle features, not for floors that read no targets."""
    return reads_targets(cfg) and cfg.features == "predicted"


def _target_fields(names: list[str]) -> list[str]:
    listed = [name for target in names for name in TARGET_FIELDS.get(target, ("target.*",))]
    return (
        listed
        + [name for target in names for name in BACKBONE_FIELDS.get(target, ("backbone.*",))]
        + ["target.dtype", "target.precision"]
    )


def trained_together(cfg: Config) -> list[str]:
    """Return the targets whose mapper one training makes: one, or with ``network.share=all`` all of the method."""
    if cfg.mapper.name in TRAINED_MAPPERS and cfg.network.share == "all":
        return list(cfg.method.targets)
    return [cfg.target.name]


def _mapper_fields(cfg: Config) -> list[str]:
    """What a mapper's fit depends on, beside data, subject and target."""
    if cfg.mapper.name not in TRAINED_MAPPERS:
        return ["mapper.*"]
    only_later = ("epochs", "pretrain", "finetune_lr", "align")
    idle = {"pretrain": only_later, "finetune": () if cfg.training.pretrain else ("pretrain_epochs", *only_later[2:])}
    unread = idle.get(cfg.training.stage, ())
    training = [field.name for field in fields(cfg.training) if field.name not in unread]
    return ["mapper.name", "mapper.variant", "network.*", *(f"training.{name}" for name in training), "seed"]


def _train_fields(cfg: Config) -> list[str]:
    targets, trained = trained_together(cfg), cfg.mapper.name in TRAINED_MAPPERS
    named = ["method.targets"] if trained and cfg.network.share == "all" else ["target.name"]
    pretrain = trained and cfg.training.stage == "pretrain"
    subject = ["subject.name", "subject.roi"] if pretrain else ["subject.*"]
    control = ["control", "seed"] if cfg.control == "shuffled_labels" else []
    return ["data.*", *subject, *_mapper_fields(cfg), *named, *_target_fields(targets), *control]


def _predict_fields(cfg: Config) -> list[str]:
    seed = ["seed"] if cfg.control != "none" else []
    targets = _target_fields(cfg.method.targets)
    fitted = [*_mapper_fields(cfg), "mapper.rescale"]
    return ["data.*", "subject.*", *fitted, "method.targets", *targets, "part", "control", *seed]


def _reconstruct_fields(cfg: Config) -> list[str]:
    counted = ["data.*", "subject.name", "part", "debug.limit_images", *METHOD_FIELDS]
    if reads_predictions(cfg):
        counted += _predict_fields(cfg)
    elif reads_targets(cfg):
        counted += ["features", "method.targets", *_target_fields(cfg.method.targets)]
    if cfg.method.generator in DRAWING:
        counted += ["seed", "method.repeats"]
    if cfg.method.generator == "vae":
        counted += ["backbone.dtype"]
    if cfg.method.generator == "guided_diffusion":
        counted += DIFFUSION_FIELDS
        counted += ["guidance.*"] if cfg.guided_steps else []
    return counted


def _evaluate_fields(cfg: Config) -> list[str]:
    if cfg.images_hash:  # images made elsewhere: nothing is known of how
        return ["images_hash", "data.*", "subject.name", "part", "protocol.*"]
    return [*_reconstruct_fields(cfg), "protocol.*"]


FIELDS = {
    "train": _train_fields,
    "predict": _predict_fields,
    "reconstruct": _reconstruct_fields,
    "evaluate": _evaluate_fields,
}


def _counts(name: str, counted: list[str]) -> bool:
    return name in counted or f"{name.split('.')[0]}.*" in counted


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    # Predictions are stored by target name, so the order in which a method lists its targets changes nothing.
    return values | {"method.targets": sorted(values["method.targets"])}


def identity_of(verb: str, cfg: Config) -> dict[str, Any]:
    """Return what decides a verb's output: its non-default values by dotted name, the verb and the schema version."""
    if verb not in FIELDS:
        raise unknown("verb with run folders", verb, VERBS)
    counted, defaults = FIELDS[verb](cfg), _comparable(flat(Config()))
    values = {name: value for name, value in _comparable(flat(cfg)).items() if _counts(name, counted)}
    identity = {name: value for name, value in values.items() if value != defaults[name]}
    made_here = verb == "reconstruct" or (verb == "evaluate" and not cfg.images_hash)
    if made_here and cfg.method.generator == "guided_diffusion" and not cfg.guided_steps:
        identity["guidance"] = "off"
    return identity | {"verb": verb, "schema": SCHEMA_VERSION}


def run_id(verb: str, cfg: Config) -> str:
    """Return the 12 hexadecimal digits that name a run."""
    return sha256_json(identity_of(verb, cfg))


def _recipe(cfg: Config) -> list[str]:
    words = [cfg.method.name]
    if cfg.method.generator == "guided_diffusion":
        words.append("guided" if cfg.guided_steps else "unguided")
    if reads_targets(cfg) and cfg.features == "oracle":
        words.append("oracle")
    return words


def run_name(verb: str, cfg: Config) -> str:
    """Return a short readable name; it is a function of the identity and has only letters, digits, ``_ . -``."""
    words = [cfg.data.name, cfg.subject.name]
    if verb == "evaluate" and cfg.images_hash:
        words += ["given", *([cfg.part] if cfg.part != "test" else [])]
        return _safe(words)
    if verb == "train":
        words += ["_".join(sorted(trained_together(cfg))), cfg.mapper.name]
        words += ["pretrain"] if cfg.mapper.name in TRAINED_MAPPERS and cfg.training.stage == "pretrain" else []
    elif verb == "predict":
        words += ["_".join(sorted(cfg.method.targets)), cfg.mapper.name]
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
