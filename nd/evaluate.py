"""`nd evaluate`: images to scores under a named protocol; the only verb that compares with the test stimuli.

Writes into the run folder ``scores.json`` (mean, interval, chance level of every metric, and what they are comparable
with) and ``per_image.csv`` (one row per image: ``image_id`` and every metric, repeats averaged; an empty cell is a
score that does not exist, such as identification within a class of one). ``scores.json`` also holds what the decoded
targets alone say (``nd.evaluation.decoded_targets``), where predictions and true targets are there, the noise ceiling
of the voxels, and brain correlation by ROI where ``protocol.brain`` names a layer (``nd.evaluation.brain_scores``).

With ``images=<folder or file>`` reconstructions made elsewhere are scored instead of those of a reconstruct run: a
folder of ``<image id>.png`` or ``<image id>_<repeat>.png``, or an .h5, .npy or .pt of all of them
(``nd.evaluation.external_images`` says which forms). Data, subject, part and protocol are chosen as ever; nothing else
is read. The run folder belongs to the content of the images, wherever they lie.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import verb
from nd.config.sweeps import Point
from nd.data.prepared import Stimuli, same_across, split_of, stimuli_path
from nd.data.same_images import named
from nd.evaluation.brain_scores import brain_lines, brain_scores, voxel_ceiling
from nd.evaluation.caption_scores import caption_scores
from nd.evaluation.decoded_targets import decoded_scores
from nd.evaluation.external_images import doubted_order, read_external
from nd.evaluation.reconstructions import Stored, check_ids, read_images
from nd.evaluation.scores import one_metric, per_image_csv, score_table
from nd.evaluation.summary import read_summary
from nd.evaluation.well_decoded import well_decoded
from nd.files import sha256_json, write_json, write_text
from nd.generate.inputs import part_ids
from nd.launch import is_rank_zero
from nd.machine import pick_device
from nd.metrics.measures import DECODED
from nd.metrics.protocol import check_number, describe, weights_found
from nd.metrics.repeats import AGGREGATIONS
from nd.metrics.retrieval import retrieval_lines
from nd.metrics.score import PerImage, score_images
from nd.runs.folder import RunFolder, found
from nd.runs.identity import reads_predictions
from nd.tables.loggers import announce_sweep, check_logger, log_scores

log = logging.getLogger(__name__)


def evaluate(cfg: Config) -> Path:
    """Score the images given or those of the matching reconstruct run; returns the run folder."""
    check_logger(cfg)
    external = read_external(cfg) if cfg.images else None
    cfg = replace(cfg, images_hash=external.hash) if external else cfg
    folder = RunFolder.open(cfg, "evaluate")
    if not is_rank_zero(cfg.trainer):  # one process scores; the others were only needed to make the images
        return folder.path
    inputs = {"images": external.hash if external else found(cfg, "reconstruct").fingerprint}
    if folder.is_done(inputs):
        print("\n".join(lines_of(read_summary(folder.path))))
        print(f"{folder.path} is finished; nothing to do")
        log_scores(cfg, folder, (external.images, external.image_ids) if external else None)
        return folder.path
    images, image_ids, facts = (external.images, external.image_ids, external.facts) if external else reconstructed(cfg)
    selection: dict[str, Any] = {}
    if cfg.protocol.min_decoding:
        check_number(cfg.protocol, len(image_ids))
        chosen = well_decoded(cfg, image_ids)
        images, image_ids, selection = images[chosen.rows], image_ids[chosen.rows], chosen.summary
    device = pick_device(cfg.trainer.accelerator)
    captions = caption_scores(cfg, image_ids, device)  # first: it takes moments, and may lack something
    scored = compare(cfg, images, image_ids, selected=bool(selection))
    of_brain, by_roi = brain_scores(cfg, scored.kept, image_ids, device)
    every, end = scored.scores | of_brain | captions.scores, DECODED if selection else ""
    scored = replace(scored, scores={name + end: values for name, values in every.items()})
    with folder.writing(cfg, inputs):
        write_text(folder.path / "per_image.csv", per_image_csv(image_ids, scored.scores))
        summary = summarise(cfg, scored, image_ids, facts)
        summary["weights"] |= captions.judges
        decoded = decoded_scores(cfg, image_ids)
        summary |= {"retrieval": decoded.retrieval, "brain": by_roi, "voxels": voxel_ceiling(cfg)}
        summary |= {"selection": selection} if selection else {}
        summary |= {"decoded": {"run": decoded.run, "diversity": decoded.diversity}, "same_images": same_images(cfg)}
        write_json(folder.path / "scores.json", summary)
    log_scores(cfg, folder, (images, image_ids))
    print("\n".join(lines_of(summary)))
    if external and (doubt := doubted_order(cfg, external, Stimuli(stimuli_path(cfg)).images(image_ids))):
        log.warning("%s", doubt)
    print(f"wrote scores of {len(image_ids)} images at {folder.path / 'scores.json'}")
    return folder.path


def lines_of(summary: dict[str, Any]) -> list[str]:
    """What is printed of ``scores.json``."""
    retrieved, of_brain = summary.get("retrieval", {}), summary.get("brain", {})
    return [score_table(summary), *retrieval_lines(retrieved), *brain_lines(of_brain)]


def reconstructed(cfg: Config) -> tuple[Stored | NDArray[np.uint8], NDArray[np.int32], dict[str, Any]]:
    """Images (N, R, H, W, 3), ids (N,) and attributes of the matching reconstruct run, made sure to be all."""
    path = found(cfg, "reconstruct").output("images.h5")
    images, image_ids, facts = read_images(path)
    check_ids(image_ids, part_ids(cfg)[: cfg.debug.limit_images or None], path)
    return images, image_ids, facts


def compare(
    cfg: Config, images: Stored | NDArray[Any], image_ids: NDArray[np.int32], *, selected: bool = False
) -> PerImage:
    """Score images against the stimuli of the same ids, whose features are kept under ``paths.cache``.

    Args:
        cfg: its protocol.
        images: (N, R, H, W, 3) uint8.
        image_ids: (N,).
        selected: they are a selection of the images that the protocol is defined on.
    """
    protocol = replace(cfg.protocol, n_images=0) if selected else cfg.protocol
    stimuli = Stimuli(stimuli_path(cfg))
    shown = stimuli.images(image_ids)
    labels = stimuli.labels(image_ids) if cfg.protocol.label_identification else None
    kept = Path(cfg.paths.cache) / "stimulus_features"
    return score_images(images, shown, protocol, labels, kept, pick_device(cfg.trainer.accelerator))


def same_images(cfg: Config) -> dict[str, str]:
    """Say which training images are ("equal") or nearly are ("near") test images; nothing where none is."""
    found = same_across(cfg)
    return {kind: named(pairs) for kind, pairs in (("equal", found.equal), ("near", found.near)) if pairs}


def summarise(cfg: Config, scored: PerImage, image_ids: NDArray[np.int32], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything ``scores.json`` holds: the metrics with their intervals, and what they are comparable with."""
    return {
        "metrics": {name: one_metric(name, values, cfg.protocol.n_boot) for name, values in scored.scores.items()},
        "protocol": describe(cfg.protocol),
        "weights": weights_found(cfg.protocol),
        "aggregation": AGGREGATIONS[cfg.protocol.aggregation],
        "n_images": len(image_ids),
        "n_repeats": scored.n_repeats,
        "n_constant_images": scored.n_constant,
        "test_set": sha256_json([int(i) for i in image_ids]),
        "split": {"name": cfg.data.split, "hash": split_of(cfg).hash, "part": cfg.part},
        "subject": cfg.subject.name,
        "simulated": cfg.data.simulated,
        **origin(cfg, facts),
    }


def origin(cfg: Config, facts: dict[str, Any]) -> dict[str, Any]:
    """How the images came to be; of those made elsewhere no more is known than their file says."""
    if cfg.images_hash:
        made = {"generator": "given", "images_hash": cfg.images_hash}
        marks = {name: bool(facts.get(name, False)) for name in ("oracle", "transductive")}
        return made | marks | {"control": str(facts.get("control", "none"))}
    return {
        "generator": cfg.method.generator,
        "oracle": bool(facts.get("oracle", cfg.features == "oracle")),
        "transductive": cfg.transductive and reads_predictions(cfg),
        "control": str(facts.get("control", cfg.control)),
    }


def name_group(points: list[Point]) -> str:
    """Return the logger's group of a sweep; empty where nothing is logged."""
    return announce_sweep(points[0].cfg, [("evaluate", point.cfg) for point in points])


main = verb(evaluate, group=name_group)

if __name__ == "__main__":
    main()
