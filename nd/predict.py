"""`nd predict`: the method's targets, decoded from a subject's voxels, for the images of one part of the split.

Writes predictions.h5 into the run folder: one dataset (n, *shape) float32 per target, `image_id` (n,) and `fold` (n,)
int32; with mapper.keep below 1 also `kept/<target>` (folds, numbers of the target) bool, the numbers that are decoded
and not set to 0; and digests of them all. Every image is predicted by the mapper of a fold that has not seen it; no
target is read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import verb

if TYPE_CHECKING:
    from nd.config import MapperConfig
    from nd.data.prepared import Subject
    from nd.data.splits import Split
    from nd.mappers.checkpoint import Origin
    from nd.runs.folder import RunFolder

AGAIN = "Remove its folder and run `nd predict` again."
Trained = tuple["RunFolder", list["Origin"]]


def predict(cfg: Config) -> Path:
    """Predict every target of `cfg.method.targets`; returns the run folder."""
    from nd.data.prepared import split_of
    from nd.runs.folder import RunFolder

    split = split_of(cfg)
    mappers = {name: trained(cfg.with_target(name), split) for name in cfg.method.targets}
    folder, inputs = RunFolder.open(cfg, "predict"), {f"train {name}": m[0].fingerprint for name, m in mappers.items()}
    if folder.is_done(inputs):
        print(f"{folder.path} is finished; nothing to do")
        return folder.path
    with folder.writing(cfg, inputs) as path:
        n_images = write_predictions(path / "predictions.h5", cfg, split, mappers)
    what = "with shuffled voxels " if cfg.control == "shuffled_voxels" else ""
    print(f"wrote {', '.join(mappers)} of {n_images} {cfg.part} images {what}at {folder.path / 'predictions.h5'}")
    return folder.path


def trained(cfg: Config, split: Split) -> Trained:
    """Return the finished train run of one target, made sure to fit this subject's voxels and the present features."""
    from nd.data.prepared import open_subject
    from nd.mappers.folds import check_folds, origin_of
    from nd.runs.folder import RunFolder, found
    from nd.targets.store import wanted_fingerprint

    subject, fingerprint = open_subject(cfg), wanted_fingerprint(cfg, cfg.target.name)
    origins = [origin_of(cfg, subject, split, k, fingerprint) for k in range(len(split.folds))]
    folder = RunFolder.open(cfg, "train")
    # Before `found`, whose complaint about changed inputs would not say that the number of voxels differs.
    check_folds(folder.path, origins, folder.command)
    run = found(cfg, "train")
    run.outputs_below("checkpoint")  # compared with what the training left
    return run, origins


def write_predictions(path: Path, cfg: Config, split: Split, mappers: dict[str, Trained]) -> int:
    """Predict fold by fold and target by target, and write the file atomically; returns the number of rows."""
    import h5py

    from nd.digests import digest_rows
    from nd.files import atomic_path
    from nd.machine import pick_device
    from nd.mappers.folds import kept_columns, predict_fold
    from nd.sealed import seal

    ids = [fold.test if cfg.part == "test" else fold.val for fold in split.folds]
    voxels, rows, device = Responses(cfg, ids), {}, pick_device(cfg.trainer.accelerator)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["image_id"] = np.concatenate(ids).astype(np.int32)
        file["fold"] = np.repeat(np.arange(len(ids), dtype=np.int32), [len(fold) for fold in ids])
        for name, (folder, origins) in mappers.items():
            own, command, one = folder.path, folder.command, cfg.decoding(name)
            rescale, own_scaling = later(one.mapper), cfg.data.test_scaling == "own"
            parts = [
                predict_fold(
                    own,
                    o,
                    voxels.of(one.roi, o.fold),
                    command,
                    ids[o.fold],
                    own_scaling,
                    rescale,
                    one.mapper.spread,
                    device,
                )
                for o in origins
            ]
            predicted = np.concatenate(parts)
            file[name], rows[name] = predicted, digest_rows(predicted)
            if one.mapper.keeps_some:
                file[f"kept/{name}"] = np.stack([kept_columns(own, o, command) for o in origins])
        file.attrs.update({"part": cfg.part, "control": cfg.control, "subject": cfg.subject.name})
        seal(file, AGAIN, rows)
    return sum(len(fold) for fold in ids)


def later(mapper: MapperConfig) -> str:
    """Return the rescaling that is left for finished predictions: mappers in closed form do `train` themselves."""
    from nd.config.components import component

    done = mapper.rescale == "train" and not component("mapper", mapper.name).trained
    return "none" if done else mapper.rescale


class Responses:
    """Mean responses (n, V) to the images of each fold, through one ROI after another; the last ROI's are kept."""

    def __init__(self, cfg: Config, ids: list[NDArray[Any]]) -> None:
        """Take the image ids of each fold."""
        self.cfg, self.ids = cfg, ids
        self._roi: str | None = None
        self._voxels: list[NDArray[np.float32]] = []

    def of(self, roi: str, fold: int) -> NDArray[np.float32]:
        """Return the responses of one ROI to one fold's images."""
        if roi != self._roi:
            from nd.data.prepared import open_subject

            subject = open_subject(replace(self.cfg, subject=replace(self.cfg.subject, roi=roi)))
            self._voxels = [responses(self.cfg, subject, k, ids) for k, ids in enumerate(self.ids)]
            self._roi = roi
        return self._voxels[fold]


def responses(cfg: Config, subject: Subject, fold: int, image_ids: NDArray[Any]) -> NDArray[np.float32]:
    """Mean responses (n, V) to some images; the control gives each image those to another one of its fold."""
    from nd.data.prepared import mean_betas
    from nd.mappers.folds import derangement

    voxels = mean_betas(subject, image_ids)
    return voxels[derangement(cfg.seed, fold, len(voxels))] if cfg.control == "shuffled_voxels" else voxels


main = verb(predict)

if __name__ == "__main__":
    main()
