"""`nd roi`: what a method decodes from each ROI, and which voxels its decoders use.

Writes two HTML pages, each with a .h5 file, into paths.results. roi-*: images (K, R, H, W, 3) uint8 of patterns that
are one in an ROI's voxels and zero elsewhere, roi (K,), and by target how much each ROI changes it. voxels-*: by target
and layer of g how much each voxel is used (`nd.mappers.voxel_patterns`), its mean over each ROI, and how alike that is
in other subjects of data.subjects that the method is trained on. The method's mappers must be trained. All ROIs start
from the same noise. Of a split with several folds the first one's mappers are used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import derive, verb
from nd.errors import UserError

if TYPE_CHECKING:
    from nd.data.subject import Subject
    from nd.mappers.base import Mapper
    from nd.mappers.statistics import TargetStatistics
    from nd.tables.roi_page import VoxelUse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoder:
    """How one target is decoded: its mapper, whose voxels, the target's shape, and its statistics over training images.

    Attributes:
        groups: (label, first column, end column) of the target's parts.
    """

    mapper: Mapper
    subject: Subject
    shape: tuple[int, ...]
    training: TargetStatistics
    groups: Sequence[tuple[str, int, int]]


def roi(cfg: Config) -> Path:
    """Make the images and both pages; returns the first."""
    from nd.data.prepared import split_of
    from nd.runs.folder import command_for
    from nd.tables.roi_page import RoiImages, page_path, write_page, write_voxel_page

    names, decoders = rois_of(cfg), decoders_of(cfg)
    lengths, features = decode(cfg, names, decoders)
    images = generate(cfg, features, int(split_of(cfg).folds[0].test[0]))
    shown = RoiImages(names, counts(cfg, names), images, lengths)
    path = page_path(cfg, names)
    write_page(shown, path, cfg, command_for(cfg, "roi"))
    second = path.with_name(path.name.replace("roi-", "voxels-", 1))
    write_voxel_page(voxel_use(cfg, names, decoders), second, cfg, command_for(cfg, "roi"))
    print(f"wrote images of {len(names)} ROIs at {path}\nwrote which voxels are used at {second}")
    return path


def rois_of(cfg: Config) -> list[str]:
    """Return the ROIs that were asked for, or all that have voxels.

    Raises:
        UserError: a method that reads no voxels.
    """
    from nd.data.prepared import open_subject
    from nd.runs.identity import reads_predictions

    if not reads_predictions(cfg):
        raise UserError(f"method={cfg.method.name} features={cfg.features} decodes nothing from voxels; nd roi cannot.")
    return cfg.rois or [name for name, mask in open_subject(cfg).rois.items() if mask.any()]


def decoders_of(cfg: Config) -> dict[str, Decoder]:
    """Return the decoders of the targets that a method's generator wants. Raises UserError where one is not trained."""
    from nd.data.prepared import open_subject, split_of
    from nd.machine import pick_device
    from nd.mappers.checkpoint import load, saved_path
    from nd.mappers.statistics import TargetStatistics
    from nd.predict import trained
    from nd.runs.identity import generator_of
    from nd.targets.components import column_groups
    from nd.targets.store import TargetStore, store_path

    split, device, found = split_of(cfg), pick_device(cfg.trainer.accelerator), dict[str, Decoder]()
    for target in generator_of(cfg).wants(cfg):
        own = cfg.with_target(target)
        subject, (folder, origins) = open_subject(own), trained(own, split)
        mapper = load(saved_path(folder.path, origins[0]), origins[0], folder.command, device)
        store = TargetStore(store_path(cfg, target), allowed_ids=split.folds[0].seen)
        training, groups = TargetStatistics.fit(store, split.folds[0].seen), column_groups(own.target, store.shape)
        found[target] = Decoder(mapper, subject, store.shape, training, groups)
    return found


def decode(
    cfg: Config, names: Sequence[str], decoders: Mapping[str, Decoder]
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return how much each ROI changes each target (K,), and the targets (K, *shape).

    Raises:
        UserError: an ROI that is unknown, or of which no mapper reads a voxel.
    """
    from nd.mappers.voxel_patterns import contributions, decoded

    lengths, features = dict[str, Any](), dict[str, NDArray[np.float32]]()
    for target, one in decoders.items():
        found = contributions(one.mapper, np.stack([one.subject.inside(name) for name in names]))
        lengths[target] = found.lengths
        features[target] = decoded(target, one.shape, found, one.training).reshape(-1, *one.shape)
    _check_read(cfg, names, lengths)
    return lengths, features


# ---- which voxels are used ------------------------------------------------------------------------------------------


def voxel_use(cfg: Config, names: Sequence[str], decoders: Mapping[str, Decoder]) -> VoxelUse:
    """Return which voxels the decoders use, and how alike that is in other subjects that the method is trained on."""
    from nd.mappers.voxel_patterns import cosine, profile
    from nd.metrics.intervals import bootstrap_interval
    from nd.tables.roi_page import VoxelUse

    maps, bars = dict[str, NDArray[np.float32]](), dict[str, list[Any]]()
    profiles: dict[str, dict[str, NDArray[np.float32]]] = {cfg.subject.name: {}}
    for label, shares_V, masks in maps_of(decoders, names):
        maps[label], profiles[cfg.subject.name][label] = shares_V, profile(shares_V, masks)
        bars[label] = [bootstrap_interval(shares_V[mask]) if mask.any() else None for mask in masks]
    for other in (name for name in cfg.data.subjects if name != cfg.subject.name):
        try:
            found = decoders_of(derive(cfg, f"subject.name={other}"))
        except UserError:  # not prepared, or not trained
            log.info("%s is left out of the comparison of subjects: the method is not trained on it", other)
            continue
        profiles[other] = {label: profile(shares_V, masks) for label, shares_V, masks in maps_of(found, names)}
    pairs = combinations(profiles, 2)
    cosines = {(a, b): {label: cosine(profiles[a][label], profiles[b][label]) for label in maps} for a, b in pairs}
    return VoxelUse(names, maps, bars, cosines)


def maps_of(
    decoders: Mapping[str, Decoder], names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield label, shares (V,) and the ROIs' masks (K, V) of every target, or of each part where it has several."""
    from nd.mappers.voxel_patterns import shares, voxel_maps

    for target, one in decoders.items():
        masks = np.stack([one.subject.inside_if_known(name) for name in names])
        found = voxel_maps(one.mapper, masks.shape[1], one.training.std, one.groups)
        for (label, *_), map_V in zip(one.groups, found, strict=True):
            yield (target if len(one.groups) == 1 else f"{target} {label}"), shares(map_V), masks


# ---- images ---------------------------------------------------------------------------------------------------------


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
