"""Training the folds of a split, stage by stage, and writing what is kept as checkpoints.

Where several processes train together all of them come through here; the first one writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nd.config import Config, TrainerConfig
from nd.data.prepared import open_subject, split_of
from nd.data.splits import Split
from nd.data.subject import Subject, mean_betas
from nd.errors import UserError
from nd.launch import is_rank_zero
from nd.machine import pick_device
from nd.mappers.checkpoint import checkpoint_path, is_saved, read_details, save, target_path
from nd.mappers.folds import control_of, origin_of
from nd.mappers.statistics import TargetStatistics, held_out_path, statistics_path
from nd.mappers.training.fit import Files
from nd.mappers.training.pretrained import Pretrained, load_pretrained, save_pretrained
from nd.mappers.training.stage import Trained, finetune, mapper_class, pretrain
from nd.mappers.validation import target_scores
from nd.targets.store import TargetStore, store_path

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]
MakeLogger = Callable[[int], Any]  # number of the fold -> Lightning logger, or False
WAIT_S = 600.0


def stores_of(cfg: Config, targets: list[str]) -> dict[str, Path]:
    """Return the features of every target trained, by name."""
    return {name: store_path(cfg, name) for name in targets}


def teacher_of(cfg: Config) -> Path | None:
    """Return the features that teach auxiliary heads, where the configuration names some."""
    wanted = cfg.training.aux_target if cfg.training.aux_weight else ""
    return store_path(cfg, wanted) if wanted else None


def pretrain_folds(cfg: Config, targets: list[str], folder: Path, logger: MakeLogger) -> list[Scores]:
    """Train stage 1 of every fold, unless it is done.

    Args:
        targets: trained together.
        folder: of the run.
        logger: makes a Lightning logger, or False, for the number of a fold.

    Returns:
        Validation scores by fold and target.
    """
    stores, scores = stores_of(cfg, targets), []
    for fold in range(len(split_of(cfg).folds)):
        path, files = checkpoint_path(folder, fold), Files(folder, fold)
        if _is_to_do(cfg.trainer, files, [path]):
            found = pretrain(cfg, fold, stores, teacher_of(cfg), files, logger(fold))
            if found is not None:
                save_pretrained(path, found)
        await_file(path.with_suffix(".json"), cfg.trainer)
        scores.append(load_pretrained(path).details["scores"])
    return scores


def finetune_folds(
    cfg: Config, targets: list[str], folder: Path, pretrained: Path | None, logger: MakeLogger
) -> list[Scores]:
    """Train stage 2 of every fold, unless it is done.

    Args:
        targets, folder, logger: as of `pretrain_folds`.
        pretrained: run folder of the pretrain stage; None: from chance.

    Returns:
        Validation scores by fold and target.
    """
    subject, split, stores = open_subject(cfg), split_of(cfg), stores_of(cfg, targets)
    scores = []
    for k, own in enumerate(split.folds):
        paths = {name: target_path(folder, k, name, len(targets)) for name in targets}
        files = Files(folder, k)
        if _is_to_do(cfg.trainer, files, list(paths.values())):
            start = None if pretrained is None else _start(pretrained, k)
            trained = finetune(cfg, subject, own, k, stores, teacher_of(cfg), files, start, logger(k))
            if trained is not None:
                for name, path in paths.items():
                    _save(path, cfg, subject, split, k, trained, name, stores[name], start)
        for path in paths.values():
            await_file(path.with_suffix(".json"), cfg.trainer)
        scores.append({name: read_details(path)["details"]["scores"] for name, path in paths.items()})
    return scores


def clear_folds(cfg: Config, folder: Path) -> None:
    """Remove what finished trainings need no more. At the very end: processes without a result look for it."""
    for fold in range(len(split_of(cfg).folds)):
        Files(folder, fold).clear()


def _is_to_do(trainer: TrainerConfig, files: Files, paths: list[Path]) -> bool:
    """Whether a fold is still to be trained, or its checkpoints to be made of the result.

    Further processes of a launcher take part in trainings alone; they may ask at any time before the first one ends.
    """
    if is_rank_zero(trainer):
        files.drop_damaged()
    # In this order: results are removed once there are checkpoints.
    has_no_part = not is_rank_zero(trainer) and files.has_result
    return not has_no_part and not all(is_saved(path) for path in paths)


def _start(folder: Path, fold: int) -> tuple[Path, Pretrained]:
    path = checkpoint_path(folder, fold)
    return path, load_pretrained(path)


def _save(
    path: Path,
    cfg: Config,
    subject: Subject,
    split: Split,
    k: int,
    trained: Trained,
    target: str,
    store: Path,
    start: tuple[Path, Pretrained] | None,
) -> None:
    """Write the mapper of one target with its scores on the validation images, predicted as they will be for others."""
    own = split.folds[k]
    features = control_of(cfg, TargetStore(store, allowed_ids=own.seen), own.seen)
    details = dict(trained.details) | {"n_images": len(own.train), "sessions": cfg.subject.sessions}
    details |= {"pretrained_on": list(start[1].subjects) if start else []}
    scaler, scale = trained.data.scalers[subject.name], trained.scales[target]
    mapper = mapper_class(cfg.mapper).of(trained.network, target, subject.name, cfg.seed, scaler, scale, details)
    mapper.device = pick_device(cfg.trainer.accelerator)
    predicted = mapper.predict(mean_betas(subject, own.val), own.val)
    scores = target_scores(torch.from_numpy(predicted), torch.from_numpy(own.val), features, scale)
    mapper.details()["scores"] = scores
    origin = replace(origin_of(cfg, subject, split, k, features.fingerprint), target=target)
    # Always: mapper.rescale is asked for when predicting, and is no part of what a network is trained for.
    TargetStatistics.fit(features, own.train).save(statistics_path(path))
    TargetStatistics.of_predictions(predicted).save(held_out_path(path))
    save(path, mapper, cfg.mapper, origin, features.shape)
    log.info("target %s, fold %d: %s", target, k + 1, scores)


def await_file(path: Path, trainer: TrainerConfig) -> None:
    """Let a process that does not write wait for the one that does."""
    end = time.monotonic() + WAIT_S
    while not path.exists():
        if is_rank_zero(trainer) or time.monotonic() > end:
            raise UserError(f"{path} was not written by the first process within {WAIT_S:.0f} s. See its messages.")
        time.sleep(0.2)
