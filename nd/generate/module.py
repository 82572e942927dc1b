"""Sampling as a LightningModule, so that devices, nodes and launchers are Lightning's business, with one progress bar.

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
from nd.generate.base import Generator, PlannedGenerator
from nd.generate.inputs import FeatureSource
from nd.generate.parts import Parts
from nd.generate.plan import Plan
from nd.launch import process_settings
from nd.lightning import lightning
from nd.progress import ProgressBar

Batch = tuple[list[int], dict[str, Tensor]]


class Work(Dataset[Batch]):
    """Whole batches of images with the targets a generator wants."""

    def __init__(self, batches: Sequence[Sequence[int]], source: FeatureSource, targets: Sequence[str]) -> None:
        """Take batches of image ids."""
        self.batches, self.source, self.targets = batches, source, targets

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        """Return one batch: image ids and, per target, (B, *shape) float32; of no images no targets."""
        ids = [int(i) for i in self.batches[index]]
        return ids, {name: torch.from_numpy(self.source.rows(name, ids)) for name in self.targets if ids}


class Reconstruction(LightningModule):
    """Turns batches of targets into images and writes each batch as it is finished."""

    def __init__(
        self,
        build: Callable[[torch.device], Generator],
        work: Work,
        runs: Sequence[Parts],
        sizes: Sequence[int],
        num_workers: int = 0,
    ) -> None:
        """Take what each process needs.

        Args:
            build: makes the generator on a device.
            work: unfinished batches.
            runs: where each run's images go; all began with the same plan, or with none.
            sizes: images of each batch of the whole job, finished or not; decide the plan.
            num_workers: loader processes.
        """
        super().__init__()
        self.build, self.work, self.runs, self.sizes, self.num_workers = build, work, runs, sizes, num_workers
        self.generator: Generator | None = None

    def on_predict_start(self) -> None:
        """Build the generator on this process's device, and let SIGTERM end the process at once.

        Lightning notes the signal and goes on; every finished part is whole on disk, so nothing is lost by stopping.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.generator = self.build(self.device)
        if isinstance(self.generator, PlannedGenerator):
            plan = self._plan(self.generator)
            self.generator.use(plan)
            if self.trainer.is_global_zero:
                for parts in self.runs:
                    parts.record(plan)

    def _plan(self, generator: PlannedGenerator) -> Plan:
        """The plan that the runs began with, else the fastest one that every process's memory allows."""
        recorded: Plan | None = self.trainer.strategy.broadcast(self.runs[0].plan)
        if recorded is not None:
            return recorded
        own = generator.plan_for(self.sizes)
        sizes = torch.tensor([own.guided, own.plain, own.decode, -own.checkpoint, own.lanes], device=self.device)
        guided, plain, decode, kept, lanes = self.trainer.strategy.reduce(sizes, reduce_op="min").tolist()
        return Plan(guided, plain, decode, checkpoint=-kept, lanes=lanes)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return this process's share: every n-th whole batch, so that the cut never depends on the process count.

        Where there are fewer batches than processes, those that get none get one without images: Lightning would leave
        them out, and the others would wait for them.
        """
        mine = self.work.batches[self.trainer.global_rank :: self.trainer.world_size] or [[]]
        share = Work(mine, self.work.source, self.work.targets)
        return DataLoader(share, batch_size=None, num_workers=self.num_workers)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Make and write the images of one batch."""
        assert self.generator is not None
        image_ids, features = batch
        if not image_ids:
            return
        for parts, made in zip(self.runs, self.generator(image_ids, features), strict=True):
            parts.fail(made.failed)
            well = [row for row, image_id in enumerate(image_ids) if image_id not in made.failed]
            if well:
                captions = [made.captions[row] for row in well] if made.captions else []
                parts.write([image_ids[row] for row in well], made.images[well], captions)

    def on_predict_end(self) -> None:
        """Wait for the other processes, so that whoever merges finds every part."""
        self.trainer.strategy.barrier("reconstruct")


class ImageProgress(ProgressBar):
    """Images finished by all processes, their rate and the time left; within a batch, the share of it that is done."""

    def __init__(self, total: int, parts: Parts) -> None:
        """Count the images of ``parts``, up to ``total``."""
        self.total, self.parts = total, parts
        self.before = self.under_way = 0  # images that were finished when this process took its batch; that batch's

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the images an interrupted run has left."""
        self.open(trainer, self.total, len(self.parts.finished()), "reconstruct", "image")

    def on_predict_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, *_: Any) -> None:
        """Follow a batch from within; the other processes are taken to be as far with theirs."""
        if self.bar is not None and isinstance(module.generator, PlannedGenerator):
            self.before, self.under_way = len(self.parts.finished()), len(batch[0]) * trainer.world_size
            module.generator.watch = self.within

    def within(self, share: float) -> None:
        """Move the bar to a share of the batch."""
        self._show(round(min(self.before + share * self.under_way, self.total), 2))

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Move the bar to what is on disk."""
        if self.bar is not None:
            self._show(len(self.parts.finished()))

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        self.close()

    def _show(self, n_images: float) -> None:
        whole = int(n_images)
        if n_images != self.bar.n:
            self.bar.n = whole if n_images == whole else n_images
            self.bar.refresh()


def run_work(
    build: Callable[[torch.device], Generator],
    work: Work,
    runs: Sequence[Parts],
    cfg: TrainerConfig,
    sizes: Sequence[int],
) -> None:
    """Make the images of ``work`` on the configured devices; returns when every process has written its parts.

    Args:
        build: makes the generator on a device; called once in every process, so it must be picklable.
        work: unfinished batches.
        runs: where each run's images are written, in the order in which the generator returns them.
        cfg: devices and progress.
        sizes: images of each batch of a whole run, finished or not: they decide the plan and fill the progress bar.

    Raises:
        UserError: of the generator, whichever process it came from; or one of the processes was killed.
    """
    module = Reconstruction(build, work, runs, sizes, cfg.num_workers)
    bar = [ImageProgress(sum(sizes), runs[0])] if cfg.progress else []
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
