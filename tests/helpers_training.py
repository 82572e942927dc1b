"""A linear world, small enough to train on in a second: subjects, images and features in the prepared formats.

Image i has a latent vector; every number of a target is a linear function of it, every voxel another one and noise.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback
from safetensors.torch import load_file
from torch import Tensor

from nd.config import BackboneConfig, Config, NetworkConfig
from nd.config.application import compose
from nd.data.prepared import (
    data_folder,
    open_subject,
    split_of,
    stimuli_path,
    subject_path,
    write_stimuli,
    write_subject,
)
from nd.hdf5 import allocate
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network
from nd.mappers.training.fit import Files
from nd.mappers.training.folds import teacher_of
from nd.mappers.training.pretrained import Pretrained
from nd.mappers.training.stage import Stage, Trained, finetune, pretrain
from nd.targets.store import TargetStore, store_path

N_LATENT, N_REPEATS = 6, 2
N_TRAIN, N_VAL, N_TEST = 52, 12, 10  # as data.n_*: the validation images are cut from the training images
SUBJECTS = {"subj01": 20, "subj02": 17, "subj03": 24}  # voxels
SHAPES = {"c": (3, 4), "g": (2, 5, 4), "z": (2, 4, 4)}
SMALL = [
    "mapper=two_stage", "network.hidden=16", "network.blocks=1", "network.prior_depth=1", "network.prior_heads=2",
    "network.prior_head_width=8", "network.prior_growth=1", "network.latent_channels=8",
    "network.decoder_channels=[8,8]", "training.batch_size=32", "training.least_steps=0", "training.epochs=4",
    "training.pretrain_epochs=4", "training.lr=3e-3", "trainer.accelerator=cpu", "trainer.progress=false",
]  # fmt: skip
PARTS = [TargetSlice("c", "c", 0, 12, (3, 4)), TargetSlice("z", "z", 0, 32, (2, 4, 4))]
NETWORK = NetworkConfig(
    hidden=8, blocks=1, prior=True, prior_depth=1, prior_heads=2, prior_head_width=4, prior_growth=1,
    latent_channels=4, decoder_channels=[4, 4],
)  # fmt: skip
# Every source of random numbers, and everything that is carried from one step to the next.
EVERYTHING = [
    "network.prior=true", "network.predict=prior", "training.mixco_share=0.5", "training.ema=0.9",
    "training.accumulate=2", "training.keep=best", "training.validate_every=1", "training.trials=single",
]  # fmt: skip


def write_world(root: Path, backbone: BackboneConfig, noise: float = 1.0) -> list[str]:
    """Write it below ``root``; returns the overrides that mean it."""
    sizes = [f"data.n_train={N_TRAIN}", f"data.n_val={N_VAL}", f"data.n_test={N_TEST}", f"data.n_repeats={N_REPEATS}"]
    weights = [f"backbone.{field}={getattr(backbone, field)}" for field in ("weights", "image_tower", "image_size")]
    given = [*sizes, *weights, f"data.subjects=[{','.join(SUBJECTS)}]", f"paths.root={root}"]
    cfg = compose(given)
    data_folder(cfg).mkdir(parents=True)
    ids = np.arange(N_TRAIN + N_TEST)
    pictures = np.random.default_rng(0).integers(0, 256, (len(ids), 8, 8, 3)).astype(np.uint8)
    write_stimuli(stimuli_path(cfg), images=pictures, captions=[["a"]] * len(ids), image_id=ids)
    for name in SUBJECTS:
        _write_subject(cfg, name, noise)
    for target, shape in SHAPES.items():
        write_store(store_path(cfg, target), target, linear_target(target, ids), shape)
    return given


def latent(ids: NDArray[Any]) -> NDArray[np.float64]:
    """(N, L)."""
    return np.random.default_rng(1).normal(size=(N_TRAIN + N_TEST, N_LATENT))[ids]


def linear_target(target: str, ids: NDArray[Any]) -> NDArray[np.float32]:
    """(N, P), with means and spreads that differ by column; the first column is constant."""
    rng, size = np.random.default_rng(sum(map(ord, target))), int(np.prod(SHAPES[target]))
    values = latent(ids) @ rng.normal(size=(N_LATENT, size)) * rng.uniform(0.2, 3, size) + rng.normal(size=size)
    values[:, 0] = 0.5
    return values.astype(np.float32)


def _write_subject(cfg: Config, name: str, noise: float) -> None:
    rng, n_voxels = np.random.default_rng([7, *map(ord, name)]), SUBJECTS[name]
    image_id = rng.permutation(np.tile(np.arange(N_TRAIN + N_TEST), N_REPEATS))
    voxels = latent(image_id) @ rng.normal(size=(N_LATENT, n_voxels))
    voxels += noise * rng.normal(size=voxels.shape)
    session = np.arange(len(image_id)) * 2 // len(image_id)
    write_subject(
        subject_path(cfg, name), voxels=voxels.astype(np.float32), image_id=image_id, session=session,
        repeat=np.zeros(len(image_id), np.int32), trial=np.arange(len(image_id)), attributes={},
        rois={"some": np.arange(n_voxels) < 9, "others": np.arange(n_voxels) > 11},
        ijk=np.stack(np.unravel_index(np.arange(n_voxels), (4, 3, 3)), 1).astype(np.int16),
    )  # fmt: skip


def write_store(
    path: Path, target: str, values_NP: NDArray[np.float32], shape: tuple[int, ...], fingerprint: str = ""
) -> None:
    """A finished store of images 0 .. N - 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image_id"] = np.arange(len(values_NP), dtype=np.int32)
        file["reference"] = values_NP[:4]
        file.attrs.update({"shape": json.dumps(shape), "target": target, "details": "{}", "versions": "{}"})
        file.attrs["fingerprint"] = fingerprint or path.stem.rpartition("-")[2]
        allocate(file, "features", values_NP.shape, np.dtype(np.float32))[:] = values_NP


def stores(cfg: Config, *targets: str) -> dict[str, Path]:
    """Paths of the features, by target."""
    return {target: store_path(cfg, target) for target in targets}


def finetuned(cfg: Config, folder: Path, *targets: str, start: Any = None, logger: Any = False) -> Trained:
    """Fine-tune ``cfg.subject`` in the only fold, from chance or from (path, pretrained)."""
    subject, fold = open_subject(cfg), split_of(cfg).folds[0]
    given = (stores(cfg, *targets), teacher_of(cfg), Files(folder, 0), start, logger)
    trained = finetune(cfg, subject, fold, 0, *given)
    assert trained is not None
    return trained


def pretrained(cfg: Config, folder: Path, *targets: str) -> Pretrained:
    """Pretrain the only fold."""
    found = pretrain(cfg, 0, stores(cfg, *targets), teacher_of(cfg), Files(folder, 0), False)
    assert found is not None
    return found


def stage_of(cfg: Config, *targets: str) -> Stage:
    """Fine-tuning of ``cfg.subject`` in the only fold."""
    return Stage(cfg, [(open_subject(cfg), split_of(cfg).folds[0])], stores(cfg, *targets), 0)


def truth_of(cfg: Config, target: str) -> TargetStore:
    """Features of all images."""
    return TargetStore(store_path(cfg, target))


def curve_of(folder: Path, fold: int = 0) -> list[dict[str, Any]]:
    """Lines of a learning curve, without what depends on the clock: samples a second, and the digest of it all."""
    lines = [json.loads(line) for line in Files(folder, fold).curve.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in ("samples_per_s", "digest")} for line in lines]


def weights_of(path: Path) -> dict[str, Tensor]:
    """Arrays of a checkpoint."""
    return dict(load_file(path))


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor differs by at most ``tolerance`` times the largest number of the wanted one, taken as 0.01 at least.

    What starts at 0 moves by steps of the learning rate, whose rounding does not shrink with it.
    """
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        largest = float(value.abs().max()) if value.numel() else 0.0
        worst = float((found[name].double() - value.double()).abs().max()) if value.numel() else 0.0
        assert worst <= tolerance * max(largest, 1e-2), f"{name} differs by {worst:.1e} of {largest:.1e}"


def identical(one: Network, other: Network) -> bool:
    """Whether all weights are bit for bit the same."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Weights(Callback):
    """Copies of the weights after every step of the optimiser."""

    def __init__(self) -> None:
        self.copies: list[dict[str, Tensor]] = []
        self.n_seen = 0

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step > self.n_seen:
            self.n_seen = trainer.global_step
            self.copies.append({name: value.clone() for name, value in module.network.state_dict().items()})


def die_in(stage: str, epoch: int, when: str) -> None:
    """Have this process killed at the end of an epoch of a stage, ``before`` or ``after`` its checkpoint."""
    from nd.mappers.training.fit import Checkpoints

    write = Checkpoints.on_train_epoch_end

    def deadly(self: Checkpoints, trainer: Any, module: Any) -> None:
        is_time = module.config.stage == stage and trainer.current_epoch == epoch
        if not is_time or when == "after":
            write(self, trainer, module)
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.on_train_epoch_end = deadly  # type: ignore[method-assign]


def train_and_die(stage: str, epoch: int, when: str, overrides: list[str]) -> None:
    """``nd train`` in a process that is killed on the way; see ``die_in``."""
    from nd.train import main

    die_in(stage, epoch, when)
    main(overrides)
