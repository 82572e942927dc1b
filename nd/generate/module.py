"""Sampling as a LightningModule, so that devices, nodes and launchers are Lightning's business.

B images of a batch, R repeats.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nd.config import TrainerConfig
from nd.generate.base import Generator
from nd.generate.features import FeatureSource
from nd.generate.parts import Parts
from nd.generate.progress import ImageProgress
from nd.launch import process_settings
from nd.lightning import lightning

Batch = tuple[list[int], dict[str, Tensor]]


class Work(Dataset[Batch]):
    """Whole batches of images with the targets a generator wants."""

    def __init__(self, batches: Sequence[Sequence[int]], source: FeatureSource, targets: Sequence[str]) -> None:
        """Take batches of image ids."""
        self.batches, self.source, self.targets = batches, source, targets

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        """Return one batch: image ids and, per target, (B, *shape) float32."""
        ids = [int(i) for i in self.batches[index]]
        return ids, {name: torch.from_numpy(self.source.rows(name, ids)) for name in self.targets}


class Reconstruction(LightningModule):
    """Turns batches of targets into images and writes each batch as it is finished."""

    def __init__(
        self, build: Callable[[torch.device], Generator], work: Work, runs: Sequence[Parts], num_workers: int = 0
    ) -> None:
        """Take what is needed to build the generator in each process, the work, and where each run's images go."""
        super().__init__()
        self.build, self.work, self.runs, self.num_workers = build, work, runs, num_workers
        self.generator: Generator | None = None

    def on_predict_start(self) -> None:
        """Build the generator on this process's device, and let SIGTERM end the process at once.

        Lightning notes the signal and goes on; every finished part is whole on disk, so nothing is lost by stopping.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.generator = self.build(self.device)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return this process's share: every n-th whole batch, so that the cut never depends on the process count."""
        mine = self.work.batches[self.trainer.global_rank :: self.trainer.world_size]
        share = Work(mine, self.work.source, self.work.targets)
        return DataLoader(share, batch_size=None, num_workers=self.num_workers)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Make and write the images of one batch."""
        assert self.generator is not None
        image_ids, features = batch
        for parts, pictures in zip(self.runs, self.generator(image_ids, features), strict=True):
            parts.fail(pictures.failed)
            well = [row for row, image_id in enumerate(image_ids) if image_id not in pictures.failed]
            if well:
                parts.write([image_ids[row] for row in well], pictures.images[well])

    def on_predict_end(self) -> None:
        """Wait for the other processes, so that whoever merges finds every part."""
        self.trainer.strategy.barrier("reconstruct")


def run_work(
    build: Callable[[torch.device], Generator], work: Work, runs: Sequence[Parts], cfg: TrainerConfig, n_images: int
) -> None:
    """Make the images of ``work`` on the configured devices; returns when every process has written its parts.

    Args:
        build: makes the generator on a device; called once in every process, so it must be picklable.
        work: unfinished batches.
        runs: where each run's images are written, in the order in which the generator returns them.
        cfg: devices and progress.
        n_images: of a whole run, for the progress bar.

    Raises:
        UserError: of the generator, whichever process it came from; or one of the processes was killed.
    """
    module = Reconstruction(build, work, runs, cfg.num_workers)
    bar = [ImageProgress(n_images, runs[0])] if cfg.progress else []
    with lightning(cfg):
        build_trainer(cfg, bar).predict(module, return_predictions=False)


def build_trainer(cfg: TrainerConfig, callbacks: list[Any]) -> Trainer:
    """Return a Trainer that predicts and leaves no files behind."""
    return Trainer(
        **process_settings(cfg),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,  # the guided steps need a graph; the sampler switches gradients itself
        use_distributed_sampler=False,  # the module hands out whole batches
    )
