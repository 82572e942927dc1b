"""Scores shown elsewhere, only when asked for: ``logger=wandb`` (offline unless told otherwise) or ``logger=csv``.

Tables never read these: run folders are the record, and this is a view of them.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from nd.config import Config
from nd.errors import UserError, unknown
from nd.files import read_json, write_text
from nd.launch import is_rank_zero
from nd.locks import locked
from nd.runs.folder import RunFolder
from nd.runs.identity import identity_of, run_name
from nd.terminal import plain_cell

log = logging.getLogger(__name__)

NAME_LENGTH = 120  # W&B cuts names at 128 characters
CSV_NAME = "scores-log.csv"
MODES = ("offline", "online", "disabled")
FIELDS = ("run", "name", "metric", "value")


class Mean(TypedDict):
    """What is logged of one score."""

    mean: float


class Logged(TypedDict):
    """What is logged of ``scores.json``."""

    metrics: dict[str, Mean]
    retrieval: NotRequired[dict[str, Mean]]


def changed_keys(cfg: Config, verb: str) -> str:
    """Return what sets a run apart, as ``key=value`` words: where its identity differs from the default run's."""
    own, default = identity_of(verb, cfg), identity_of(verb, Config())
    targets = own.pop("targets", {})
    words = [f"{key}={value}" for key, value in own.items() if key not in default or default[key] != value]
    for name, one in targets.items():
        plain = default["targets"].get(name, {})
        words += [f"{name}.{key}={value}" for key, value in one.items() if key not in plain or plain[key] != value]
    return " ".join(words)[:NAME_LENGTH] or run_name(verb, cfg)


def check_logger(cfg: Config) -> None:
    """Make sure, before any work, that ``logger`` can show what it is asked to.

    Raises:
        UserError: the wandb package is missing, its mode is none, or it is online without a key to log in with.
    """
    if cfg.logger.name != "wandb":
        return
    wandb, mode = _wandb(), _mode(cfg)
    if mode not in MODES:
        raise unknown("W&B mode (WANDB_MODE)", mode, MODES)
    if mode != "online" or not is_rank_zero(cfg.trainer):
        return
    try:
        wandb.login()  # asks for the key where a person can answer
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"logger=wandb is online, but W&B does not let this machine in: {error} Run `wandb login`, set "
            "WANDB_API_KEY, or use logger.mode=offline and `wandb sync` later."
        ) from error


def log_scores(cfg: Config, folder: RunFolder) -> None:
    """Show a finished evaluate run's scores where ``logger`` says; what goes wrong there is a warning.

    It is a view of the run, which is whole without it: the same command shows it again.
    """
    if cfg.logger.name == "none" or not is_rank_zero(cfg.trainer):
        return
    summary = read_json(folder.path / "scores.json", Logged)
    scores = {name: score["mean"] for name, score in (summary["metrics"] | summary.get("retrieval", {})).items()}
    try:
        {"wandb": _log_wandb, "csv": _log_csv}[cfg.logger.name](cfg, folder, scores)
    except Exception as error:  # wandb raises its own, and those of its network libraries
        log.warning(
            "logger=%s could not show the scores of %s (%s: %s). They are kept there; the same command tries again",
            cfg.logger.name, folder.path, type(error).__name__, error,
        )  # fmt: skip


def training_logger(cfg: Config, folder: RunFolder, fold: int) -> Any:
    """A Lightning logger for the curves of one training, or False; W&B is offline unless told otherwise."""
    if cfg.logger.name == "csv":
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(folder.path / "training", name="", version=f"fold-{fold:02d}-log")
    if cfg.logger.name == "wandb":
        _wandb()
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(
            name=changed_keys(cfg, folder.verb),
            save_dir=cfg.paths.runs,
            id=f"{folder.run_id}-{fold}",
            project=cfg.logger.project,
            offline=_mode(cfg) != "online",
            mode=_mode(cfg),
            group=cfg.table or cfg.data.name,
            job_type=folder.verb,
            config=asdict(cfg),
        )
    return False


def _mode(cfg: Config) -> str:
    """``logger.mode``, unless W&B's own variables say otherwise: they are how a machine or a job is kept silent."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "t", "y"):
        return "disabled"
    given = os.environ.get("WANDB_MODE", "")
    return {"dryrun": "offline", "run": "online"}.get(given, given) or cfg.logger.mode


def _wandb() -> Any:
    """The package. UserError where it is missing."""
    try:
        import wandb
    except ImportError:
        raise UserError("logger=wandb needs the wandb package: pip install wandb. Or leave logger=none.") from None
    return wandb


def _log_csv(cfg: Config, folder: RunFolder, scores: Mapping[str, float]) -> None:
    """Append one line per score to ``<paths.results>/scores-log.csv``, unless it is there already."""
    path = Path(cfg.paths.results) / CSV_NAME
    with locked(path.with_name(f".{CSV_NAME}.lock"), str(path), wait=True):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        name = plain_cell(changed_keys(cfg, folder.verb))
        rows = [list(FIELDS), *([folder.run_id, name, *map(str, item)] for item in scores.items())]
        known = list(csv.reader(io.StringIO(before)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(row for row in rows if row not in known)
        write_text(path, before + text.getvalue())


def _log_wandb(cfg: Config, folder: RunFolder, scores: Mapping[str, float]) -> None:
    wandb = _wandb()
    settings: dict[str, Any] = {
        "project": cfg.logger.project,
        "mode": _mode(cfg),
        "id": folder.run_id,  # the same run logged again is the same run there
        "resume": "allow",
        "group": cfg.table or cfg.data.name,
        "name": changed_keys(cfg, folder.verb),
        "job_type": folder.verb,
        "config": asdict(cfg),
        "dir": cfg.paths.runs,
    }
    run = wandb.init(**settings)
    try:
        run.summary.update({"simulated": cfg.data.simulated, "oracle": cfg.features == "oracle", **scores})
    finally:
        run.finish()
