"""`nd reconstruct`: decoded (or, with features=oracle, true) targets to pictures.

Writes images.h5 into the run folder: images (N, R, H, W, 3) uint8 RGB, image_id (N,) int32 in rising order, and the
attributes oracle, seed, part, generator, control and simulated.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nd.config import verb
from nd.lightning import is_rank_zero
from nd.results.folder import RunFolder, found
from nd.schema import Config

if TYPE_CHECKING:
    from nd.generate.features import FeatureSource

log = logging.getLogger(__name__)


def reconstruct(cfg: Config) -> Path:
    """Make the pictures of one part of a data set; returns the run folder. Pictures that are finished are kept."""
    from nd.generate.registry import generator_entry
    from nd.generate.training import part_ids

    targets = generator_entry(cfg.method.generator).wants(cfg)
    source, inputs = feature_source(cfg, targets)
    folder = RunFolder.open(cfg, "reconstruct")
    if folder.is_done(inputs):
        log.info("nothing to do: %s is finished", folder.path)
        return folder.path
    image_ids = part_ids(cfg)[: cfg.debug.limit_images or None]
    for target in targets:
        source.rows(target, image_ids[:1])  # a missing target should be known before anything is written
    with folder.writing(cfg, inputs):
        make_images(cfg, source, targets, image_ids, folder.path)
    return folder.path


def feature_source(cfg: Config, targets: Sequence[str]) -> tuple[FeatureSource, dict[str, str]]:
    """Return where a generator reads its targets and the fingerprints of what lies there, for the manifest."""
    from nd.generate.features import PredictedFeatures, TrueFeatures
    from nd.targets.store import TargetStore, store_path

    if cfg.features == "oracle" or not targets:
        stores = {name: store_path(cfg, name) for name in targets}
        return TrueFeatures(stores), {f"target {name}": TargetStore(path).fingerprint for name, path in stores.items()}
    run = found(cfg, "predict")
    return PredictedFeatures(run.path / "predictions.h5"), {"predictions": run.fingerprint}


def make_images(cfg: Config, source: FeatureSource, targets: Sequence[str], image_ids: list[int], path: Path) -> None:
    """Generate what is missing, on all devices, and merge it to ``path``/images.h5."""
    from nd.generate.module import Work, run_work
    from nd.generate.parts import Parts, partition
    from nd.generate.registry import generator_entry

    parts, begun = Parts(path / "parts"), time.monotonic()
    left = parts.unfinished(partition(image_ids, max(1, cfg.trainer.batch_size // cfg.method.repeats)))
    n_left = sum(len(batch) for batch in left)
    if n_left < len(image_ids):
        log.info("%d of %d images are there already", len(image_ids) - n_left, len(image_ids))
    if left:
        build = functools.partial(generator_entry(cfg.method.generator).build, cfg)
        run_work(build, Work(left, source, targets), parts, cfg.trainer, len(image_ids))
    if is_rank_zero():
        parts.merge(image_ids, path / "images.h5", attributes(cfg, targets))
        parts.remove()
        rate = n_left / (time.monotonic() - begun)
        print(f"wrote {len(image_ids)} images at {path / 'images.h5'} ({rate:.2f} images/s)")


def attributes(cfg: Config, targets: Sequence[str]) -> dict[str, str | int | bool]:
    """Return what a reader of images.h5 must know without its run folder."""
    return {
        "oracle": cfg.features == "oracle" and bool(targets),
        "seed": cfg.seed,
        "part": cfg.part,
        "generator": cfg.method.generator,
        "control": cfg.control,
        "simulated": cfg.data.simulated,
    }


main = verb(reconstruct)

if __name__ == "__main__":
    main()
