"""`nd doctor`: whether this machine can run the composed configuration; nothing is written.

Says first which terms apply, then which data and weights are needed, present, missing or of no use, how large they are
and how they are fetched, which versions, devices, memory and disk there are, and roughly what the largest steps take.
The exit code is 0 when everything is there or is made by nd itself, 1 when something is missing. With `deep=true` every
file is also read and compared with what was recorded when it was written; the exit code is 1 where one has changed.
"""

from __future__ import annotations

import os
import platform
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from nd import __version__
from nd.backbone.weights import local_folder
from nd.config import Config
from nd.config.application import conf_dir, verb
from nd.config.components import component
from nd.doctor.data import DataNeeds, data_needs, unread
from nd.doctor.deep import compare
from nd.doctor.extent import Extent, extent
from nd.doctor.extraction import extraction_lines
from nd.doctor.listing import WIDTH, tree_lines
from nd.doctor.memory import memory_estimate, store_bytes, target_numbers
from nd.doctor.need import Need, byte_text
from nd.doctor.terms import fetching, terms
from nd.doctor.training import largest_training, voxel_counts
from nd.doctor.weights import weight_needs
from nd.machine import versions
from nd.runs.identity import mapper_of, reads_predictions

SAFE_SHARE = 0.7  # of a device's memory, the rest left to weights and everything else
MARKS = {"ok": "ok     ", "made": "to make", "missing": "MISSING", "wrong": "WRONG  ", "hint": "example"}


def doctor(cfg: Config) -> int:
    """Print what is there and what is missing; returns the exit code."""
    data = data_needs(
        cfg, unread(cfg) if cfg.data.source == "own" else component("source", cfg.data.source).pieces(cfg)
    )
    found = [*data.needs, *weight_needs(cfg)]
    size = extent(cfg, data.raw)
    say("terms", terms(cfg))
    if data.raw is not None:
        say(_tree_title(cfg, data), tree_lines(data.raw))
        say("how to fetch what is missing", fetching(cfg, data.raw))
    say("software", _software())
    say("machine", _machine(cfg))
    say(f"needed by {_name(cfg)}", (f"{MARKS[n.state]} {n.what:<16} {n.where}  ({n.note})" for n in found), indent=10)
    say("disk, roughly", _disk(cfg, data, size))
    say("memory, roughly", _memory(cfg, data, size))
    say("extraction, roughly", extraction_lines(cfg, size))
    compared = compare(cfg) if cfg.deep else None
    if compared:
        say("files", compared.lines())
    lacking = _lacking(found)
    print(f"cannot run yet, {lacking}" if lacking else "ready to run")
    return 1 if lacking or (compared and compared.problems) else 0


def say(title: str, lines: Iterable[str], indent: int = 4) -> None:
    """Print a section, if it has lines, wrapped; those that begin with blanks are laid out already."""
    for number, line in enumerate(lines):
        if not number:
            print(_filled(title, 0, 2))
        print(f"  {line}" if line.startswith(" ") else _filled(line, 2, indent))


def _filled(text: str, first: int, later: int) -> str:
    starts = {"initial_indent": " " * first, "subsequent_indent": " " * later}
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False, **starts)  # type: ignore[arg-type]


def _name(cfg: Config) -> str:
    return " ".join(cfg.overrides) or f"data={cfg.data.name} method={cfg.method.name}"


def _tree_title(cfg: Config, data: DataNeeds) -> str:
    raw = data.raw
    what = f"raw files for {cfg.subject.name} of data={cfg.data.name}"
    if raw is None or raw.root is None:
        return f"{what}, below data.root ({f'{cfg.data.root} is not a folder' if cfg.data.root else 'not given'})"
    simulated = " (a simulated tree: sizes are not held against NSD's)" if raw.simulated else ""
    return f"{what}, in {raw.root}{simulated}"


def _lacking(found: list[Need]) -> str:
    """``missing: a, b; wrong: c``."""
    named = {state: [need.name for need in found if need.state == state] for state in ("missing", "wrong")}
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in named.items() if names)


def _software() -> Iterator[str]:
    yield f"nd {__version__}, Python {platform.python_version()}, conf {conf_dir()}"
    yield ", ".join(f"{name} {version}" for name, version in versions().items())


def _machine(cfg: Config) -> Iterator[str]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"{platform.system()} {platform.machine()}, {cores} cores, {byte_text(_memory_bytes())} memory"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}: {properties.name}, {byte_text(properties.total_memory)}"
    if not torch.cuda.is_available():
        yield "no CUDA GPU; " + (
            "Apple GPU (mps)" if torch.backends.mps.is_available() else "everything runs on the CPU"
        )
    folder = _existing(cfg.paths.root)
    yield f"{byte_text(shutil.disk_usage(folder).free)} free on disk at {folder}"


def _existing(path: str) -> Path:
    """The folder itself, or the nearest above it that there is."""
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_bytes(cfg: Config) -> int:
    """Memory of the device that samples: the GPU's where one is used, else the machine's."""
    import torch

    if cfg.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return _memory_bytes()


def _disk(cfg: Config, data: DataNeeds, size: Extent) -> Iterator[str]:
    """What is still written: prepared voxels, and a store for every target (fewer where some are there already)."""
    total, linked = 0.0, cfg.data.source == "mindeye2" and cfg.data.in_place
    if f"{cfg.subject.name}.h5" in data.prepared.absent and size.voxels and size.trials and not linked:
        n_subjects = sum(name.endswith(".h5") and name != "stimuli.h5" for name in data.prepared.absent)
        total += 4.0 * size.trials * size.voxels * n_subjects
        people = cfg.subject.name if n_subjects == 1 else f"{n_subjects} subjects"
        yield f"{byte_text(total):>9}  prepared voxels of {people}: {size.trials:,} trials x {size.voxels:,} voxels"
    for name, n_bytes in store_bytes(cfg, size).items():
        total += n_bytes
        if size.images:
            numbers = target_numbers(cfg)[name]
            yield f"{byte_text(n_bytes):>9}  target {name}: {size.images:,} images x {numbers:,} numbers"
    free = shutil.disk_usage(_existing(cfg.paths.cache)).free
    if total > free:
        fewer = f" data.subjects=[{cfg.subject.name}] takes fewer images," if len(cfg.data.subjects) > 1 else ""
        yield f"too much for this disk ({byte_text(free)} free):{fewer} target.dtype=float16 takes half of it"


def _memory(cfg: Config, data: DataNeeds, size: Extent) -> Iterator[str]:
    estimate = memory_estimate(cfg, size)
    if estimate.preparing and f"{cfg.subject.name}.h5" in data.prepared.absent:
        yield f"{byte_text(estimate.preparing):>9}  preparing: the betas of one session, while they are scaled"
    if estimate.mapping:
        yield f"{byte_text(estimate.mapping):>9}  mapping: the largest mapper in closed form, while it is fitted"
    if any(mapper_of(cfg.decoding(n)).trained for n in cfg.method.targets) and reads_predictions(cfg) and size.voxels:
        yield from _training(cfg, voxel_counts(cfg, size, data.raw))
    if local_folder(cfg.backbone.weights) is None:
        yield f"{'4.3 GB':>9}  weights of the backbone, on disk and in memory"
    if not estimate.in_flight:
        return
    total = estimate.sample * estimate.in_flight
    yield f"{byte_text(estimate.sample):>9}  sampling: activations of one guided sample (upper bound)"
    yield f"{byte_text(total):>9}  sampling: {estimate.in_flight} guided samples at once (fewer with trainer.memory_gb)"
    fitting = int(SAFE_SHARE * _device_bytes(cfg) / estimate.sample)
    if fitting < estimate.in_flight:
        yield f"this device holds {fitting} of them, and takes so many at once{_leaner(cfg) if fitting < 2 else ''}"


def _training(cfg: Config, n_voxels: dict[str, int]) -> Iterator[str]:
    found = largest_training(cfg, n_voxels)
    if isinstance(found, str):
        yield f"training: {found}"
        return
    need, estimate = found
    who = f"{len(need.n_voxels)} subjects" if len(need.n_voxels) > 1 else next(iter(need.n_voxels))
    network = f"{estimate.parameters / 1e6:,.0f} million parameters, steps of {need.n_samples} samples in a process"
    yield f"{byte_text(estimate.total):>9}  training: {need.stage} of {', '.join(need.targets)} on {who}: {network}"
    if estimate.total > _device_bytes(cfg):
        yield f"too much for this device ({byte_text(_device_bytes(cfg))}): {need.advice}"


def _leaner(cfg: Config) -> str:
    """What sampling does by itself where memory is short, and what a user can do."""
    half = "backbone.dtype=bfloat16 and " if cfg.backbone.dtype == "float32" else ""
    return f"; activations are then computed again, not kept. {half}guidance.decoder=half take less than half each"


main = verb(doctor)

if __name__ == "__main__":
    main()
