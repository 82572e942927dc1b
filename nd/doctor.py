"""`nd doctor`: whether this machine can run the composed configuration; nothing is written.

Says which versions, devices, memory and disk there are, which data and weights are needed, present or missing, how
large they are and under which terms, and roughly how much memory the largest steps take. The exit code is 0 when
everything is there or is made by nd itself, 1 when something is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from nd import __version__
from nd.config import conf_dir, verb
from nd.needs import NSD_TERMS, TERMS, byte_text, local_folder, memory_estimate, needs
from nd.results.manifest import versions
from nd.schema import Config

DIGITS69_VOXELS = 3092
SAFE_SHARE = 0.7  # of a device's memory, the rest left to weights and everything else
MARKS = {"ok": "ok     ", "made": "to make", "missing": "MISSING"}


def doctor(cfg: Config) -> int:
    """Print what is there and what is missing; returns the exit code."""
    found = needs(cfg)
    for title, lines in (
        ("software", _software()),
        ("machine", _machine(cfg)),
        (f"needed by {_name(cfg)}", [f"{MARKS[n.state]} {n.what:<16} {n.where}  ({n.note})" for n in found]),
        ("memory, roughly", _memory(cfg)),
        ("terms", [TERMS.get(cfg.data.source, ""), NSD_TERMS]),
    ):
        print(title)
        for line in lines:
            print(textwrap.fill(line, 118, initial_indent="  ", subsequent_indent=" " * 10, break_on_hyphens=False))
    missing = [need.what for need in found if need.state == "missing"]
    print(f"cannot run yet, missing: {', '.join(missing)}" if missing else "ready to run")
    return 1 if missing else 0


def _name(cfg: Config) -> str:
    return " ".join(cfg.overrides) or f"data={cfg.data.name} method={cfg.method.name}"


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
    folder = Path(cfg.paths.root).resolve()
    while not folder.exists():
        folder = folder.parent
    yield f"{byte_text(shutil.disk_usage(folder).free)} free on disk at {folder}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_bytes(cfg: Config) -> int:
    """Memory of the device that samples: the GPU's where one is used, else the machine's."""
    import torch

    if cfg.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return _memory_bytes()


def _memory(cfg: Config) -> Iterator[str]:
    estimate = memory_estimate(cfg, DIGITS69_VOXELS if cfg.data.source == "digits69" else cfg.data.n_voxels)
    yield f"{byte_text(estimate.mapping):>9}  mapping: weights of the largest ridge mapper (float64)"
    if local_folder(cfg.backbone.weights) is None:
        yield f"{'4.3 GB':>9}  weights of the backbone, on disk and in memory"
    if not estimate.in_flight:
        return
    total = estimate.sample * estimate.in_flight
    yield f"{byte_text(estimate.sample):>9}  sampling: activations of one guided sample (upper bound)"
    yield f"{byte_text(total):>9}  sampling: {estimate.in_flight} samples in flight (trainer.batch_size)"
    fitting = int(SAFE_SHARE * _device_bytes(cfg) / estimate.sample)
    if fitting < estimate.in_flight:
        yield f"too much for this device: trainer.batch_size={max(1, fitting)} would fit"


main = verb(doctor)

if __name__ == "__main__":
    main()
