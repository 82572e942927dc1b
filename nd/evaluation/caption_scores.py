"""Scores of a run's decoded captions against the captions of its stimuli, and by what they were judged.

N images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.generate.parts import captions_of
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.metrics.captions import lacking, wordnet_version
from nd.metrics.measures import CLIP_TEXT, SENTENCES, WORDNET, Measure, caption_measures
from nd.metrics.text_encoders import Encode, SentenceModel, clip_encoder, cosines, sentence_folder
from nd.runs.folder import found

Judged = Callable[[list[str], list[list[str]]], NDArray[np.float64]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores (N,) by column, and what judged them: a version or the hash of weights, by judge."""

    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)


def caption_scores(cfg: Config, image_ids: NDArray[np.int32], device: torch.device) -> CaptionScores:
    """Compare the captions that a run decoded with those of the stimuli, where the protocol asks for it.

    Args:
        cfg: of the run; its protocol.
        image_ids: (N,).
        device: where networks run.

    Raises:
        UserError: packages, WordNet, models or captions that are missing.
    """
    named = caption_measures(cfg.protocol)
    if not named:
        return CaptionScores()
    if problems := list(lacking(cfg)):
        raise UserError("\n".join(problems))
    decoded = decoded_captions(found(cfg, "reconstruct").path / "images.h5", image_ids)
    said = [own[: cfg.protocol.caption_references or None] for own in true_captions(cfg, image_ids)]
    scores: dict[str, NDArray[np.float64]] = {}
    judges: dict[str, str] = {}
    for name, measure in named.items():
        judged, by = _judge(measure, cfg, device)
        scores[name] = judged(decoded, said)
        judges |= by
    return CaptionScores(scores, judges)


def _judge(measure: Measure, cfg: Config, device: torch.device) -> tuple[Judged, dict[str, str]]:
    """What scores texts, and its version or weights."""
    judge = measure.view.network
    if judge == CLIP_TEXT:
        encode, digits = clip_encoder(cfg, device)
        return _nearness(encode), {judge: digits}
    if judge == SENTENCES:
        model = SentenceModel(sentence_folder(cfg.protocol.sentence_model), device)
        return _nearness(model), {judge: model.weights_hash}
    return measure.function, {judge: wordnet_version()} if judge == WORDNET else {}


def _nearness(encode: Encode) -> Judged:
    return lambda decoded, references: cosines(encode, decoded, references)


def decoded_captions(path: Path, image_ids: NDArray[np.int32]) -> list[str]:
    """Return the decoded captions of images.

    Args:
        path: images.h5 of a reconstruct run.
        image_ids: (N,).

    Raises:
        UserError: it holds none, or not of all of the images.
    """
    with open_h5(path) as file:
        said = dict(zip(read_whole(file, "image_id", "iu").tolist(), captions_of(file), strict=False))
    texts = [said.get(int(i), "") for i in image_ids]
    if not all(texts):
        raise UserError(
            f"{path} holds no decoded caption of {texts.count('')} of {len(texts)} images: it was begun before captions"
            " were kept. Remove its folder and run `nd reconstruct` again, or leave the caption_* measures out of"
            " protocol.measures."
        )
    return texts


def true_captions(cfg: Config, image_ids: NDArray[np.int32]) -> list[list[str]]:
    """Return the captions of the stimuli, one or more of each. UserError: an image has none."""
    try:
        return Stimuli(stimuli_path(cfg)).captions(image_ids)
    except UserError as error:
        raise UserError(f"the caption_* measures of protocol.measures need captions of the stimuli. {error}") from None
