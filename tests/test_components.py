"""Components: every field of each is part of the identity of the runs that depend on it, or declared not to be."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from nd.config import Config
from nd.config.components import KINDS, component, found
from nd.config.fields import Declared, declared
from nd.config.known import known_fields
from nd.errors import UserError
from nd.runs.identity import VERBS, identity_of, run_id

FIRST_VERB = {"source": "train", "target": "train", "mapper": "train", "generator": "reconstruct"}


def cases() -> list[tuple[str, str, str]]:
    return [
        (kind, name, one.name)
        for kind in FIRST_VERB
        for name, known in found(kind).components.items()
        for one in fields(known.settings)
        if one.name not in ("generator", "targets", KINDS[kind].choice if kind != "source" else "")
    ]


def other(value: Any, facts: Declared) -> Any:
    """Another value of the same kind."""
    if facts.choices:
        return next((choice for choice in facts.choices if choice != value), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, *(value[:1] or ["x"])] if isinstance(value, list) else f"{value}x"


def config_with(kind: str, name: str) -> Config:
    """A configuration that uses a component, with nothing idle that it could use."""
    settings = component(kind, name).settings()
    cfg = Config(**{KINDS[kind].group: settings})
    cfg.guidance.kappa, cfg.network.prior, cfg.training.aux_target = 1.0, True, "g"
    if kind == "target":
        cfg.method.targets = {name: {}}
    if kind == "generator":
        cfg.method.targets = {target: {} for target in component(kind, name).needs or ("z",)}
    return cfg


@pytest.mark.parametrize(("kind", "name", "field"), cases())
def test_every_field_counts_or_is_declared_not_to(kind: str, name: str, field: str) -> None:
    cfg, group = config_with(kind, name), KINDS[kind].group
    settings = getattr(cfg, group)
    (facts,) = [declared(one) for one in fields(settings) if one.name == field]
    changed = replace(cfg, **{group: replace(settings, **{field: other(getattr(settings, field), facts)})})
    idle = {key for one in component(kind, name).idle(changed) for key in one.fields}
    first = facts.since or FIRST_VERB[kind]
    for verb in VERBS[VERBS.index(first) :]:
        differs = run_id(verb, changed) != run_id(verb, cfg)
        assert differs == (facts.identity and f"{group}.{field}" not in idle), f"{verb}: {group}.{field}"
    for verb in VERBS[: VERBS.index(first)]:
        assert run_id(verb, changed) == run_id(verb, cfg)


@pytest.mark.parametrize("group", ["network", "training", "guidance", "backbone", "protocol"])
def test_every_field_of_a_group_counts_where_it_is_read(group: str) -> None:
    cfg = Config(mapper=component("mapper", "two_stage").settings())
    cfg.guidance.kappa, cfg.network.prior, cfg.training.aux_target = 1.0, True, "g"
    for one in fields(getattr(cfg, group)):
        facts, value = declared(one), getattr(getattr(cfg, group), one.name)
        # A value that does not switch anything off.
        new = value + 0.1 if isinstance(value, float) else other(value, facts)
        changed = replace(cfg, **{group: replace(getattr(cfg, group), **{one.name: new})})
        idle = {key for known in found("mapper").components["two_stage"].idle(changed) for key in known.fields}
        counts = facts.identity and f"{group}.{one.name}" not in idle
        assert (run_id("evaluate", changed) != run_id("evaluate", cfg)) == counts, f"{group}.{one.name}"


def test_unguided_runs_are_one_run_whatever_guidance_says() -> None:
    off, late = Config(), Config()
    off.guidance.kappa = 0.0
    late.guidance.eta, late.guidance.decoder = 0.0, "half"
    assert identity_of("reconstruct", off)["guidance"] == "off"
    assert run_id("reconstruct", off) == run_id("reconstruct", late) != run_id("reconstruct", Config())


def test_an_id_is_pinned() -> None:
    """New fields with a default, and new components, keep old ids; what changes them raises SCHEMA_VERSION."""
    assert {verb: run_id(verb, Config()) for verb in VERBS} == PINNED


PINNED = {
    "train": "cd554d684458",
    "predict": "c94214d9dbcd",
    "reconstruct": "c22a2f4d71fa",
    "evaluate": "1a53764b349c",
}


def test_every_field_has_owners_that_have_it() -> None:
    for key, known in known_fields().items():
        group, _, name = key.partition(".")
        kind = next((kind for kind, facts in KINDS.items() if facts.group == group), "")
        for owner in known.owners:
            assert name in {one.name for one in fields(component(kind, owner).settings)}


def test_an_unknown_component_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"unknown mapper 'rigde'\. Did you mean 'ridge'\?"):
        component("mapper", "rigde")
