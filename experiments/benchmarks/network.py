"""What a step of the trained network costs at NSD's size: samples per second, memory, waiting for data, operations.

    command   python experiments/benchmarks/network.py            on a GPU: 8 networks in one module, h 4096, 20 steps
              python experiments/benchmarks/network.py --hidden 256 --parts c --steps 2      on a CPU
    time      1 minute on 2 CPU cores (the second command; 23 s a step); on a GPU not measured
    memory    5 GB (the second command), 5.9 GB with --hidden 1024; the first by estimate 69 GB of a GPU
    found     on 2 CPU cores: 1.8 samples/s with --hidden 256, .05% of the time waiting for data; 1.15 times the
              estimated memory, 1.08 times with --hidden 1024
    disk      1.4 GB in a temporary folder (0.4 GB with --parts c)

Voxels and targets are noise, read from files by the real data module, and the real module is trained under Lightning:
only sizes matter here. Network options are those of conf/network/nsd.yaml, training options those of
conf/training/nsd.yaml, but a step has 42 samples as published (HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py), and by
default every part has a network of its own (--share part), as the eight published ones. Further overrides follow at the
end: network.prior=false, training.clip_norm=0.

Waiting is the time in next(loader), an upper bound on a GPU, which may still be busy with the step before. Operations
are counted in the first step, which is not timed: matrix products, convolutions and attention, forward and backward.
The rate of matrix products is measured in the same precision, before and after. Memory is what PyTorch allocated on the
GPU at most, or by how much RssAnon rose on a CPU.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from data_feed import REPEATS, watched, write_store, write_subject_file
from extraction import CLOCK, matmul_rate
from rows import MEASURED, WALL_TIME, Asked, Row
from torch.utils.flop_counter import FlopCounterMode

from nd.config import Config
from nd.config.application import compose
from nd.data.batch import Batch, StepLoader
from nd.data.datamodule import VoxelDataModule
from nd.data.splits import Fold
from nd.data.subject import Subject
from nd.files import write_json
from nd.lightning import quiet_lightning
from nd.mappers.network.heads import TargetSlice, slices_of
from nd.mappers.network.network import Network
from nd.mappers.statistics import TargetScale
from nd.mappers.training.memory import Estimate, training_bytes
from nd.mappers.training.module import MapperTraining, Recipe
from nd.targets.store import TargetStore

SHAPES = {"c": (77, 768), "g": (6, 50, 768), "z": (4, 64, 64)}  # Stable Diffusion v1.4 and CLIP ViT-B/32, six layers
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
SUBJECT = "subj01"
UNTIMED = 1  # the first step: memory is allocated, operations are counted


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the files, train, print a table; returns the figures."""
    sizes = parsed(given)
    cfg, parts = configured(sizes), parts_asked(sizes.parts)
    rates = [matmul_rate(sizes.device, DTYPES[sizes.precision])]
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        figures = measured(cfg, parts, data_of(Path(folder), sizes, parts), sizes)
    rates.append(matmul_rate(sizes.device, DTYPES[sizes.precision]))  # others may have been busy at one of the times
    known = {"parts": [part.name for part in parts], "threads": torch.get_num_threads(), **machine(sizes.device)}
    figures = {**known, **figures, "matmul_flop_per_s": max(rates)}
    show(figures, sizes)
    if sizes.out:
        write_json(Path(sizes.out), {"sizes": vars(sizes), **figures})
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of training: samples a second, waiting, memory beside its estimate, rate."""
    CLOCK["in use"] = asked.clock
    tiny = ["network.prior=false", "network.blocks=1", "network.latent_channels=4", "network.decoder_channels=[4,4]"]
    small = ["--parts", "c", "--hidden", "8", "--voxels", "30", "--trials", "90", "--batch-size", "4", *tiny]
    on_cpu = ["--hidden", "256", "--parts", "c", "--steps", "2"]
    given = small if asked.quick else [] if asked.cuda else on_cpu
    found = main([*given, "--device", asked.device])
    size = parsed(given)
    case = f"training at NSD's size: parts {' '.join(size.parts)}, h {size.hidden}, {PRECISIONS[size.precision]}"
    rate = found["flop_per_step"] / found["s_per_step"] / found["matmul_flop_per_s"]
    return [
        Row(case=case, unit="samples/s", ours=[found["samples_per_s"]], more=True, clock=WALL_TIME),
        Row(case=f"{case}: waiting for data", unit="of the time", ours=[found["waiting"]], clock=WALL_TIME),
        Row(case=f"{case}: memory", unit="MiB", ours=[found["peak_mib"]], peer="estimate",
            theirs=[found["estimated_mib"]], clock=MEASURED),
        Row(case=case, unit="of torch.mm's rate", ours=[rate], more=True, clock=WALL_TIME),
    ]  # fmt: skip


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="training steps that are timed, after the first")
    names = [*SHAPES, *(f"g_{layer}" for layer in range(SHAPES["g"][0]))]
    parser.add_argument("--parts", nargs="+", choices=names, default=list(SHAPES), help="targets, or layers of g")
    parser.add_argument("--share", choices=("part", "target", "all"), default="part", help="network.share")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=42)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--trials", type=int, default=3_000, help="a multiple of 3, the repeats of an image")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16" if device == "cuda" else "32")
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    parser.add_argument("overrides", nargs="*", default=[], help="further ones, such as network.prior=false")
    return parser.parse_intermixed_args(given)


def configured(sizes: argparse.Namespace) -> Config:
    """The configuration that is trained."""
    given = ["network=nsd", "training=nsd", f"network.share={sizes.share}", f"network.hidden={sizes.hidden}"]
    given += [f"training.batch_size={sizes.batch_size}", f"training.precision={PRECISIONS[sizes.precision]}"]
    return compose(["mapper=two_stage", *given, *sizes.overrides])


def parts_asked(names: Sequence[str]) -> list[TargetSlice]:
    """The parts of some targets, or single ones of them."""
    parts = [part for target, shape in SHAPES.items() for part in slices_of(target, shape)]
    return [part for part in parts if part.target in names or part.name in names]


def data_of(folder: Path, sizes: argparse.Namespace, parts: Sequence[TargetSlice]) -> TimedData:
    """A data module over files of noise: nine tenths of the images are trained on."""
    n_images = sizes.trials // REPEATS
    train, val, test = np.split(np.arange(n_images, dtype=np.int32), [n_images * 9 // 10, n_images * 19 // 20])
    fold, subject = Fold(train, val, test), Subject(write_subject_file(folder, sizes))
    targets = {
        name: TargetStore(write_store(folder, name, SHAPES[name], n_images), allowed_ids=fold.seen)
        for name in dict.fromkeys(part.target for part in parts)
    }
    return TimedData([(subject, fold)], targets, batch_size=sizes.batch_size, num_workers=sizes.workers)


# ---- training ------------------------------------------------------------------------------------------------------


class Waits:
    """A loader that adds up the seconds until each of its batches is there."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader, self.sampler, self.seconds = loader, loader.sampler, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - begun
            if batch is None:
                return
            yield batch


class TimedData(VoxelDataModule):
    """The data module, with its training batches timed in ``waits``."""

    waits: Waits

    def train_dataloader(self) -> Waits:  # type: ignore[override]
        """Training batches."""
        self.waits = Waits(super().train_dataloader())
        return self.waits


class Watch(pl.Callback):
    """Counts the operations of the first step and times those after it."""

    def __init__(self, data: TimedData) -> None:
        self.data, self.counter = data, FlopCounterMode(display=False)
        self.marks: list[tuple[float, float]] = []  # time and seconds waited for, before and after the timed steps

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to count."""
        if trainer.global_step == 0:
            self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop counting, and look at the clock once the device has done all steps."""
        if trainer.global_step == UNTIMED:
            self.counter.__exit__(None, None, None)
        if trainer.global_step in (UNTIMED, trainer.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append((time.perf_counter(), self.data.waits.seconds))


def measured(cfg: Config, parts: Sequence[TargetSlice], data: TimedData, sizes: argparse.Namespace) -> dict[str, Any]:
    """Train some steps and say what they took."""
    on_gpu = sizes.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    watch = Watch(data)
    with nullcontext(lambda: 0.0) if on_gpu else watched() as risen:
        network = Network(cfg.network, parts, {SUBJECT: sizes.voxels}, cfg.mapper.variant)
        fit(network, cfg, data, watch, sizes)
        peak = torch.cuda.max_memory_allocated() / (1 << 20) if on_gpu else risen()
    (begun, waited), (ended, waited_then) = watch.marks
    seconds = ended - begun
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "samples_per_s": sizes.steps * sizes.batch_size / seconds,
        "s_per_step": seconds / sizes.steps,
        "waiting": (waited_then - waited) / seconds,
        "peak_mib": peak,
        "estimated_mib": estimated(cfg, parts, sizes).total / (1 << 20),
        "flop_per_step": float(watch.counter.get_total_flops()),
    }


def fit(network: Network, cfg: Config, data: VoxelDataModule, watch: Watch, sizes: argparse.Namespace) -> None:
    """Train under Lightning as `nd train` does, without validation, checkpoints and curves."""
    training = cfg.training
    shapes = {part.target: SHAPES[part.target] for part in network.slices}
    scales = {name: TargetScale.plain(int(np.prod(shape))) for name, shape in shapes.items()}
    module = MapperTraining(network, scales, Recipe(training, cfg.seed, training.epochs, training.lr))
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=sizes.device, devices=1, precision=training.precision, max_steps=UNTIMED + sizes.steps,
            gradient_clip_val=training.clip_norm or None,
            limit_val_batches=0, callbacks=[watch], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, data)


def estimated(cfg: Config, parts: Sequence[TargetSlice], sizes: argparse.Namespace) -> Estimate:
    """What `nd doctor` would say."""
    training, voxels = cfg.training, {SUBJECT: sizes.voxels}
    return training_bytes(
        cfg.network, parts, voxels, sizes.batch_size, ema=training.ema > 0, precision=training.precision
    )  # fmt: skip


# ---- saying it -----------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, str]:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {"machine": platform.platform(), "device": name, "torch": torch.__version__}


def show(figures: dict[str, Any], sizes: argparse.Namespace) -> None:
    """The table."""
    rate, peak = figures["flop_per_step"] / figures["s_per_step"], figures["matmul_flop_per_s"]
    print(f"simulated subject of {sizes.voxels} voxels; {figures['device']}, {figures['threads']} threads")
    print(f"network.share={sizes.share}, hidden {sizes.hidden}, parts {' '.join(figures['parts'])}")
    print(f"steps of {sizes.batch_size} samples, {PRECISIONS[sizes.precision]}; {sizes.steps} steps timed\n")
    rows = [
        ("parameters", f"{figures['parameters'] / 1e6:,.1f} million", ""),
        ("training", f"{figures['samples_per_s']:.4g} samples/s", f"{figures['s_per_step']:.3g} s a step"),
        ("peak memory", f"{figures['peak_mib']:,.0f} MiB", f"estimated {figures['estimated_mib']:,.0f} MiB"),
        ("waiting for data", f"{figures['waiting']:.2%}", "of the time, at most"),
        ("operations", f"{figures['flop_per_step'] / 1e12:.3g} TFLOP", "a step"),
        ("rate", f"{rate / 1e12:.3g} TFLOP/s", f"{rate / peak:.0%} of {peak / 1e12:.3g} in matrix products"),
    ]
    for name, value, note in rows:
        print(f"{name:20}{value:>20}  {note}")


if __name__ == "__main__":
    main()
