"""`nd train`: fit the mapper of one subject and target, one per fold of the split.

Writes checkpoint/fold-<k>.safetensors and .json, and scores.json, into the run folder. Sees training and validation
images alone; folds that are finished are kept when an interrupted run goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nd.config import verb
from nd.schema import Config


def train(cfg: Config) -> Path:
    """Fit every fold of `cfg.data.split`; returns the run folder."""
    from nd.backbone.loading import pick_device
    from nd.data.prepared import open_subject, split_of
    from nd.files import write_json
    from nd.mappers.folds import fit_fold
    from nd.results.folder import RunFolder
    from nd.targets.store import TargetStore, store_path

    subject, split = open_subject(cfg), split_of(cfg)
    store, folder = store_path(cfg), RunFolder.open(cfg, "train")
    inputs = {f"target {cfg.target.name}": TargetStore(store).fingerprint}
    if folder.is_done(inputs):
        print(f"{folder.path} is finished; nothing to do")
        return folder.path
    device = pick_device(cfg.trainer.accelerator)
    with folder.writing(cfg, inputs) as path:
        folds = [fit_fold(cfg, subject, split, k, store, path, device) for k in range(len(split.folds))]
        scores = mean_scores(folds)
        write_json(path / "scores.json", {"images": held_out(cfg), "mean": scores, "folds": folds})
    print(f"wrote {len(folds)} mapper{'s' * (len(folds) > 1)} at {path} ({held_out(cfg)}: {described(scores)})")
    return path


def held_out(cfg: Config) -> str:
    """The images that the penalty was chosen on, and that the scores are of; never the test images."""
    return f"{cfg.mapper.folds} folds of the training images" if cfg.mapper.folds else "validation images"


def mean_scores(folds: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of the held-out images averaged over the folds of the split."""
    return {name: sum(fold["scores"][name] for fold in folds) / len(folds) for name in folds[0]["scores"]}


def described(scores: dict[str, float]) -> str:
    """Scores for the closing line."""
    return f"correlation {scores['correlation']:.3f}, two-way identification {scores['identification']:.1%}"


main = verb(train)

if __name__ == "__main__":
    main()
