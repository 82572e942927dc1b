"""`nd train`: fit the mapper of one subject and target, one per fold of the split.

Writes checkpoint/fold-<k>.safetensors and .json, and scores.json, into the run folder. Sees training and validation
images alone; folds that are finished are kept when an interrupted run goes on. `mapper=two_stage` trains a network in
two stages, the first on the other subjects in a run folder of its own (training.stage=pretrain does that one alone);
learning curves are in training/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nd.config import Config
from nd.config.application import verb
from nd.config.sweeps import Point
from nd.files import located
from nd.runs.chain import pretrain_of


def train(cfg: Config) -> Path:
    """Fit every fold of `cfg.data.split`; returns the run folder."""
    from nd.processes import run_in_processes, starts_processes
    from nd.runs.folder import RunFolder
    from nd.runs.identity import mapper_of

    if not mapper_of(cfg).trained:
        return fit_linear(cfg)
    folder = RunFolder.open(cfg, "train")
    if starts_processes(cfg.trainer) and not folder.done:
        run_in_processes("train", cfg)
        return folder.path
    return train_network(cfg)


def fit_linear(cfg: Config) -> Path:
    """Fit a mapper that one process fits: in closed form, or cycle. Further ones of a launcher have nothing to do."""
    from nd.data.prepared import open_subject, split_of
    from nd.files import write_json
    from nd.launch import is_rank_zero
    from nd.machine import pick_device
    from nd.mappers.folds import fit_fold
    from nd.runs.folder import RunFolder
    from nd.tables.loggers import check_logger, log_training
    from nd.targets.store import TargetStore, store_path

    check_logger(cfg)
    subject, split = open_subject(cfg), split_of(cfg)
    store, folder = store_path(cfg), RunFolder.open(cfg, "train")
    if not is_rank_zero(cfg.trainer):  # there is nothing to share; two that wrote would be in each other's way
        return folder.path
    inputs = {f"target {cfg.target.name}": TargetStore(store).fingerprint}
    if folder.is_done(inputs):
        print(f"{folder.path} is finished; nothing to do")
        log_training(cfg, folder)
        return folder.path
    device = pick_device(cfg.trainer.accelerator)
    with folder.writing(cfg, inputs) as path:
        folds = [fit_fold(cfg, subject, split, k, store, path, device) for k in range(len(split.folds))]
        scores = mean_scores(folds)
        write_json(path / "scores.json", {"images": held_out(cfg), "mean": scores, "folds": folds})
    print(f"wrote {len(folds)} mapper{'s' * (len(folds) > 1)} at {path} ({held_out(cfg)}: {described(scores)})")
    log_training(cfg, folder)
    return path


def train_network(cfg: Config) -> Path:
    """Train a network step by step, in one stage or both; returns the run folder of the last."""
    from nd.data.prepared import split_of
    from nd.files import write_json
    from nd.launch import is_rank_zero
    from nd.mappers.training.folds import clear_folds, finetune_folds, pretrain_folds, stores_of
    from nd.runs.folder import RunFolder
    from nd.runs.identity import trained_together
    from nd.tables.loggers import check_logger, log_training
    from nd.tables.training_history import training_loggers
    from nd.targets.store import TargetStore

    check_logger(cfg)
    targets, folder = trained_together(cfg), RunFolder.open(cfg, "train")
    inputs = {f"target {name}": TargetStore(path).fingerprint for name, path in stores_of(cfg, targets).items()}
    pretrained = pretrained_folder(cfg)
    if pretrained is not None:
        inputs["pretrained"] = fingerprint_of(pretrained)
    if folder.is_done(inputs):
        if is_rank_zero(cfg.trainer):
            print(f"{folder.path} is finished; nothing to do")
        log_training(cfg, folder)
        return folder.path
    n_folds = len(split_of(cfg).folds)
    with folder.writing(cfg, inputs) as path, training_loggers(cfg, folder, n_folds) as make:
        if cfg.training.stage == "pretrain":
            folds = pretrain_folds(cfg, targets, path, make)
        else:
            folds = finetune_folds(cfg, targets, path, pretrained, make)
        by_target = {name: mean_scores([{"scores": fold[name]} for fold in folds]) for name in targets}
        if is_rank_zero(cfg.trainer):
            write_json(path / "scores.json", {"images": "validation images", "mean": by_target, "folds": folds})
            clear_folds(cfg, path)
    if is_rank_zero(cfg.trainer):
        for name, scores in by_target.items():
            print(f"{cfg.training.stage} {name}: {described(scores)} (validation images)")
        print(f"wrote {len(folds)} network{'s' * (len(folds) > 1)} at {path}, learning curves in {path / 'training'}")
    return path


def pretrained_folder(cfg: Config) -> Path | None:
    """The run folder that fine-tuning starts from: the one given, or that of stage 1, which is run where missing."""
    if cfg.training.stage == "pretrain" or not cfg.training.pretrain:
        return None
    if cfg.training.pretrained:
        return located(cfg.training.pretrained)
    return train_network(pretrain_of(cfg))


def fingerprint_of(folder: Path) -> str:
    """Hash of the pretrained networks of a run folder, which fine-tuning records as its input."""
    from nd.files import sha256_json
    from nd.mappers.checkpoint import checkpoint_path
    from nd.mappers.training.pretrained import recorded_arrays

    paths, fold = [], 0
    while checkpoint_path(folder, fold).exists() or not fold:
        paths.append(recorded_arrays(checkpoint_path(folder, fold)))
        fold += 1
    return sha256_json(paths)


def held_out(cfg: Config) -> str:
    """The images that the penalty was chosen on, and that the scores are of; never the test images."""
    folds = getattr(cfg.mapper, "folds", 0)
    return f"{folds} folds of the training images" if folds else "validation images"


def mean_scores(folds: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of the held-out images averaged over the folds of the split."""
    return {name: sum(fold["scores"][name] for fold in folds) / len(folds) for name in folds[0]["scores"]}


def described(scores: dict[str, float]) -> str:
    """Scores for the closing line."""
    text = f"correlation {scores['correlation']:.3f}, two-way identification {scores['identification']:.1%}"
    return text + (f", retrieval {scores['retrieval']:.1%}" if "retrieval" in scores else "")


def name_group(points: list[Point]) -> str:
    """Return the logger's group of a sweep; empty where nothing is logged."""
    from nd.runs.groups import stages_of
    from nd.tables.loggers import announce_sweep

    return announce_sweep(points[0].cfg, [member for point in points for member in stages_of("train", point.cfg)])


main = verb(train, group=name_group)

if __name__ == "__main__":
    main()
