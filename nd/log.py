"""`nd log`: finished runs sent to a logger, whenever they were made: `nd log runs=all`, `nd log runs=<id>,<name>`.

`runs=` takes ids, names, folders or beginnings of them, `*` stands for anything, and `all` means all; words without
`=` are verbs (train, evaluate) to which it is limited. `key=value` keeps the runs that have that value, as in `nd ls`.
`logger=wandb` is the default; `logger=tensorboard` and `logger=csv` work too, and `logger.project=`, `logger.mode=`,
`logger.group=` and `logger.images=` are as anywhere. A run keeps the group that it was made in, its table or sweep,
unless `logger.group=` gives another.

A run has the same id in W&B however often it is sent. Of a training its curves and validation scores are shown, of an
evaluation its scores with the images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from nd.config import Config
from nd.config.application import compose
from nd.config.groups import LoggerConfig, PathsConfig
from nd.config.overrides import split
from nd.config.words import Words, verb_of_words
from nd.errors import UserError, unknown
from nd.interface.finished_run import read_run
from nd.runs.catalogue import KnownRun, filtered, find_run, known_runs
from nd.runs.groups import LOGGED, announce, group_of, names_apart
from nd.tables.loggers import check_logger, is_on, log_scores, log_training
from nd.tables.wandb_runs import where_all


def log(words: Words) -> int:
    """Send the runs that the words mean to a logger; returns the exit code."""
    for name in words.bare:
        if name not in LOGGED:
            raise unknown("verb with results to log", name, LOGGED)
    logger = _logger(words)
    runs = chosen(words)
    cfgs = [_config(run, logger, words.paths) for run in runs]
    check_logger(cfgs[0])
    if not is_on(cfgs[0]):
        raise UserError("W&B is disabled by WANDB_MODE or WANDB_DISABLED, so there is nowhere to send the runs.")
    _announce(runs, cfgs)
    for number, (run, cfg) in enumerate(zip(runs, cfgs, strict=True), start=1):
        print(f"{number} of {len(runs)}: {run.verb} {run.path.name}", flush=True)
        (log_scores if run.verb == "evaluate" else log_training)(cfg, run.folder, again=True)
    print(f"logged {len(runs)} run{'s' * (len(runs) > 1)} with {logger.name}")
    if logger.name == "wandb" and (text := where_all(cfgs[0])):
        print(text)
    return 0


def chosen(words: Words) -> list[KnownRun]:
    """Return the finished runs that the words mean.

    Raises:
        UserError: none, an unfinished one that was named, or one of a verb without results to show.
    """
    wanted = list(split(words.options.get("runs", "")))
    if not wanted:
        raise UserError("which runs? runs=all, or runs=<id, name or beginning>,... `nd ls` lists them.")
    verbs = words.bare or LOGGED
    there = known_runs(Path(words.paths.runs), verbs)
    found: dict[Path, KnownRun] = {}
    for text in wanted:
        if text == "all" or "*" in text:
            new = [run for run in there if text == "all" or any(fnmatchcase(n, text) for n in (run.id, run.path.name))]
            found |= {run.path: run for run in new if run.state == "done"}
        else:
            run = find_run(text, Path(words.paths.runs), verbs)
            found[run.path] = _loggable(run, verbs)
    keys = {key: text for key, text in words.options.items() if key != "runs" and key.partition(".")[0] != "logger"}
    kept = filtered(found.values(), keys)
    if not kept:
        raise UserError(f"no finished run of {' or '.join(verbs)} in {words.paths.runs} is meant by that.")
    return kept


def _loggable(run: KnownRun, verbs: Sequence[str]) -> KnownRun:
    if run.verb not in LOGGED:
        raise UserError(f"{run.path.name} is a {run.verb} run, which has no scores to log. Log the evaluation of it.")
    if run.verb not in verbs:
        raise UserError(f"{run.path.name} is a run of {run.verb}; wanted was one of {' or '.join(verbs)} alone.")
    if run.state != "done":
        raise UserError(f"{run.path.name} is not done but {run.state}; finished runs alone are logged. See `nd ls`.")
    return run


def _logger(words: Words) -> LoggerConfig:
    """Return the logger asked for: W&B unless another is."""
    given = {key: value for key, value in words.options.items() if key.partition(".")[0] == "logger"}
    logger = compose([f"{key}={value}" for key, value in ({"logger": "wandb"} | given).items()]).logger
    if logger.name == "none":
        raise UserError("logger=none shows nothing. Give logger=wandb, logger=tensorboard or logger=csv.")
    return logger


def _config(run: KnownRun, logger: LoggerConfig, paths: PathsConfig) -> Config:
    """Return the configuration of a run, whose files lie where they lie now."""
    cfg = read_run(run.path).config
    group = logger.group or cfg.logger.group
    return replace(cfg, logger=replace(logger, group=group), paths=paths)


def _announce(runs: Sequence[KnownRun], cfgs: Sequence[Config]) -> None:
    """Name runs of one group after what sets them apart from each other, where the group has not named them."""
    groups = defaultdict(list)
    for run, cfg in zip(runs, cfgs, strict=True):
        groups[group_of(cfg)].append((run.verb, cfg))
    for group, members in groups.items():
        if group and len(members) > 1:
            announce(Path(cfgs[0].paths.runs), group, names_apart(members), keep=True)


main = verb_of_words(log, None)

if __name__ == "__main__":
    main(None)
