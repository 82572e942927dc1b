"""`nd roi`: what a method decodes from each ROI: images of patterns that are one in its voxels and zero elsewhere.

Writes an HTML page and a .h5 file into paths.results: images (K, R, H, W, 3) uint8, roi (K,), and by target how much
each ROI changes it. The method's mappers must be trained. All ROIs start from the same noise. Of a split with several
folds the first one's mappers are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import verb
from nd.errors import UserError


def roi(cfg: Config) -> Path:
    """Make the images and the page; returns the page."""
    from nd.data.prepared import split_of
    from nd.runs.folder import command_for
    from nd.tables.roi_page import RoiImages, page_path, write_page

    names, lengths, features = decode(cfg)
    images = generate(cfg, features, int(split_of(cfg).folds[0].test[0]))
    shown = RoiImages(names, counts(cfg, names), images, lengths)
    path = page_path(cfg, names)
    write_page(shown, path, cfg, command_for(cfg, "roi"))
    print(f"wrote images of {len(names)} ROIs at {path}")
    return path


def decode(cfg: Config) -> tuple[list[str], dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the ROIs (K), how much each changes each target (K,), and the targets (K, *shape).

    Raises:
        UserError: a method that reads no voxels; an ROI that is unknown, or of which no mapper reads a voxel; a mapper
            that is not trained yet.
    """
    from nd.data.prepared import open_subject, split_of
    from nd.mappers.checkpoint import load, saved_path
    from nd.mappers.roi_patterns import contributions, decoded
    from nd.mappers.statistics import TargetStatistics
    from nd.predict import trained
    from nd.runs.identity import generator_of, reads_predictions
    from nd.targets.store import TargetStore, store_path

    if not reads_predictions(cfg):
        raise UserError(f"method={cfg.method.name} features={cfg.features} decodes nothing from voxels; nd roi cannot.")
    split, names = split_of(cfg), cfg.rois or [n for n, m in open_subject(cfg).rois.items() if m.any()]
    lengths, features = dict[str, Any](), dict[str, NDArray[np.float32]]()
    for target in generator_of(cfg).wants(cfg):
        own = cfg.with_target(target)
        subject, (folder, origins) = open_subject(own), trained(own, split)
        mapper = load(saved_path(folder.path, origins[0]), origins[0], folder.command)
        found = contributions(mapper, np.stack([subject.inside(name) for name in names]))
        store = TargetStore(store_path(cfg, target), allowed_ids=split.folds[0].seen)
        training = TargetStatistics.fit(store, split.folds[0].seen)
        lengths[target] = found.lengths
        features[target] = decoded(target, store.shape, found, training).reshape(-1, *store.shape)
    _check_read(cfg, names, lengths)
    return names, lengths, features


def _check_read(cfg: Config, names: Sequence[str], lengths: dict[str, Any]) -> None:
    unread = [name for k, name in enumerate(names) if not any(found[k] > 0 for found in lengths.values())]
    if unread and cfg.rois:
        read = ", ".join(sorted({cfg.decoding(target).roi for target in lengths}))
        raise UserError(
            f"rois: of {', '.join(unread)} no mapper of method={cfg.method.name} reads a voxel (they read {read})."
        )


def counts(cfg: Config, names: Sequence[str]) -> list[int]:
    """Return the voxels of each ROI."""
    from nd.data.prepared import open_subject

    subject = open_subject(cfg)
    return [int(subject.mask_of(name).sum()) for name in names]


def generate(cfg: Config, features: dict[str, NDArray[np.float32]], image_id: int) -> NDArray[np.uint8]:
    """Return the images (K, R, H, W, 3) of targets (K, *shape), all with the noise of one image."""
    import torch

    from nd.generate.base import PlannedGenerator
    from nd.machine import pick_device
    from nd.runs.identity import generator_of

    device, n = pick_device(cfg.trainer.accelerator), len(next(iter(features.values())))
    generator = generator_of(cfg).build([cfg], device)
    step = max(1, cfg.trainer.batch_size // cfg.method.n_repeats)
    batches = [range(start, min(start + step, n)) for start in range(0, n, step)]
    if isinstance(generator, PlannedGenerator):
        generator.use(generator.plan_for([len(batch) for batch in batches]))
    images = []
    for batch in batches:
        part = {name: torch.from_numpy(values[batch]).to(device) for name, values in features.items()}
        (made,) = generator([image_id] * len(batch), part)
        if made.failed:
            raise UserError(f"no image could be made: {next(iter(made.failed.values()))}.")
        images.append(made.images)
    return np.concatenate(images)


main = verb(roi)

if __name__ == "__main__":
    main()
