"""The two stages: pretraining on a data set's other subjects, and fine-tuning on the one.

Both train the same network on the same kind of batches; they differ in whose voxels they see, in what the network
starts from, and in what is kept. Test images of the subject are out of reach of both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nd.config import Config, MapperConfig, NetworkConfig, trained_heads
from nd.config.components import component
from nd.data.datamodule import VoxelDataModule
from nd.data.splits import Fold
from nd.data.subject import Subject
from nd.launch import is_rank_zero
from nd.mappers.folds import Readable, control_of
from nd.mappers.network.heads import TargetSlice, slices_of
from nd.mappers.network.network import Network
from nd.mappers.network.trunk import Front
from nd.mappers.statistics import TargetScale
from nd.mappers.training.alignment import align, anchors_of
from nd.mappers.training.callbacks import Kept
from nd.mappers.training.fit import Files, read_result, run_training, whole_state
from nd.mappers.training.memory import within_memory
from nd.mappers.training.module import MapperTraining, Recipe
from nd.mappers.training.objective import patch_tokens
from nd.mappers.training.pretrained import Pretrained, Seen, check_pretrained, load_shared, others_of, shared_weights
from nd.mappers.two_stage import TwoStage
from nd.targets.store import TargetStore

log = logging.getLogger(__name__)

SMALLEST_BATCH = 16  # contrastive losses compare the samples of a batch


@dataclass(frozen=True)
class Stage:
    """What one stage of one fold trains.

    Attributes:
        subjects: with the fold of each.
        stores: the features by target.
        fold: its number.
        teacher: features that only teach auxiliary heads.
    """

    cfg: Config
    subjects: Seen
    stores: dict[str, Path]
    fold: int
    teacher: Path | None = None

    @property
    def seen(self) -> np.ndarray:
        """Sorted ids of all images that training or validation look at."""
        return np.unique(np.concatenate([fold.seen for _, fold in self.subjects]))

    @property
    def train_ids(self) -> np.ndarray:
        """Sorted ids of the training images of any subject."""
        return np.unique(np.concatenate([fold.train for _, fold in self.subjects]))

    @property
    def truths(self) -> dict[str, Readable]:
        """Features of the images seen; every other one is out of reach."""
        return self.truths_of(self.seen)

    def truths_of(self, ids: np.ndarray) -> dict[str, Readable]:
        """Return the features of `ids` alone; under control=shuffled_labels, those seen have changed places."""
        stores = {name: TargetStore(path, allowed_ids=ids) for name, path in self.stores.items()}
        return {name: control_of(self.cfg, store, self.seen) for name, store in stores.items()}

    @property
    def slices(self) -> list[TargetSlice]:
        """The slices of all targets."""
        return [part for name, truth in self.truths.items() for part in slices_of(name, truth.shape)]

    @property
    def network_config(self) -> NetworkConfig:
        """As configured, without heads that no loss trains."""
        return trained_heads(self.cfg.network, self.cfg.training)

    def network(self) -> Network:
        """Return the network as it starts from chance, a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.cfg.seed)
            return Network(self.network_config, self.slices, self.front, self.cfg.mapper.variant, self._aux_width())

    @contextmanager
    def within_memory(self) -> Iterator[None]:
        """Warn where memory may be too little, and say what it takes where it is (UserError)."""
        sizes = (self.front, self.batch_size, self.cfg, self._aux_width())
        with within_memory(self.network_config, self.slices, *sizes):
            yield

    @cached_property
    def front(self) -> Front:
        """How the voxels of the subjects come in."""
        front: Front = mapper_class(self.cfg.mapper).front(
            self.cfg.mapper, [subject for subject, _ in self.subjects], self.cfg.seed
        )
        return front

    def _aux_width(self) -> int:
        """Numbers of a token that teaches; 0 where none does, or nothing is taught."""
        if self.teacher is None or not self.cfg.training.aux_weight or not any(part.is_map for part in self.slices):
            return 0
        store = TargetStore(self.teacher)
        return int(patch_tokens(torch.zeros(1, *store.shape)).shape[-1])

    @property
    def batch_size(self) -> int:
        """Samples of a step: fewer than asked for where an epoch would have too few steps to learn in."""
        training = self.cfg.training
        single = training.trials == "single"
        n = sum(len(subject.rows_of(fold.train)) if single else len(fold.train) for subject, fold in self.subjects)
        if training.epoch_steps or not training.least_steps:
            return training.batch_size
        return min(training.batch_size, max(SMALLEST_BATCH, n // training.least_steps))

    def data(self) -> VoxelDataModule:
        """Return the batches of all subjects."""
        readers: dict[str, Readable] = dict(self.truths)
        if self.teacher is not None and self._aux_width():
            teacher = control_of(self.cfg, TargetStore(self.teacher, allowed_ids=self.seen), self.seen)
            readers.setdefault(self.cfg.training.aux_target, teacher)
        training = self.cfg.training
        return VoxelDataModule(
            self.subjects,
            readers,
            trials=training.trials,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            epoch_steps=training.epoch_steps,
            seed=self.cfg.seed,
            num_workers=self.cfg.trainer.num_workers,
        )

    def scales(self) -> dict[str, TargetScale]:
        """Return mean and spread of every target over the training images; published code trains on raw features."""
        if self.cfg.mapper.variant == "released":
            return {name: TargetScale.plain(truth.size) for name, truth in self.truths.items()}
        return {name: TargetScale.fit(truth, self.train_ids) for name, truth in self.truths.items()}


def mapper_class(config: MapperConfig) -> type[TwoStage]:
    """Return the class of the mappers that a trained network is wrapped in, as its component declares it."""
    found: type[TwoStage] = component("mapper", config.name).network()
    return found


@dataclass(frozen=True)
class Trained:
    """What a stage gave.

    Attributes:
        network: with the weights that were kept.
        scales: of the targets, by name.
        data: whose scalers were fitted.
        details: epochs, learning rate and validation scores; plain JSON values.
    """

    network: Network
    scales: dict[str, TargetScale]
    data: VoxelDataModule
    details: dict[str, Any]


def train_stage(
    stage: Stage, files: Files, network: Network, scales: dict[str, TargetScale], n_epochs: int, lr: float, logger: Any
) -> Trained | None:
    """Train `network`, unless that is done, and put the kept weights into it.

    Args:
        files: of the stage; a training that was stopped goes on from there.
        network: as it starts.
        scales: of the targets, by name.
        lr: the largest learning rate.
        logger: Lightning logger, or False.

    Returns:
        None in the further processes of a launcher, which only compute: the first one has the result.

    Raises:
        UserError: a loss or weights are not finite, or what the data module refuses.
    """
    cfg, data = stage.cfg, stage.data()
    if not (is_rank_zero(cfg.trainer) and files.has_result):
        recipe = Recipe(cfg.training, cfg.seed, n_epochs, lr, files.where)
        module = MapperTraining(network, scales, recipe)
        training = cfg.training
        kept = Kept(training.keep, training.patience, dict(stage.truths), scales, training.validate_every)
        run_training(module, data, kept, files, cfg.trainer, f"{training.stage} {', '.join(stage.stores)}", logger)
    if not is_rank_zero(cfg.trainer):
        return None
    weights, known = read_result(files)
    network.load_state_dict(weights)
    data.setup()
    return Trained(network.cpu().float().eval(), scales, data, {**known, "n_epochs": n_epochs, "lr": lr})


def pretrain(
    cfg: Config, fold: int, stores: dict[str, Path], teacher: Path | None, files: Files, logger: Any
) -> Pretrained | None:
    """Train stage 1 of one fold: everyone but `cfg.subject.name`; as of `Stage` and `train_stage`."""
    stage = Stage(cfg, others_of(cfg, fold), stores, fold, teacher)
    epochs, lr = cfg.training.pretrain_epochs, cfg.training.lr
    with stage.within_memory():
        trained = train_stage(stage, files, stage.network(), stage.scales(), epochs, lr, logger)
    if trained is None:
        return None
    anchor_ids, anchors = anchors_of(stage, trained)
    return Pretrained(
        subjects=tuple(subject.name for subject, _ in stage.subjects),
        seen=stage.seen.astype(np.int32),
        fingerprints={name: truth.fingerprint for name, truth in stage.truths.items()},
        scales=trained.scales,
        network=stage.network_config,
        variant=cfg.mapper.variant,
        front=dict(stage.front.shape),
        weights=shared_weights(trained.network.state_dict()),
        anchor_ids=anchor_ids,
        anchors=anchors,
        details=trained.details,
    )


def finetune(
    cfg: Config,
    subject: Subject,
    own: Fold,
    fold: int,
    stores: dict[str, Path],
    teacher: Path | None,
    files: Files,
    pretrained: tuple[Path, Pretrained] | None,
    logger: Any,
) -> Trained | None:
    """Train stage 2 of one fold: the subject alone, from what the others taught, or from chance.

    Args: as of `Stage` and `train_stage`; own: the fold; pretrained: where it lies, and what others taught.

    Returns: as of `train_stage`.

    Raises:
        LeakError: the pretrained network saw the subject, or its test images.
        UserError: it does not fit.
    """
    stage, training = Stage(cfg, [(subject, own)], stores, fold, teacher), cfg.training
    with stage.within_memory():
        network = stage.network()
        if pretrained is None:
            return train_stage(stage, files, network, stage.scales(), training.epochs, training.lr, logger)
        path, start = pretrained
        prints = {name: truth.fingerprint for name, truth in stage.truths.items()}
        check_pretrained(path, start, subject.name, own, prints, network)
        load_shared(path, network, start.weights)
        begun = files.has_result or whole_state(files.checkpoint) is not None
        if training.align and stage.front.aligns and not begun:
            align(stage, network, start)
        lr = training.finetune_lr or training.lr
        return train_stage(stage, files, network, start.scales, training.epochs, lr, logger)
