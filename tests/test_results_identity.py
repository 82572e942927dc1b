"""Which runs are the same run: ids are pinned, cover what decides an output, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from nd.config import Config
from nd.errors import UserError
from nd.runs.identity import VERBS, flat, identity_of, run_id, run_name

PINNED = {
    "train": "7bb15b752018",
    "predict": "8e1795dde236",
    "reconstruct": "78b52d02fc25",
    "evaluate": "0ba7d53de986",
}  # of the default configuration; they change only with SCHEMA_VERSION, and then finished runs are run again


def with_values(**values: Any) -> Config:
    """A default configuration with some fields set, named ``group__field``."""
    cfg = Config()
    for name, value in values.items():
        set_field(cfg, name.replace("__", "."), value)
    return cfg


def set_field(cfg: Config, name: str, value: Any) -> None:
    *group, field = name.split(".")
    setattr(getattr(cfg, group[0]) if group else cfg, field, value)


def other(value: Any) -> Any:
    """A value that differs from the given one and keeps its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[:1] if len(value) > 1 else [*value, *value] or ["x"]
    return value * 2 + 1 if isinstance(value, int | float) else f"{value}x"


def same(verb: str, first: Config, second: Config) -> bool:
    return run_id(verb, first) == run_id(verb, second)


def test_ids_are_pinned() -> None:
    assert {verb: run_id(verb, Config()) for verb in VERBS} == PINNED


def test_an_id_holds_only_what_differs_from_the_defaults() -> None:
    cfg = with_values(guidance__kappa=2.0, trainer__devices=4)
    assert identity_of("reconstruct", cfg) == {"guidance.kappa": 2.0, "verb": "reconstruct", "schema": 1}


def test_fields_that_only_say_how_never_count() -> None:
    for group in fields(Config):
        default = getattr(Config(), group.name)
        for item in fields(default) if is_dataclass(default) else (group,):
            if item.metadata["identity"]:
                continue
            name = group.name if item is group else f"{group.name}.{item.name}"
            changed = Config()
            set_field(changed, name, other(getattr(default, item.name) if is_dataclass(default) else default))
            assert all(same(verb, Config(), changed) for verb in VERBS), name


@pytest.mark.parametrize("name", sorted(flat(Config())))
def test_every_identity_field_counts_somewhere(name: str) -> None:
    settings = [{}, {"target__name": "c"}, {"target__name": "g"}, {"target__name": "vdvae"}]
    settings += [{"control": "shuffled_voxels"}, {"mapper__name": "two_stage"}]
    for setting in settings:
        first, second = with_values(**setting), with_values(**setting)
        set_field(second, name, other(flat(first)[name]))
        if any(not same(verb, first, second) for verb in VERBS):
            return
    pytest.fail(f"no id depends on {name}")


BLIND: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("train", {}, {"guidance__kappa": 1.0, "method__steps": 3, "features": "oracle", "part": "val", "seed": 1}),
    ("train", {}, {"target__layers": [1], "target__max_captions": 1, "backbone__tower_size": 9}),
    ("train", {"target__name": "c"}, {"backbone__image_size": 9, "target__layers": [1]}),
    ("train", {"target__name": "pixels"}, {"backbone__name": "other", "backbone__image_size": 9}),
    ("predict", {}, {"guidance__kappa": 1.0, "method__steps": 3, "method__name": "x", "seed": 1, "target__name": "g"}),
    ("predict", {}, {"method__targets": ["g", "z", "c"]}),
    ("predict", {"method__targets": ["z"]}, {"target__layers": [1]}),
    ("train", {}, {"network__hidden": 9, "training__lr": 1.0, "training__stage": "pretrain"}),
    ("predict", {}, {"network__hidden": 9, "training__lr": 1.0}),
    ("train", {"mapper__name": "two_stage"}, {"mapper__alphas": [1.0], "mapper__rescale": "test"}),
    ("train", {"mapper__name": "two_stage", "training__stage": "pretrain"}, {"subject__sessions": 1}),
    (
        "train",
        {"mapper__name": "two_stage", "training__stage": "pretrain"},
        {"training__epochs": 9, "training__align": False, "training__finetune_lr": 1.0},
    ),
    (
        "train",
        {"mapper__name": "two_stage", "training__pretrain": False},
        {"training__pretrain_epochs": 9, "training__align": False, "training__finetune_lr": 1.0},
    ),
    ("train", {"mapper__name": "two_stage", "network__share": "all"}, {"target__name": "c"}),
    ("reconstruct", {"method__generator": "mean_image"}, {"mapper__refit": False, "seed": 1, "method__repeats": 9}),
    ("reconstruct", {"method__generator": "mean_image"}, {"subject__roi": "V1", "method__targets": []}),
    ("reconstruct", {"method__generator": "random_image"}, {"mapper__refit": False, "guidance__kappa": 1.0}),
    ("reconstruct", {"method__generator": "vae"}, {"guidance__kappa": 1.0, "method__steps": 3, "seed": 1}),
    ("reconstruct", {"features": "oracle"}, {"mapper__refit": False, "control": "shuffled_voxels"}),
    ("reconstruct", {"guidance__kappa": 0.0}, {"guidance__eta": 0.9, "guidance__through_unet": False}),
    ("evaluate", {"guidance__kappa": 0.0}, {"guidance__kappa": 7.0, "guidance__eta": 0.0}),
]


@pytest.mark.parametrize(("verb", "setting", "change"), BLIND)
def test_what_an_output_does_not_depend_on(verb: str, setting: dict[str, Any], change: dict[str, Any]) -> None:
    assert same(verb, with_values(**setting), with_values(**(setting | change)))


SEEING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("train", {}, {"subject__roi": "V1"}),
    ("train", {}, {"target__name": "c"}),
    ("train", {"target__name": "g"}, {"target__layers": [1]}),
    ("train", {}, {"subject__sessions": 1}),
    ("train", {"mapper__name": "two_stage"}, {"seed": 1}),
    ("train", {"mapper__name": "two_stage"}, {"network__hidden": 9}),
    ("train", {"mapper__name": "two_stage"}, {"training__pretrain_epochs": 9}),
    ("train", {"mapper__name": "two_stage"}, {"training__stage": "pretrain"}),
    ("train", {"mapper__name": "two_stage", "training__stage": "pretrain"}, {"subject__name": "subj02"}),
    ("train", {"mapper__name": "two_stage", "network__share": "all"}, {"method__targets": ["z"]}),
    ("predict", {"mapper__name": "two_stage"}, {"seed": 1}),
    ("predict", {"mapper__name": "two_stage"}, {"mapper__rescale": "test"}),
    ("predict", {}, {"target__layers": [1]}),
    ("predict", {}, {"control": "shuffled_voxels"}),
    ("predict", {"control": "shuffled_voxels"}, {"seed": 1}),
    ("predict", {}, {"part": "val"}),
    ("reconstruct", {}, {"mapper__refit": False}),
    ("reconstruct", {}, {"guidance__kappa": 0.0}),
    ("reconstruct", {}, {"features": "oracle"}),
    ("reconstruct", {}, {"seed": 1}),
    ("reconstruct", {"method__generator": "random_image"}, {"seed": 1}),
    ("reconstruct", {"method__generator": "nearest_image"}, {"mapper__refit": False}),
    ("reconstruct", {"method__generator": "mean_image"}, {"data__n_train": 500}),
    ("reconstruct", {"features": "oracle"}, {"target__layers": [1]}),
    ("reconstruct", {}, {"debug__limit_images": 3}),
    ("evaluate", {}, {"protocol__version": 2}),
]


@pytest.mark.parametrize(("verb", "setting", "change"), SEEING)
def test_what_an_output_does_depend_on(verb: str, setting: dict[str, Any], change: dict[str, Any]) -> None:
    assert not same(verb, with_values(**setting), with_values(**(setting | change)))


def test_guided_steps_are_counted_on_the_steps_that_are_run() -> None:
    # NeuralDiffuser: 50 steps at strength .75 are 37, of which eta .2 guides the first 7.
    assert Config().guided_steps == 7
    assert with_values(method__generator="vae").guided_steps == 0
    assert with_values(method__steps=50, method__strength=0.58).sampled_steps == 29  # not 28, as rounding would have it


def test_names_are_safe_and_short() -> None:
    cfg = with_values(subject__name="a b/c", method__name="x;rm *", control="shuffled_voxels", part="val")
    for verb in VERBS:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{5,80}", run_name(verb, cfg))
    assert run_name("reconstruct", Config()) == "scenes-subj01-neuraldiffuser-guided"
    assert run_name("predict", cfg).endswith("-shuffled-val")


@pytest.mark.parametrize("build", [identity_of, run_id])
def test_verbs_without_run_folders_have_no_identity(build: Callable[[str, Config], Any]) -> None:
    with pytest.raises(UserError, match=r"unknown verb with run folders 'evaluat'\. Did you mean 'evaluate'\?"):
        build("evaluat", Config())
