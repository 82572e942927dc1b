"""`nd extract`: the features of one target for all stimuli, into the store that every method shares.

`target=all` extracts every target of the method in one pass over the stimuli. Writes
`<paths.cache>/targets/<data>-<target>-<fingerprint>.h5` and its record beside it as JSON. An interrupted extraction
goes on from its last finished batch. Of a finished store, the features of four fixed images are computed again
wherever packages or machine are not those it was made or last checked with; other values are an error that says what
changed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nd.config import Config
from nd.config.application import verb

if TYPE_CHECKING:
    from nd.backbone.loading import Backbone
    from nd.data.prepared import Stimuli
    from nd.targets.unfinished import Job


def extract(cfg: Config) -> list[Path]:
    """Compute what is missing of `cfg.target.name`, or of all targets of the method; returns the stores' paths."""
    from nd.data.piece_records import check_piece
    from nd.data.prepared import Stimuli, stimuli_path
    from nd.machine import pick_device
    from nd.runs.chain import extracted
    from nd.targets.components import build_extractor
    from nd.targets.store import extraction_backbone, store_path
    from nd.targets.unfinished import Job

    check_piece(stimuli_path(cfg))
    stimuli, own = Stimuli(stimuli_path(cfg)), {name: cfg.decoding(name).target for name in extracted(cfg)}
    paths: list[Path] = []
    for precision in dict.fromkeys(one.precision for one in own.values()):
        backbone = extraction_backbone(cfg, precision, pick_device(cfg.trainer.accelerator))
        names = [name for name, one in own.items() if one.precision == precision]
        jobs = [
            Job(extractor, store_path(cfg, extractor.name), own[extractor.name].dtype, precision)
            for extractor in (build_extractor(name, cfg, backbone) for name in names)
        ]
        paths += fill(cfg, jobs, stimuli, backbone)
    return paths


def fill(cfg: Config, jobs: list[Job], stimuli: Stimuli, backbone: Backbone) -> list[Path]:
    """Compute what is missing of some stores in one pass over the stimuli; returns their paths."""
    from nd.targets.fill import extract_to_stores, images_at_once

    begun = time.monotonic()
    finished = [job for job in jobs if job.path.exists()]
    side = max(stimuli.shape[0], cfg.backbone.image_size)
    batch_size = images_at_once(cfg.trainer.batch_size, side, backbone.device.type)
    computed = extract_to_stores(jobs, stimuli, batch_size=batch_size, progress=cfg.trainer.progress)
    for job in jobs:
        if job in finished:
            check_once(job, stimuli)
            print(f"target {job.extractor.name} is already extracted at {job.path}; nothing to do")
        else:
            report(cfg, job, backbone, computed[job.extractor.name], time.monotonic() - begun)
    return [job.path for job in jobs]


def report(cfg: Config, job: Job, backbone: Backbone, n_images: int, seconds: float) -> None:
    """Write beside a new store what it was made from, by what and for how long, and say where it is."""
    from nd.backbone.weights import PARTS
    from nd.files import write_json
    from nd.h5_values import attribute
    from nd.hdf5 import open_h5
    from nd.machine import peak_memory_mb, versions
    from nd.runs.manifest import git_state

    with open_h5(job.path) as handle:
        made_from: dict[str, Any] = attribute(handle, "details", dict)
        shape = "x".join(str(side) for side in attribute(handle, "shape", list[int]))
    manifest: dict[str, Any] = {
        "made_from": made_from,
        "overrides": cfg.overrides,
        "git": git_state(),
        "packages": versions(),
    }
    manifest["weights"] = {part: backbone.origin_of(part) for part in (*PARTS, "tower") if part in made_from}
    manifest |= {"peak_memory_mb": peak_memory_mb(), "images_computed": n_images, "seconds": round(seconds, 3)}
    write_json(
        job.path.with_suffix(".json"), {**manifest, "device": surroundings()["device"], "checked_with": surroundings()}
    )
    print(f"wrote target {job.extractor.name} ({shape}) of {n_images} images at {job.path} in {seconds:.0f} s")


def surroundings() -> dict[str, Any]:
    """What features may depend on beside weights and settings: package versions, and the machine."""
    from nd.machine import device, versions

    return {"packages": versions(), "device": device()}


def check_once(job: Job, stimuli: Stimuli) -> None:
    """Compare the reference images of a finished store with their features now, once for each surroundings."""
    from nd.files import read_json, write_json
    from nd.targets.fill import check_store

    path = job.path.with_suffix(".json")
    record = read_json(path, again="Remove it: it only says what the features were made by.") if path.exists() else {}
    if record.get("checked_with") == surroundings():
        return
    check_store(job, stimuli)
    write_json(path, record | {"checked_with": surroundings()})


main = verb(extract)

if __name__ == "__main__":
    main()
