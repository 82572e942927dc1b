"""`nd extract`: the features of one target for all stimuli, into the store that every method shares.

Writes `<paths.cache>/targets/<data>-<target>-<fingerprint>.h5` and its record beside it as JSON. An interrupted
extraction goes on from its last finished batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nd.config import verb
from nd.schema import Config


def extract(cfg: Config) -> Path:
    """Compute what is missing of `cfg.target.name`; returns the store's path."""
    from nd.backbone.loading import Backbone, pick_device
    from nd.data.prepared import Stimuli, stimuli_path
    from nd.targets.fill import extract_to_store
    from nd.targets.registry import build_extractor
    from nd.targets.store import TargetStore, store_path

    begun, stimuli, path = time.monotonic(), Stimuli(stimuli_path(cfg)), store_path(cfg)
    backbone = Backbone(cfg.backbone, pick_device(cfg.trainer.accelerator), dtype="float32")
    computed = extract_to_store(
        build_extractor(cfg.target.name, cfg, backbone),
        stimuli,
        path,
        dtype=cfg.target.dtype,
        batch_size=cfg.trainer.batch_size,
        progress=cfg.trainer.progress,
    )
    if computed:
        seconds = time.monotonic() - begun
        record(cfg, path, computed, seconds)
        shape = "x".join(str(side) for side in TargetStore(path).shape)
        print(
            f"wrote target {cfg.target.name} ({shape}) of {len(stimuli.image_id)} images at {path} in {seconds:.0f} s"
        )
    else:
        print(f"target {cfg.target.name} is already extracted at {path}; nothing to do")
    return path


def record(cfg: Config, path: Path, computed: int, seconds: float) -> None:
    """Write beside the store what it was made from, by what and for how long."""
    import json

    from nd.files import open_h5, write_json
    from nd.results.manifest import device, git_state, peak_memory_mb, versions

    with open_h5(path) as handle:
        made_from: dict[str, Any] = json.loads(handle.attrs["details"])
    manifest = {"made_from": made_from, "overrides": cfg.overrides, "git": git_state(), "packages": versions()}
    manifest |= {"device": device(), "peak_memory_mb": peak_memory_mb()}
    write_json(path.with_suffix(".json"), {**manifest, "images_computed": computed, "seconds": round(seconds, 3)})


main = verb(extract)

if __name__ == "__main__":
    main()
