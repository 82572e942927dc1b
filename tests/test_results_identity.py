"""Which runs are the same run: what an output depends on across groups; fields one by one are in test_components."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from helpers_config import mapper_settings, method_settings, target_settings

from nd.config import Config
from nd.config.fields import declared
from nd.errors import UserError
from nd.runs.identity import VERBS, identity_of, run_id, run_name

CHOICES: dict[str, Callable[[str], Any]] = {
    "target__name": target_settings,
    "mapper__name": mapper_settings,
    "method__generator": method_settings,
}


def with_values(**values: Any) -> Config:
    """A default configuration with some fields set, named ``group__field``; what chooses a component comes first."""
    cfg = Config()
    for name in sorted(values, key=lambda name: name not in CHOICES):
        *group, field = name.split("__")
        if name in CHOICES:
            setattr(cfg, group[0], CHOICES[name](values[name]))
            continue
        owner = getattr(cfg, group[0]) if group else cfg
        assert hasattr(owner, field), name
        setattr(owner, field, {one: {} for one in values[name]} if name == "method__targets" else values[name])
    return cfg


def same(verb: str, first: Config, second: Config) -> bool:
    return run_id(verb, first) == run_id(verb, second)


def test_an_id_holds_values_only_where_they_differ_from_the_defaults() -> None:
    cfg = with_values(guidance__kappa=2.0, trainer__devices=4, protocol__n_boot=7)
    found = identity_of("evaluate", cfg)
    assert {key for key in found if key.startswith(("guidance.", "trainer.", "protocol."))} == {
        "guidance.kappa", "protocol.name", "protocol.n_boot",
    }  # fmt: skip
    assert (found["guidance.kappa"], found["verb"], found["schema"]) == (2.0, "evaluate", 3)
    assert "guidance" not in identity_of("train", cfg)


@pytest.mark.parametrize("group", ["trainer", "logger", "paths", "debug"])
def test_fields_that_only_say_how_never_count(group: str) -> None:
    for item in fields(getattr(Config(), group)):
        changed = Config()
        value = getattr(getattr(changed, group), item.name)
        new = (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
        setattr(getattr(changed, group), item.name, new)
        counts = [not same(verb, Config(), changed) for verb in VERBS]
        assert any(counts) == declared(item).identity, item.name


def test_fields_of_no_group_count_unless_declared_not_to() -> None:
    changes = {"seed": 1, "part": "val", "features": "oracle", "control": "shuffled_voxels", "images_hash": "abc"}
    for item in fields(Config):
        if is_dataclass(getattr(Config(), item.name)) or not declared(item).help:
            continue
        changed = with_values(**{item.name: changes.get(item.name, "x")})
        assert any(not same(verb, Config(), changed) for verb in VERBS) == declared(item).identity, item.name


BLIND: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("train", {}, {"guidance__kappa": 1.0, "method__steps": 3, "features": "oracle", "part": "val", "seed": 1}),
    ("train", {}, {"backbone__tower_size": 9, "backbone__tower_filter": "bicubic"}),
    ("train", {"target__name": "c"}, {"backbone__image_size": 9, "backbone__tower_size": 9}),
    ("train", {"target__name": "pixels"}, {"backbone__name": "other", "backbone__image_size": 9}),
    ("predict", {}, {"guidance__kappa": 1.0, "method__steps": 3, "method__name": "x", "seed": 1, "target__name": "g"}),
    ("predict", {}, {"method__targets": ["g", "z", "c"]}),
    ("predict", {"method__targets": ["z"], "target__name": "g"}, {"target__layers": [1]}),
    ("train", {}, {"network__hidden": 9, "training__lr": 1.0, "training__stage": "pretrain"}),
    ("predict", {}, {"network__hidden": 9, "training__lr": 1.0}),
    ("train", {"mapper__name": "two_stage"}, {"mapper__rescale": "test"}),
    ("train", {"mapper__name": "two_stage"}, {"mapper__rescale": "train"}),
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
    (
        "reconstruct",
        {"method__generator": "mean_image"},
        {"mapper__refit": False, "seed": 1, "backbone__name": "other"},
    ),
    ("reconstruct", {"method__generator": "mean_image"}, {"subject__roi": "V1", "method__targets": []}),
    ("reconstruct", {"method__generator": "random_image"}, {"mapper__refit": False, "guidance__kappa": 1.0}),
    ("reconstruct", {"method__generator": "vae", "method__targets": ["z"]}, {"guidance__kappa": 1.0, "seed": 1}),
    ("reconstruct", {"method__generator": "vae", "method__targets": ["z"]}, {"backbone__tower_size": 9}),
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
    ("predict", {"mapper__name": "two_stage"}, {"mapper__rescale": "train"}),
    ("predict", {"target__name": "g"}, {"target__layers": [1]}),
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
    ("reconstruct", {"features": "oracle", "target__name": "g"}, {"target__layers": [1]}),
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
