"""How fast and in how much memory batches are read from a simulated subject of NSD's size, and how fast they are used.

    command   python experiments/benchmarks/data_feed.py
    time      2 to 3 minutes on 2 CPU cores (1 with --no-prior)
    memory    5.5 GB with the mapper (2.7 with --no-prior); reading alone takes the printed amount
    disk      4.3 GB in a temporary folder

Voxels and targets are noise: only sizes matter here. The consumer restates NeuralDiffuser's mapper of c in plain torch:
a linear map per subject, a linear backbone (its mixer blocks reach no output), and, unless left out, the diffusion
prior; mean squared error and AdamW. The step without the prior is the fastest consumer there is, so it is the one to
keep up with. Sizes: HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py (batch 42, h 1024, 77 x 768 numbers per image; prior
of 6 layers, 14 heads of 52, feed-forward 4 x 768).

Memory is what the process holds itself (RssAnon). Pages of files that are mapped (RssFile, part of VmHWM) are the
system's cache, as are files read lately: it takes them back whenever anything else needs room.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from rows import MEASURED, WALL_TIME, Asked, Row
from torch import Tensor, nn
from torch.nn import functional

from nd.data.batch import Batch
from nd.data.datamodule import VoxelDataModule
from nd.data.splits import Fold
from nd.data.subject import Subject
from nd.data.subject_file import AGAIN, SubjectTable, lay_out, write_rows
from nd.files import write_json
from nd.hdf5 import allocate
from nd.sealed import seal
from nd.targets.store import TargetStore

REPEATS = 3
PRIOR_LAYERS, PRIOR_HEADS, PRIOR_HEAD_WIDTH, PRIOR_GROWTH = 6, 14, 52, 4
BLOCK_ROWS = 500
MIB = 1 << 20


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Write the files, measure, print a table; returns the figures."""
    sizes = parsed(given)
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        files = write_subject_file(Path(folder), sizes), write_target_file(Path(folder), sizes)
        gib = sum(path.stat().st_size for path in files) / (1 << 30)
        print(
            f"simulated subject: {sizes.trials} trials x {sizes.voxels} voxels, targets {sizes.tokens} x {sizes.width}"
        )
        print(
            f"files of {gib:.2f} GiB; {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        )
        figures = feed(files, sizes)
    figures |= consume(sizes)
    show(figures)
    if sizes.out:
        write_json(Path(sizes.out), {"sizes": vars(sizes), "machine": platform.platform(), **figures})
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of reading: batches against the fastest training step there is, memory against the files."""
    small = ["--trials", "90", "--voxels", "50", "--tokens", "3", "--width", "8", "--hidden", "4", "--batch-size", "6",
             "--batches", "15", "--steps", "1"]  # fmt: skip
    sizes = parsed(["--no-prior", *asked.pick(small, ["--trials", "3000", "--batches", "100", "--steps", "3"])])
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        files = write_subject_file(Path(folder), sizes), write_target_file(Path(folder), sizes)
        n_mib = sum(path.stat().st_size for path in files) / MIB
        turns = [feed(files, sizes) | consume(sizes) for _ in range(asked.pick(1, 3))]
    case, steps = f"batches of {sizes.batch_size} single trials, NSD's size", "a training step, no prior"
    used = [turn["steps_per_s"]["without prior"] for turn in turns]
    rows = [Row(case=f"{case}, {name}", unit="batches/s", ours=[turn["batches_per_s"][name] for turn in turns],
                peer=steps, theirs=used, more=True, clock=WALL_TIME)
            for name in turns[0]["batches_per_s"] if name.startswith("single")]  # fmt: skip
    return [
        *rows,
        Row(case="a subject opened", unit="s", ours=[turn["open_s"] for turn in turns], clock=WALL_TIME),
        Row(case="memory that all reading adds", unit="MiB", ours=[turn["feed_mib"] for turn in turns],
            peer="the files", theirs=[n_mib], clock=MEASURED),
    ]  # fmt: skip


def parsed(given: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=30_000, help="a multiple of 3, the repeats of an image")
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=42)
    parser.add_argument("--batches", type=int, default=300, help="batches that are timed")
    parser.add_argument("--steps", type=int, default=5, help="training steps that are timed; 1 with the prior")
    parser.add_argument("--no-prior", dest="prior", action="store_false")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    return parser.parse_args(given)


# ---- files ---------------------------------------------------------------------------------------------------------


def noise_blocks(n_rows: int, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows that differ, cheap to make: one block of noise, turned by some columns each time."""
    block = np.random.default_rng(0).standard_normal((BLOCK_ROWS, width), dtype=np.float32)
    for start in range(0, n_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n_rows)
        yield slice(start, stop), np.roll(block, start % 997, axis=1)[: stop - start]


def write_subject_file(folder: Path, sizes: argparse.Namespace) -> Path:
    """A prepared file whose images are shown 3 times each in random order."""
    image_id = np.random.default_rng(1).permutation(np.arange(sizes.trials) % (sizes.trials // REPEATS))
    zeros = np.zeros(sizes.trials, np.int32)
    table = SubjectTable(
        image_id=image_id, session=zeros, repeat=zeros, trial=np.arange(sizes.trials),
        ijk=np.zeros((sizes.voxels, 3), np.int16), attributes={"source": "noise", "simulated": True},
    )  # fmt: skip
    with h5py.File(folder / "subj01.h5", "w") as handle:
        lay_out(handle, "subj01", table)
        for rows, values in noise_blocks(*table.shape):
            write_rows(handle, rows.start, values)
        seal(handle, AGAIN)
    return folder / "subj01.h5"


def write_target_file(folder: Path, sizes: argparse.Namespace) -> Path:
    """A store of features of all images."""
    return write_store(folder, "c", (sizes.tokens, sizes.width), sizes.trials // REPEATS)


def write_store(folder: Path, target: str, shape: tuple[int, ...], n_images: int) -> Path:
    """A store of noise of some shape under the name of a target."""
    path, size = folder / f"noise-{target}-0.h5", math.prod(shape)
    with h5py.File(path, "w") as handle:
        handle["image_id"] = np.arange(n_images, dtype=np.int32)
        handle["reference"] = np.zeros((4, 1), np.float32)
        known = {"shape": json.dumps(shape), "fingerprint": "noise", "target": target}
        handle.attrs.update({**known, "details": "{}", "versions": "{}"})
        features = allocate(handle, "features", (n_images, size), np.dtype(np.float32))
        for rows, values in noise_blocks(n_images, size):
            features[rows] = values
    return path


def forget(path: Path) -> None:
    """Ask the system to drop its cache of a file, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(path: Path) -> None:
    """Read a file through once."""
    buffer = bytearray(8 * MIB)
    with open(path, "rb", buffering=0) as handle:
        while handle.readinto(buffer):
            pass


# ---- memory --------------------------------------------------------------------------------------------------------


def resident_mib(field: str) -> float:
    """``RssAnon``, ``RssFile``, ``VmRSS`` or ``VmHWM`` of this process; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Look at RssAnon every 10 ms; yields a function that says by how many MiB it has risen at most."""
    before, highest, done = resident_mib("RssAnon"), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident_mib("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: max(0.0, highest[0] - before)
    finally:
        done.set()
        thread.join()


# ---- feed ----------------------------------------------------------------------------------------------------------


def feed(files: tuple[Path, Path], sizes: argparse.Namespace) -> dict[str, Any]:
    """Opening, fitting the scaler, and batches per second, with what they add to memory."""
    n_images = sizes.trials // REPEATS
    fold = Fold(*np.split(np.arange(n_images, dtype=np.int32), [n_images * 8 // 10, n_images * 9 // 10]))
    figures: dict[str, Any] = {}
    for path in files:
        forget(path)
    with watched() as risen:
        before, begun = resident_mib("VmRSS"), time.perf_counter()
        subject = Subject(files[0])
        figures["open_s"], figures["open_mib"] = time.perf_counter() - begun, resident_mib("VmRSS") - before
        targets = {"c": TargetStore(files[1], allowed_ids=fold.seen)}
        data = VoxelDataModule([(subject, fold)], targets, batch_size=sizes.batch_size)
        begun = time.perf_counter()
        data.setup()
        figures["fit_scaler_s"], figures["fit_scaler_mib"] = time.perf_counter() - begun, risen()
        rates = {"single, 0 workers, targets from disk": rate(data, sizes.batches)}
        for path in files:
            remember(path)
        for trials, workers in (("single", 0), ("single", 1), ("random", 0), ("mean", 0)):
            data.trials, data.num_workers = trials, workers
            rates[f"{trials}, {workers} workers"] = rate(data, sizes.batches)
        figures["feed_mib"] = risen()
    memory = {"rss_file_mib": resident_mib("RssFile"), "vm_hwm_mib": resident_mib("VmHWM")}
    return {**figures, **memory, "batches_per_s": rates}


def rate(data: VoxelDataModule, n_batches: int) -> float:
    """Batches per second of shuffled training steps, after the first, which starts the workers."""
    loader = data.train_dataloader()
    batches = cycle_epochs(loader)
    next(batches)
    begun = time.perf_counter()
    touched = sum(float(part.voxels[0, 0]) for batch in islice(batches, n_batches) for part in batch.subjects.values())
    seconds = time.perf_counter() - begun
    assert np.isfinite(touched), "the files hold finite numbers"
    return n_batches / seconds


def cycle_epochs(loader: Any) -> Iterator[Batch]:
    """One epoch after another."""
    for epoch in cycle(range(1000)):
        loader.sampler.set_epoch(epoch)
        yield from loader


# ---- consumer ------------------------------------------------------------------------------------------------------


class PriorLayer(nn.Module):
    """Attention whose heads share one key and value, and a gated feed-forward, each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, ff = PRIOR_HEADS * PRIOR_HEAD_WIDTH, PRIOR_GROWTH * width
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * PRIOR_HEAD_WIDTH, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.widen, self.narrow = nn.Linear(width, 2 * ff, bias=False), nn.Linear(ff, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed = self.norms[0](x_BTD)
        query = self.query(normed).unflatten(2, (PRIOR_HEADS, PRIOR_HEAD_WIDTH)).transpose(1, 2)
        key, value = self.key_value(normed)[:, None].expand(-1, PRIOR_HEADS, -1, -1).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).flatten(2))
        up, gate = self.widen(self.norms[1](x_BTD)).chunk(2, dim=-1)
        return x_BTD + self.narrow(up * functional.silu(gate))


class Mapper(nn.Module):
    """Voxels to tokens; with a prior, also tokens and noisy targets to targets."""

    def __init__(self, sizes: argparse.Namespace, prior: bool) -> None:
        super().__init__()
        self.shape = (sizes.tokens, sizes.width)
        self.ridge = nn.Linear(sizes.voxels, sizes.hidden)
        self.backbone = nn.Linear(sizes.hidden, sizes.tokens * sizes.width)
        self.prior = nn.Sequential(*[PriorLayer(sizes.width) for _ in range(PRIOR_LAYERS)]) if prior else None

    def loss(self, voxels_BV: Tensor, target_BTD: Tensor) -> Tensor:
        tokens = self.backbone(self.ridge(voxels_BV)).unflatten(1, self.shape)
        loss = functional.mse_loss(tokens, target_BTD)
        if self.prior is None:
            return loss
        time_token = torch.zeros_like(target_BTD[:, :1])
        noisy = target_BTD + torch.randn_like(target_BTD)
        found = self.prior(torch.cat([tokens, time_token, noisy], dim=1))[:, -self.shape[0] :]
        return loss + functional.mse_loss(found, target_BTD)


def consume(sizes: argparse.Namespace) -> dict[str, Any]:
    """Training steps per second on a batch that is there already."""
    voxels_BV = torch.randn(sizes.batch_size, sizes.voxels)
    target_BTD = torch.randn(sizes.batch_size, sizes.tokens, sizes.width)
    figures = {"without prior": steps_per_s(Mapper(sizes, prior=False), voxels_BV, target_BTD, sizes.steps)}
    if sizes.prior:
        figures["with prior"] = steps_per_s(Mapper(sizes, prior=True), voxels_BV, target_BTD, 1)
    return {"steps_per_s": figures}


def steps_per_s(mapper: Mapper, voxels_BV: Tensor, target_BTD: Tensor, n_steps: int) -> float:
    """Forward, backward and AdamW, after one step that allocates what they need."""
    optimiser = torch.optim.AdamW(mapper.parameters(), 3e-4)
    begun = 0.0
    for k in range(n_steps + 1):
        begun = time.perf_counter() if k == 1 else begun
        optimiser.zero_grad(set_to_none=True)
        mapper.loss(voxels_BV, target_BTD).backward()
        optimiser.step()
    return n_steps / (time.perf_counter() - begun)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    rows = [
        ("open the subject", f"{figures['open_s']:.3f} s", f"+{figures['open_mib']:.0f} MiB"),
        ("fit the scaler", f"{figures['fit_scaler_s']:.1f} s", f"+{figures['fit_scaler_mib']:.0f} MiB at most"),
    ]
    rows += [(f"batches: {name}", f"{value:.1f} per s", "") for name, value in figures["batches_per_s"].items()]
    rows += [("all of the above", "", f"+{figures['feed_mib']:.0f} MiB at most")]
    fed = figures["batches_per_s"]["single, 0 workers"]
    for name, used in figures["steps_per_s"].items():
        rows.append((f"training steps {name}", f"{used:.3g} per s", f"feed is {fed / used:.0f} times as fast"))
    for name, value, note in rows:
        print(f"{name:48}{value:>14}  {note}")
    print(f"VmHWM after reading {figures['vm_hwm_mib']:.0f} MiB, with RssFile {figures['rss_file_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
