"""Components: what a generator, target, mapper, data source or measure declares of itself, and how all are found.

A component is declared once, as a ``COMPONENTS`` tuple in the module of its code. Modules of ``nd`` that hold one are
found by that name; other packages announce theirs as entry points (group ``nd.generators``, ``nd.targets``,
``nd.mappers``, ``nd.data`` or ``nd.measures``), which name a component or a tuple of them. A declaration is read by
every command, so its module imports torch and the like inside ``build`` alone (``Later``).

In ``pyproject.toml`` of a package that adds a generator, with its recipe in ``my_package/conf/method/mine.yaml``::

    [project.entry-points."nd.generators"]
    mine = "my_package.mine:COMPONENT"
    [project.entry-points."nd.conf"]
    mine = "my_package"          # its folder conf/ joins the search path
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from nd.config.plugins import external_components
from nd.errors import UserError, did_you_mean, unknown

if TYPE_CHECKING:
    from nd.config.schema import Config

PACKAGE = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^COMPONENTS\b", re.MULTILINE)

Rule = Callable[["Config"], Iterator[str]]


@dataclass(frozen=True)
class Idle:
    """Fields (dotted names) that change nothing in a configuration, and why."""

    fields: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Later:
    """A function, ``module:name``, whose module is loaded when it is called; other processes can be sent it."""

    name: str

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return resolve_name(self.name)(*args)


@dataclass(frozen=True, kw_only=True)
class Component:
    """What every component declares.

    Attributes:
        name: how it is chosen on the command line.
        settings: dataclass of its own fields: schema, help text and part of a run's identity.
        rules: yields what contradicts in a configuration that uses it.
        verb_rules: the same of what one verb cannot do with it (configuration, verb).
        idle: yields fields that have no effect: they are warned of when given and are no part of an identity.
    """

    name: str
    settings: type[Any]
    rules: Rule = lambda cfg: iter(())
    verb_rules: Callable[[Config, str], Iterator[str]] = lambda cfg, verb: iter(())
    idle: Callable[[Config], Iterator[Idle]] = lambda cfg: iter(())


@dataclass(frozen=True, kw_only=True)
class Source(Component):
    """Where data come from.

    Attributes:
        splits: named splits that cut its images; the usual one first.
        protocols: names of the protocols that fit it; the usual one first.
        by_subject: whether subjects saw different images, so that a split needs the subject.
        pieces: returns the files to prepare (``nd.data.pieces.Piece``) for a configuration.
    """

    splits: tuple[str, ...]
    protocols: tuple[str, ...]
    by_subject: bool = False
    pieces: Callable[[Config], Any]


@dataclass(frozen=True, kw_only=True)
class Target(Component):
    """Features that mappers learn to predict.

    Attributes:
        parts: parts of the backbone (folders of its weights) that the features depend on.
        axes: what the axes of one image's features mean to a trained network: ``tokens`` (tokens, numbers), ``map``
            (channels, rows, columns), ``layers`` (of tokens), or ``none`` where no head predicts them.
        groups: returns (label, first column, end column) of the parts that are decoded with settings of their own.
        build: returns the extractor (``nd.targets.base.Extractor``) for settings, configuration and backbone.
    """

    parts: tuple[str, ...] = ()
    axes: str = "tokens"
    groups: Callable[[Any, tuple[int, ...]], list[tuple[str, int, int]]] | None = None
    build: Callable[[Any, Config, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Mapper(Component):
    """Voxels to a target.

    Attributes:
        trained: whether it is trained step by step, which draws random numbers.
        config_groups: further groups of the configuration whose fields it reads.
        build: returns an unfitted mapper for settings and device; None for trained ones (``nd.mappers.training``).
        network: of trained ones: returns their class, ``nd.mappers.two_stage.TwoStage`` or one derived from it, which
            says how voxels come into the network and wraps it once it is trained.
        restore: returns a fitted mapper from settings, a checkpoint's arrays and its details.
    """

    trained: bool = False
    config_groups: tuple[str, ...] = ()
    build: Callable[[Any, Any], Any] | None = None
    network: Callable[[], Any] | None = None
    restore: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Generator(Component):
    """Decoded targets to images.

    Attributes:
        needs: targets it cannot do without.
        wants: returns the targets it reads in a configuration; by default all of the method.
        reads_targets: whether it reads targets at all; floors such as the mean image do not.
        draws: whether it draws random numbers, one set per repeat.
        parts: returns the parts of the backbone it runs, and the targets whose own networks it runs.
        config_groups: returns further groups of the configuration that it reads at present; those of
            ``all_config_groups`` that are absent are "off" in the run's identity.
        words: returns words for the names of run folders.
        together: fields (dotted) in which runs may differ that are made together.
        captions: whether it gives a caption with each image in a configuration, as far as the data has captions.
        note: what every page and table that shows its images says of them.
        build: returns the function from image ids and features to images, for one configuration or, with
            ``together``, for several (``nd.generate.base.Generator``).
    """

    needs: tuple[str, ...] = ()
    wants: Callable[[Config], list[str]] = lambda cfg: list(cfg.method.targets)
    reads_targets: bool = True
    draws: bool = False
    parts: Callable[[Config], tuple[str, ...]] = lambda cfg: ()
    all_config_groups: tuple[str, ...] = ()
    config_groups: Callable[[Config], tuple[str, ...]] = lambda cfg: ()
    words: Callable[[Config], list[str]] = lambda cfg: []
    together: tuple[str, ...] = ()
    captions: Callable[[Config], bool] = lambda cfg: False
    note: str = ""
    build: Callable[[Sequence[Config], Any], Any]


@dataclass(frozen=True, kw_only=True)
class Rules(Component):
    """Rules about fields that belong to no single choice, kept beside the code that reads them."""

    settings: type[Any] = type(None)


@dataclass(frozen=True)
class Kind:
    """One kind of component: where it is found, and which field of the configuration chooses it."""

    declared: type[Component]
    entry_points: str
    packages: tuple[str, ...]
    group: str = ""  # group of the configuration whose fields depend on the choice
    choice: str = ""  # the field of that group that chooses

    @property
    def key(self) -> str:
        """The dotted name of the choosing field."""
        return f"{self.group}.{self.choice}"


KINDS: dict[str, Kind] = {
    "source": Kind(Source, "nd.data", ("data", "scenes"), "data", "source"),
    "generator": Kind(Generator, "nd.generators", ("generate",), "method", "generator"),
    "target": Kind(Target, "nd.targets", ("targets",), "target", "name"),
    "mapper": Kind(Mapper, "nd.mappers", ("mappers",), "mapper", "name"),
    "rules": Kind(Rules, "", ("metrics",)),
}
CHOSEN_BY = {kind.group: name for name, kind in KINDS.items() if kind.group}  # group -> kind


@dataclass
class Found:
    """The components of one kind by name, and the plug-ins that could not be loaded with what they said."""

    components: dict[str, Component] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


@cache
def found(kind: str) -> Found:
    """Find all components of a kind: those of ``nd``, then those of entry points."""
    facts, result = KINDS[kind], Found()
    for package in facts.packages:
        for file in sorted((PACKAGE / package).rglob("*.py")):
            if MARK.search(file.read_text(encoding="utf-8")):
                inner = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
                for one in importlib.import_module(f"nd.{inner}").COMPONENTS:
                    if isinstance(one, facts.declared):
                        result.components[one.name] = one
    for name, one in external_components(facts.entry_points, result.broken).items():
        if not isinstance(one, facts.declared):
            result.broken[name] = f"it is {type(one).__name__}, wanted nd.config.components.{facts.declared.__name__}"
        elif one.name in result.components:
            result.broken[name] = f"{kind} {one.name!r} is there already"
        else:
            result.components[one.name] = one
    return result


def component(kind: str, name: str) -> Any:
    """Return a component by name.

    Args:
        kind: generator, target, mapper, source or measure.
        name: as it is written in a configuration.

    Raises:
        UserError: there is none of that name; plug-ins that could not be loaded are named.
    """
    known = found(kind)
    if name in known.components:
        return known.components[name]
    if name in known.broken:
        raise UserError(f"{kind} {name!r}: {known.broken[name]}.")
    raise unknown(kind, name, known.components)


def not_a_component(kind: str, name: str) -> str:
    """Return what is wrong with a name that no component of a kind has."""
    known = found(kind)
    if name in known.broken:
        return f"{KINDS[kind].key}: {known.broken[name]}."
    near, listed = did_you_mean(name, known.components), ", ".join(known.components)
    return f"{KINDS[kind].key}: {name!r} is not allowed.{near} Allowed: {listed}."


def choices_of(key: str) -> tuple[str, ...]:
    """Return the components that a field (dotted) chooses among; none of any other field."""
    return next((tuple(found(name).components) for name, kind in KINDS.items() if kind.group and kind.key == key), ())


def chosen(cfg: Config) -> dict[str, Component]:
    """Return the components that a configuration uses, by ``<kind> <name>``: of each kind one, of targets and mappers
    those of every target of the method."""
    used = [("source", cfg.data.source), ("generator", cfg.method.generator)]
    for name, one in cfg.decodings.items():
        used += [("target", name), ("mapper", one.mapper.name)]
    if not cfg.decodings:
        used += [("target", cfg.target.name), ("mapper", cfg.mapper.name)]
    known = [(kind, name) for kind, name in dict.fromkeys(used) if name in found(kind).components]
    rules = {f"rules {name}": one for name, one in found("rules").components.items()}
    return {f"{kind} {name}": component(kind, name) for kind, name in known} | rules
