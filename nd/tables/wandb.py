"""Scores shown elsewhere, only when asked for: ``logger=wandb`` (offline unless told otherwise) or ``logger=csv``.

Tables never read these: run folders are the record, and this is a view of them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nd.config import Config
from nd.errors import UserError
from nd.lightning import is_rank_zero
from nd.runs.folder import RunFolder
from nd.runs.identity import identity_of, run_name

NAME_LENGTH = 120  # W&B cuts names at 128 characters
ALWAYS = ("verb", "schema")
CSV_NAME = "scores-log.csv"


def changed_keys(cfg: Config, verb: str) -> str:
    """Return what sets a run apart, as ``key=value`` words: its identity without what every run has."""
    words = [f"{key}={value}" for key, value in identity_of(verb, cfg).items() if key not in ALWAYS]
    return " ".join(words)[:NAME_LENGTH] or run_name(verb, cfg)


def log_scores(cfg: Config, folder: RunFolder, scores: Mapping[str, float]) -> None:
    """Show a finished run's scores where ``logger`` says; nothing with ``logger=none`` or on other ranks than 0."""
    if cfg.logger.name == "none" or not is_rank_zero():
        return
    {"wandb": _log_wandb, "csv": _log_csv}[cfg.logger.name](cfg, folder, scores)


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
            offline=cfg.logger.mode != "online",
            mode=cfg.logger.mode,
            group=cfg.table or cfg.data.name,
            job_type=folder.verb,
            config=asdict(cfg),
        )
    return False


def _wandb() -> Any:
    """The package. UserError where it is missing."""
    try:
        import wandb
    except ImportError:
        raise UserError("logger=wandb needs the wandb package: pip install wandb. Or leave logger=none.") from None
    return wandb


def _log_csv(cfg: Config, folder: RunFolder, scores: Mapping[str, float]) -> None:
    """Append one line per score to ``<paths.results>/scores-log.csv``."""
    path = Path(cfg.paths.results) / CSV_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if fresh:
            writer.writerow(("run", "name", "metric", "value"))
        writer.writerows((folder.run_id, changed_keys(cfg, folder.verb), *item) for item in scores.items())


def _log_wandb(cfg: Config, folder: RunFolder, scores: Mapping[str, float]) -> None:
    wandb = _wandb()
    settings: dict[str, Any] = {
        "project": cfg.logger.project,
        "mode": cfg.logger.mode,
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
