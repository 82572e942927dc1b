"""Weights & Biases: one run there for each run folder, opened, filled and finished whatever happens meanwhile.

The id is that of the folder, so a run that is resumed or logged again is the same run there. Files of offline runs lie
in ``<paths.runs>/wandb`` with all they refer to; ``wandb sync <paths.runs>/wandb`` sends them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nd.config import Config
from nd.errors import UserError, unknown
from nd.files import read_json, write_json
from nd.launch import is_rank_zero
from nd.runs.folder import RunFolder
from nd.runs.groups import group_of, name_of
from nd.runs.identity import mapper_of, reads_predictions, trained_together
from nd.terminal import INTERRUPTED

log = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")
LEFT_OUT = ("overrides", "paths", "logger")  # of the configuration shown: they say where, not what
LIVE = ("pretrain", "finetune")  # job types of what is shown while it goes on
MARK = "logged.json"  # in a run folder: where its results have been shown
TAG_LENGTH = 64  # W&B refuses longer ones


@dataclass(frozen=True)
class Shown:
    """What W&B is told of a run when it is opened.

    Attributes:
        id: the same for all that belongs to one run.
        name: shown in lists.
        kind: its job type.
        group: empty for none.
        tags: shown in lists.
        config: plain JSON values.
        notes: any text.
    """

    id: str
    name: str
    kind: str
    group: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    notes: str = ""


def mode_of(cfg: Config) -> str:
    """Return ``logger.mode``, unless W&B's own variables say otherwise: they keep a machine or a job silent."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "t", "y"):
        return "disabled"
    given = os.environ.get("WANDB_MODE", "")
    return {"dryrun": "offline", "run": "online"}.get(given, given) or cfg.logger.mode


def check(cfg: Config) -> None:
    """Make sure, before any work, that W&B can be shown what it is to show.

    Raises:
        UserError: the package is missing, its mode is none, or it is online without a key to log in with.
    """
    mode = mode_of(cfg)
    if mode not in MODES:
        raise unknown("W&B mode (WANDB_MODE)", mode, MODES)
    if mode == "disabled":
        return
    wandb = package()
    if mode != "online" or not is_rank_zero(cfg.trainer):
        return
    try:
        wandb.login()  # asks for the key where a person can answer
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"logger=wandb is online, but W&B does not let this machine in: {error} Run `wandb login`, set "
            "WANDB_API_KEY, or use logger.mode=offline and `wandb sync` later."
        ) from error


def package() -> Any:
    """Return the wandb package, which then reports nothing of its own; a ``UserError`` where it is missing."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own errors and counters, sent to its makers
    try:
        import wandb
    except ImportError:
        raise UserError("logger=wandb needs the wandb package: pip install wandb. Or leave logger=none.") from None
    return wandb


# ---- what a run folder is there


def of_folder(cfg: Config, folder: RunFolder) -> Shown:
    """Return what W&B is told of a run folder."""
    stage = cfg.training.stage if _in_stages(cfg, folder.verb) else ""
    return Shown(
        id=folder.run_id,
        name=name_of(folder.verb, cfg),
        kind=stage or folder.verb,
        group=group_of(cfg),
        tags=tags_of(cfg, folder.verb, stage),
        config=plain_config(cfg) | {"folder": folder.path.name},
        notes=folder.command,
    )


def _in_stages(cfg: Config, verb: str) -> bool:
    return verb == "train" and mapper_of(cfg).trained


def tags_of(cfg: Config, verb: str, stage: str = "") -> tuple[str, ...]:
    """Return the words by which runs are found: data, subject, what was trained or made, and what marks a result."""
    words = [cfg.data.name, cfg.subject.name, verb, stage]
    if verb == "train":
        words += [cfg.mapper.name, *trained_together(cfg)]
    else:
        words += [cfg.method.name, f"{cfg.protocol.name} v{cfg.protocol.version}", cfg.part]
        words += ["oracle"] if cfg.features == "oracle" else []
    marks = {
        "simulated": cfg.data.simulated,
        "debug": cfg.debug.name != "off",
        "transductive": cfg.transductive and (verb == "train" or reads_predictions(cfg)),
        cfg.control: cfg.control != "none",
    }
    words += [word for word, holds in marks.items() if holds]
    return tuple(dict.fromkeys(word[:TAG_LENGTH] for word in words if word))


def plain_config(cfg: Config) -> dict[str, Any]:
    """Return a configuration as JSON values: dictionaries, lists, text, numbers, true, false and null."""
    values = {key: value for key, value in asdict(cfg).items() if key not in LEFT_OUT}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


# ---- open


@contextmanager
def opened(cfg: Config, shown: Shown) -> Iterator[Any]:
    """Yield a W&B run; it is finished when the body ends, as failed where an exception or Ctrl-C ends it."""
    wandb, place = package(), _place_of(cfg).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with _files_beside(place):
        run = wandb.init(
            project=cfg.logger.project, mode=mode_of(cfg), dir=place, id=shown.id, name=shown.name, job_type=shown.kind,
            group=shown.group or None, tags=shown.tags, notes=shown.notes or None, config=shown.config, resume="allow",
            reinit="create_new", settings=_settings(wandb, live=shown.kind in LIVE),
        )  # fmt: skip
        try:
            yield run
        except BaseException as error:
            run.finish(exit_code=INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
            raise
        run.finish(exit_code=0)


def _settings(wandb: Any, live: bool) -> Any:
    """Nothing is taken from the terminal, the checkout or the list of packages: run folders record those.

    The load of the machine is shown where a run is shown while it goes on.
    """
    return wandb.Settings(
        console="off", silent=True, disable_code=True, disable_git=True, x_save_requirements=False,
        allow_val_change=True, x_disable_stats=not live,
    )  # fmt: skip


@contextmanager
def _files_beside(place: Path) -> Iterator[None]:
    """Keep the files that tables and artifacts refer to beside the runs, not in the home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(place / "wandb")
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def where(cfg: Config, run: Any) -> str:
    """Return where a run can be seen, or how it gets there."""
    if mode_of(cfg) == "online":
        return f"W&B: {run.url}"
    return f"W&B, offline: wandb sync {_place_of(cfg) / 'wandb' / Path(run.settings.sync_dir).name}"


def _place_of(cfg: Config) -> Path:
    return Path(os.environ.get("WANDB_DIR") or cfg.paths.runs)


def where_all(cfg: Config) -> str:
    """Return how all offline runs get to W&B; empty where none are kept."""
    place = _place_of(cfg) / "wandb"
    return f"W&B, offline: wandb sync {place}" if mode_of(cfg) == "offline" and place.is_dir() else ""


# ---- what has been shown


def is_marked(cfg: Config, folder: RunFolder) -> bool:
    """Say whether the results of a run folder have been shown where the logger shows them."""
    path = folder.path / MARK
    return path.is_file() and _project(cfg) in read_json(path)


def mark(cfg: Config, folder: RunFolder) -> None:
    """Note in a run folder that its results have been shown."""
    path = folder.path / MARK
    before: Mapping[str, str] = read_json(path) if path.is_file() else {}
    write_json(path, {**before, _project(cfg): time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _project(cfg: Config) -> str:
    return f"W&B {mode_of(cfg)}, project {cfg.logger.project}"
