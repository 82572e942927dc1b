"""Runs that belong together, the rows of a table or the points of a sweep, and the words that set each one apart.

A logger shows them as one group, and each under a name that says what varies in the group, not what all share. Names
are found before the first run begins and left in ``<paths.runs>/groups/<group>.json``, where every process of a sweep
finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nd.config import Config
from nd.config.fields import declared
from nd.config.help import shown
from nd.config.schema import Decoding
from nd.files import read_json, sha256_json, write_json
from nd.locks import locked
from nd.runs.chain import pretrain_of, steps_of
from nd.runs.identity import flat, identity_of, mapper_of, run_id, run_name, trained_together

NAME_LENGTH = 120  # W&B cuts names at 128 characters
LOGGED = ("train", "evaluate")  # verbs whose runs have anything to show
# Groups whose choice is a word of a name where it was typed; training reads no method, guidance or protocol.
TRAINED_BY = ("experiment", "data", "subject", "target", "mapper", "network", "training", "backbone", "debug")
MADE_BY = (*TRAINED_BY, "method", "guidance", "protocol")

PLAIN = {"features": "predicted", "control": "none", "part": "test"}  # what a name need not say


class ByTarget(dict[str, Any]):
    """The values that the targets of a method have, by target."""


Member = tuple[str, Config]  # a verb, and the configuration of its run


def group_of(cfg: Config) -> str:
    """Return the group of a run: ``logger.group``, which a sweep fills in, else the table; empty where it has none."""
    return cfg.logger.group or (Path(cfg.table).stem if cfg.table else "")


def members_of(cfgs: Iterable[Config]) -> list[Member]:
    """Return the trainings, pretraining stages and evaluations behind some rows, each once."""
    steps = ((step.verb, step.cfg) for cfg in cfgs for step in steps_of(cfg) if step.verb in LOGGED)
    found = (member for verb, cfg in steps for member in stages_of(verb, cfg))
    return list({run_id(verb, cfg): (verb, cfg) for verb, cfg in found}.values())


def stages_of(verb: str, cfg: Config) -> list[Member]:
    """Return the run of a verb and, of a training in two stages, that of the first."""
    return [(verb, cfg), *([(verb, pretrain_of(cfg))] if verb == "train" and _is_pretrained(cfg) else [])]


def _is_pretrained(cfg: Config) -> bool:
    training = cfg.training
    return mapper_of(cfg).trained and training.stage != "pretrain" and training.pretrain and not training.pretrained


def sweep_name(members: Sequence[Member]) -> str:
    """Return the name of a sweep whose points are these runs; the same points, in whatever order, have the same."""
    return f"sweep-{sha256_json(sorted({run_id(verb, cfg) for verb, cfg in members}))}"


# ---- names


def names_apart(members: Sequence[Member], always: Sequence[str] = ()) -> dict[str, str]:
    """Return the name of each run of a group by its id: ``key=value`` words of what varies.

    Runs of one verb differ in data, subject, method or target first; further keys are named where they differ among
    runs that agree in those. A run that nothing sets apart has the name of its folder.

    Args:
        members: runs of the group.
        always: keys of the first kind that are named even where these runs agree in them.
    """
    ids = [run_id(verb, cfg) for verb, cfg in members]
    heads = {one: (verb, _head(verb, cfg)) for one, (verb, cfg) in zip(ids, members, strict=True)}
    facts = {one: _facts(verb, cfg) for one, (verb, cfg) in zip(ids, members, strict=True)}
    names = {}
    for one, (verb, cfg) in zip(ids, members, strict=True):
        of_verb = [head for kind, head in heads.values() if kind == verb]
        like = [facts[other] for other, head in heads.items() if head == heads[one]]
        head, off = heads[one][1], _switched_off(verb, cfg)
        words = [
            f"{key}={head[key]}" for key in _differing(of_verb, always) if head.get(key) not in (None, PLAIN.get(key))
        ]
        words += [text for key in _differing(like) if key in facts[one] for text in _words(key, facts[one][key], off)]
        names[one] = joined(words) or run_name(verb, cfg)
    return names


def _head(verb: str, cfg: Config) -> dict[str, str]:
    """Return what tells two runs of a verb apart before anything else does."""
    who = {"data": cfg.data.name, "subject": cfg.subject.name}
    if verb == "train":
        stage = {"training.stage": cfg.training.stage} if mapper_of(cfg).trained else {}
        what = {"target": "_".join(sorted(trained_together(cfg))), "mapper": cfg.mapper.name, **stage}
        return {**who, **what, "control": cfg.control}
    return {**who, "method": cfg.method.name, "features": cfg.features, "control": cfg.control, "part": cfg.part}


def _differing(all_of: Sequence[Mapping[str, Any]], always: Sequence[str] = ()) -> list[str]:
    """Return the keys whose values are not the same in all, in the order in which they come."""
    keys = dict.fromkeys(key for one in all_of for key in one)
    return [key for key in keys if key in always or len({repr(one[key]) for one in all_of if key in one}) > 1]


def _facts(verb: str, cfg: Config) -> dict[str, Any]:
    """Return every value that a run may depend on, by dotted key; what targets have of their own as ``ByTarget``."""
    groups = ("data", "subject", "backbone", *(() if verb == "train" else ("method", "guidance", "protocol")))
    found = {key: value for group in groups for key, value in _leaves(group, getattr(cfg, group))}
    found |= {"seed": cfg.seed, "images_hash": cfg.images_hash}
    targets = [cfg.target.name] if verb == "train" else list(cfg.method.targets)
    for name in targets:
        for key, value in _of_target(cfg.decoding(name)).items():
            found.setdefault(key, ByTarget())[name] = value
    return found


def _switched_off(verb: str, cfg: Config) -> set[str]:
    """Return the groups that have no effect on a run, as guidance that guides no step."""
    return {key for key, value in identity_of(verb, cfg).items() if value == "off"}


def _of_target(one: Decoding) -> dict[str, Any]:
    groups = {"target": one.target, "mapper": one.mapper, "network": one.network, "training": one.training}
    found = {key: value for group, values in groups.items() for key, value in _leaves(group, values)}
    return found | {"roi": one.roi}


def _leaves(group: str, values: Any) -> Iterator[tuple[str, Any]]:
    for one in fields(values):
        if declared(one).identity:
            yield f"{group}.{one.name}", getattr(values, one.name)


def _words(key: str, value: Any, off: Collection[str]) -> Iterator[str]:
    """Yield ``key=value``; of a group that is switched off ``group=off``.

    What targets have of their own is named once, with ``<target>.`` before it where some have another value.
    """
    group = key.partition(".")[0]
    if group in off:
        yield f"{group}=off"
    elif isinstance(value, ByTarget):
        ((common, n_common),) = Counter(map(shown, value.values())).most_common(1)
        yield from (f"{name}.{key}={shown(own)}" for name, own in value.items() if shown(own) != common)
        yield from [f"{key}={common}"] if n_common == len(value) else []
    else:
        yield f"{key}={shown(value)}"


def joined(words: Iterable[str]) -> str:
    """Return words in one line, as many as a name may hold."""
    text = ""
    for word in dict.fromkeys(words):
        if len(text) + len(word) >= NAME_LENGTH:
            return f"{text} ..."[:NAME_LENGTH].lstrip()
        text += f" {word}"
    return text.lstrip()


def changed_keys(verb: str, cfg: Config) -> str:
    """Return the name of a run that is in no group: what was typed, as far as it decides the run.

    Without anything typed (from Python) it is what differs from the default run, and for that one the folder's name.
    """
    own, default = flat(identity_of(verb, cfg)), flat(identity_of(verb, Config()))
    typed = dict(text.lstrip("+").partition("=")[::2] for text in cfg.overrides)
    if typed:
        chosen = TRAINED_BY if verb == "train" else MADE_BY
        inner = {key.partition(".")[2] for key in own}  # of a target
        words = [f"{key}={value}" for key, value in typed.items() if key in {*own, *inner, *chosen}]
    else:
        words = [f"{key}={shown(value)}" for key, value in own.items() if default.get(key) != value]
    return joined(words) or run_name(verb, cfg)


# ---- left for every process of the group


def announce(runs: Path, group: str, names: Mapping[str, str], keep: bool = False) -> None:
    """Leave the names of a group's runs, by run id, where every process finds them; names of its other runs stay.

    With ``keep`` those that are there already do too.
    """
    path = _file(runs, group)
    with locked(path.with_name(f".{path.name}.lock"), str(path), wait=True):
        there = read_json(path) if path.exists() else {}
        write_json(path, dict(names) | there if keep else there | dict(names))


def name_of(verb: str, cfg: Config) -> str:
    """Return the name of a run in its group, else what was changed in it."""
    group = group_of(cfg)
    path = _file(Path(cfg.paths.runs), group)
    found = read_json(path) if group and path.exists() else {}
    return str(found.get(run_id(verb, cfg)) or changed_keys(verb, cfg))


def _file(runs: Path, group: str) -> Path:
    return runs / "groups" / f"{group}.json"
