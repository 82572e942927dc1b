"""A small world of two subjects and a module that writes down what it is given.

``python helpers_datamodule.py FOLDER DEVICES NUM_WORKERS`` trains two epochs and predicts, with Lightning's default
flags, and leaves ``rank<r>.json`` of every process in FOLDER.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nd.data.batch import Batch
from nd.data.datamodule import VoxelDataModule
from nd.data.prepared import Subject, write_subject
from nd.data.scaling import Scaler
from nd.data.splits import Fold

N_IMAGES = 20
FOLD = Fold(train=np.arange(0, 12), val=np.arange(12, 16), test=np.arange(16, N_IMAGES))
OUTSIDE = 2  # images N_IMAGES .. that belong to no part of the fold
WIDTHS = {"subj01": 6, "subj02": 9}


class Targets:
    """Target of image i is (i, -i) / 10; remembers which images were asked for."""

    def __init__(self) -> None:
        self.asked: set[int] = set()

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        self.asked |= set(np.asarray(ids).tolist())
        return np.stack([ids, -np.asarray(ids)], 1).astype(np.float32) / 10


def subject_with(voxels: NDArray[np.float32], path: Path, image_id: NDArray[Any] | None = None) -> Subject:
    """By default 20 images, each shown equally often."""
    n = len(voxels)
    image_id = np.arange(n) % N_IMAGES if image_id is None else image_id
    zeros, ijk = np.zeros(n, np.int32), np.zeros((voxels.shape[1], 3), np.int16)
    write_subject(
        path, voxels=voxels, image_id=image_id, session=zeros, repeat=zeros, trial=np.arange(n), rois={}, ijk=ijk,
        attributes={},
    )  # fmt: skip
    return Subject(path)


def numbered(folder: Path) -> list[tuple[Subject, Fold]]:
    """Two subjects, 3 and 2 repeats, whose first voxel is the number of the trial; some images are of no part."""
    made = []
    for k, (name, n_voxels) in enumerate(WIDTHS.items()):
        rng = np.random.default_rng(k)
        image_id = rng.permutation(np.tile(np.arange(N_IMAGES + OUTSIDE), 3 - k))
        voxels = rng.normal(size=(len(image_id), n_voxels)).astype(np.float32)
        voxels[:, 0] = np.arange(len(image_id))
        path = folder / f"{name}.h5"
        made.append((Subject(path) if path.exists() else subject_with(voxels, path, image_id), FOLD))
    return made


def module_of(subjects: list[tuple[Subject, Fold]], **options: Any) -> VoxelDataModule:
    """A data module that leaves voxels as they are, so that trials can be told by their number."""
    plain = {s.name: Scaler(np.zeros(s.n_voxels, np.float32), np.ones(s.n_voxels, np.float32)) for s, _ in subjects}
    module = VoxelDataModule(subjects, {"a": Targets()}, **{"batch_size": 7, **options})
    module.scalers = plain
    return module


def trials_in(batch: Batch) -> dict[str, list[int]]:
    """Numbers of the trials of a batch, by subject."""
    return {name: part.voxels[:, 0].int().tolist() for name, part in batch.subjects.items()}


class Recorder(pl.LightningModule):
    """One linear map per subject to a shared one; notes every batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ridge = nn.ModuleDict({name: nn.Linear(n, 3) for name, n in WIDTHS.items()})
        self.head = nn.Linear(3, 2)
        self.train_steps: list[list[dict[str, list[int]]]] = []
        self.val_ids: list[int] = []

    def forward(self, batch: Batch) -> Tensor:
        # A trial's number would dwarf the other voxels.
        scaled = [self.ridge[name](part.voxels / 30) for name, part in batch.subjects.items()]
        return self.head(torch.cat(scaled))

    def on_train_epoch_start(self) -> None:
        self.train_steps.append([])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert torch.equal(batch.target("a")[:, 0] * 10, batch.image_id.float())
        self.train_steps[-1].append(trials_in(batch))
        return nn.functional.mse_loss(self(batch), batch.target("a")) * batch.share

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert torch.equal(batch.target("a")[:, 0] * 10, batch.image_id.float())
        if not self.trainer.sanity_checking and self.trainer.current_epoch == 0:
            self.val_ids += batch.subjects["subj01"].image_id.tolist()
        self.log("val", batch.target("a").mean(), batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options: Any) -> pl.Trainer:
    """Lightning as it comes, but quiet and without files."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", **{**quiet, "max_epochs": 2, **options})


def record(folder: Path, devices: int, num_workers: int) -> None:
    """Train; write what this process was given."""
    data, model = module_of(numbered(folder), num_workers=num_workers), Recorder()
    one = trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
    one.fit(model, datamodule=data)
    seen = {"train": model.train_steps, "val": model.val_ids, "val_loss": float(one.callback_metrics["val"])}
    seen["weights"] = [p.tolist() for p in model.parameters()]
    (folder / f"rank{one.global_rank}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    record(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
