"""Composition of conf/ over the schema's defaults, permissive and without side effects.

A wrong key or value composes all the same, so that the check behind it can report every problem at once. How a target
is decoded is composed for each of the method's targets: the groups target, mapper, network and training as chosen, then
what the method's recipe says of that target, then what was given on the command line.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nd.config.check import Checked, build, build_group
from nd.config.components import CHOSEN_BY, KINDS, found, not_a_component
from nd.config.conf_files import keep_texts, origin_of, search_folders, search_path
from nd.config.grammar import parsed
from nd.config.known import PARTS_OF_DECODING, per_target
from nd.config.loading import load_conf, read_yaml
from nd.config.overrides import bad_option, foreign_key, group_names
from nd.config.schema import Config, Decoding

Fields = list[tuple[str, Any]]


@dataclass
class Composed:
    """A configuration as far as it is sound, what is wrong with it, and keys that hold fields of another choice."""

    config: Config
    problems: list[str]
    foreign: dict[str, str]  # given keys of another choice, each with what to say of it


_made: ContextVar[dict[tuple[str, ...], Composed] | None] = ContextVar("made", default=None)


@contextmanager
def composed_once() -> Iterator[None]:
    """Compose the same overrides once while this lasts: one command checks first, then runs what it has checked."""
    before = _made.set({})
    try:
        yield
    finally:
        _made.reset(before)


def assemble(overrides: list[str]) -> Composed:
    """Compose without raising: the configuration as far as it is sound, and the problems of files and values.

    Files are read and merged once per choice of groups; fields are set on a copy, as Hydra does it after merging.
    """
    made, key = _made.get(), tuple(overrides)
    if made is None:
        return _assemble(overrides)
    if key not in made:
        made[key] = _assemble(overrides)
    return copy.deepcopy(made[key])


def _assemble(overrides: list[str]) -> Composed:
    folders = search_folders(overrides)
    groups = {*group_names(folders), "hydra.searchpath"}
    chosen = tuple(text for text in overrides if text.partition("=")[0] in groups)
    given = [_field_of(text) for text in overrides if text not in chosen]
    loaded, choices, problems = load_conf(chosen, tuple(folders[1:]))
    if problems:
        return Composed(Config(overrides=list(overrides)), list(problems), {})
    job = pickle.loads(loaded)
    listed = _inside_a_list(job, given)
    _apply(job, given)
    values, unresolved = _resolved(job)
    keep_texts(values, choices, folders)
    origin = lambda key: origin_of(key, choices, folders)  # noqa: E731
    config, checked = build(values, origin)
    foreign = [key for key in checked.foreign if key.partition(".")[0] not in PARTS_OF_DECODING]
    for name in list(config.method.targets):
        own = _decode(name, config, chosen, given, folders, checked)
        if own is None:
            del config.method.targets[name]
        else:
            config.decodings[name] = own
    if config.target.name in config.decodings:
        config = config.decoding_as(config.decodings[config.target.name])
    of_hydra = [text for text in overrides if text.startswith("hydra.") and text not in search_path(overrides)]
    config.overrides = [text for text in overrides if text not in of_hydra]
    foreign += [key for key, _ in given if not _has_a_home(key, config)]
    mine = _said(dict.fromkeys(foreign), config, [key for key, _ in given], checked.problems, choices, folders)
    return Composed(config, [*unresolved, *listed, *checked.problems], mine)


def _field_of(text: str) -> tuple[str, Any]:
    override = parsed(text)
    return override.key_or_group, override.value()


def _apply(job: DictConfig, given: Fields) -> None:
    """Set fields on a loaded configuration; a list of targets keeps what the recipe says of those it names."""
    _name_targets(job)
    for key, value in given:
        if key == "method.targets" and isinstance(value, list):
            before = job.method.targets
            job.method.targets = {str(name): before.get(str(name)) or {} for name in value}
            job.method["_given"] = value
        elif not _inside_an_option(job, key):
            OmegaConf.update(job, key, value, merge=True)
    listed = job.method.pop("_given", None) if "method" in job else None
    if listed is not None and len({str(one) for one in listed}) < len(listed):
        job.method.targets = listed  # the check says that one is named twice


def _inside_an_option(job: DictConfig, key: str) -> bool:
    """Whether a key sets a field of what a recipe names by an option: it must not take the option's place."""
    if (inside := per_target(key)) is None:
        return False
    part, _, field = inside[1].partition(".")
    return field not in ("", "name") and isinstance(OmegaConf.select(job, f"method.targets.{inside[0]}.{part}"), str)


def _inside_a_list(job: DictConfig, given: Fields) -> list[str]:
    """Say that fields of a target were given where the recipe lists its targets, which Hydra cannot set fields in."""
    targets = OmegaConf.select(job, "method.targets")
    if not OmegaConf.is_list(targets):
        return []
    wanted = "{" + ", ".join(f"{name}: {{}}" for name in targets) + "}"
    return [
        f"{key}: the recipe lists its targets, so none has fields to set. Write 'targets: {wanted}' in it."
        for key, _ in given
        if per_target(key) is not None
    ]


def _name_targets(job: DictConfig) -> None:
    """Make a mapping of a method's list of targets, so that fields can be set inside."""
    targets = OmegaConf.select(job, "method.targets")
    if targets is not None and OmegaConf.is_list(targets) and len(set(targets)) == len(targets):
        job.method.targets = {str(name): {} for name in targets}


def _has_a_home(key: str, config: Config) -> bool:
    """Whether a field of target or mapper is one that some target of this configuration has."""
    group, _, name = key.partition(".")
    if group not in ("target", "mapper"):
        return True
    used = [getattr(one, group) for one in config.decodings.values()]
    if config.target.name not in config.decodings:
        used.append(getattr(config, group))
    return any(hasattr(one, name) for one in used)


def _said(
    foreign: Mapping[str, None],
    config: Config,
    given: Sequence[str],
    problems: list[str],
    choices: Mapping[str, str],
    folders: Sequence[Path],
) -> dict[str, str]:
    """Return what to say of fields of another choice that were given; in a choice's own file they are problems."""
    made = {group: str(getattr(getattr(config, group), KINDS[kind].choice)) for group, kind in CHOSEN_BY.items()}
    said = {key: foreign_key(key, made) for key in foreign}
    for key in foreign:
        group, _, name = key.partition(".")
        for folder in folders:
            file = folder / group / f"{choices.get(group, '')}.yaml"
            if file.is_file() and name in (read_yaml(file) or {}):
                problems.append(f"{said[key]} ({file.relative_to(folder.parent)})")
    return {key: text for key, text in said.items() if key in given}


def _decode(
    name: str, config: Config, chosen: tuple[str, ...], given: Fields, folders: Sequence[Path], checked: Checked
) -> Decoding | None:
    """Compose how one target of the method is decoded; None where there is no such target, or none of its options."""
    if name not in found("target").components:
        checked.problems.append(not_a_component("target", name).replace("target.name", "method.targets"))
        return None
    recipe = config.method.targets[name]
    if not isinstance(recipe, dict):
        checked.problems.append(f"method.targets.{name}: {recipe!r} was given, wanted a mapping of roi, mapper, ...")
        recipe = {}
    by_hand = {text.partition("=")[0] for text in chosen}
    recipe = {part: value for part, value in recipe.items() if not _overruled(part, by_hand)}
    own = [(key, value) for key, value in given if key.partition(".")[0] in (*PARTS_OF_DECODING, "subject")]
    own += [(inner if inner != "roi" else "subject.roi", value) for inner, value in _given_for(name, given)]
    decoding, problems = decoded(name, pickle.dumps((recipe, own)), chosen, tuple(folders))
    checked.problems += [problem for problem in problems if problem not in checked.problems]
    return copy.deepcopy(decoding)


@lru_cache(maxsize=1024)
def decoded(
    name: str, said: bytes, chosen: tuple[str, ...], folders: tuple[Path, ...]
) -> tuple[Decoding | None, Sequence[str]]:
    """Return how a target is decoded and what is wrong with it, once for rows and jobs that differ in other fields.

    Args:
        name: of the target.
        said: pickled, what the recipe says of the target and the fields that were given.
        chosen: options of groups that were given.
        folders: of conf/ and what joins it.
    """
    recipe, given = pickle.loads(said)
    options = {part: recipe[part] for part in PARTS_OF_DECODING if isinstance(recipe.get(part), str)}
    loaded, choices, wrong = load_conf(chosen, folders[1:])
    bad = tuple(text for part, value in options.items() if (text := bad_option(part, value, folders)))
    if bad:
        wrong = bad
    elif others := tuple(f"{part}={value}" for part, value in options.items() if choices.get(part) != value):
        loaded, choices, wrong = load_conf((*chosen, *others), folders[1:])
    if wrong:
        return None, wrong
    job, own = pickle.loads(loaded), Checked()
    _change_target(job, name, choices.get("target", ""), folders)
    _overlay(job, name, recipe, own.problems)
    _apply(job, given)
    job.target.name = name
    parts = {part: build_group(part, _resolved(job, part)[0], own) for part in PARTS_OF_DECODING}
    return Decoding(**parts, roi=str(_resolved(job, "subject")[0]["roi"])), own.problems


def _change_target(job: DictConfig, name: str, chosen: str, folders: Sequence[Path]) -> None:
    """Put the file of another target in the place of the chosen one's; what an experiment sets on top stays."""
    if job.target.get("name") == name:
        return
    before = _target_file(chosen, folders)
    on_top = {key: value for key, value in job.target.items() if key != "name" and before.get(key) != value}
    job.target = {**_target_file(name, folders), **on_top, "name": name}


def _target_file(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    files = [folder / "target" / f"{name}.yaml" for folder in folders]
    loaded = [read_yaml(file) or {} for file in files if file.is_file()]
    return next((one for one in loaded if isinstance(one, dict)), {})


def _overruled(part: str, by_hand: set[str]) -> bool:
    """Whether an option chosen on the command line takes the place of a part of the recipe."""
    return part in by_hand or ("mapper" in by_hand and part in ("network", "training"))


def _given_for(name: str, given: Fields) -> Iterator[tuple[str, Any]]:
    for key, value in given:
        inside = per_target(key)
        if inside and inside[0] == name:
            yield inside[1], value


def _overlay(job: DictConfig, name: str, recipe: dict[str, Any], problems: list[str]) -> None:
    """Lay what a recipe says of one target over the groups; another mapper starts from its own defaults."""
    for part, value in recipe.items():
        if part == "roi":
            job.subject.roi = str(value)
        elif part not in PARTS_OF_DECODING:
            problems.append(
                f"method.targets.{name}.{part}: unknown key. A target of a method holds roi,"
                f" {', '.join(PARTS_OF_DECODING)}."
            )
        elif isinstance(value, dict):
            if part == "mapper" and value.get("name", job.mapper.name) != job.mapper.name:
                job.mapper = {}
            job[part] = OmegaConf.merge(job[part], value)


def _resolved(job: DictConfig, group: str = "") -> tuple[Any, list[str]]:
    """Return plain values, of one group or all, with interpolations resolved; a broken one is a problem and text."""
    try:
        chosen = job.get(group, {}) if group else job
        return OmegaConf.to_container(chosen, resolve=True) if OmegaConf.is_config(chosen) else chosen, []
    except OmegaConfBaseException as error:
        problem = f"{error.full_key}: {str(error).splitlines()[0]}."
        plain: Any = OmegaConf.to_container(job, resolve=False)
        return plain.get(group, {}) if group else plain, [problem]


def printed(config: Config) -> str:
    """Return a configuration as YAML, as ``--cfg job`` prints it; how each target is decoded is below ``decodings``."""
    values = asdict(config)
    del values["overrides"]
    return OmegaConf.to_yaml(OmegaConf.create(values))
