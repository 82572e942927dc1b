"""The shipped digits backbone: small, whole, and a prior over digits; the record of what its training left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.weights import find_source
from nd.config.application import compose
from nd.data.digits69 import read_digits69
from nd.files import read_json
from nd.generate.sampler import GuidedSampler
from nd.generate.trajectories import noise_for

WEIGHTS = Path(__file__).parents[1] / "nd" / "weights" / "digits"


@pytest.fixture(scope="module")
def digits_backbone() -> Backbone:
    return load_backbone(compose(["backbone=digits"]).backbone)


def strokes() -> NDArray[np.uint8]:
    """Two drawn images (2, 28, 28, 3): a ring and a leaning bar, with soft edges."""
    rows, columns = np.indices((28, 28)) - 13.5
    ring = np.abs(np.hypot(rows, columns * 1.3) - 7)
    bar = np.where(np.abs(rows) < 9, np.abs(columns + 0.3 * rows), 9)
    ink = np.clip(2.2 - np.stack([ring, bar]), 0, 1) * 255
    return np.repeat(ink.round().astype(np.uint8)[..., None], 3, axis=3)


def test_is_small_and_read_from_the_package() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) < 4_000_000
    assert find_source("package://digits").part("vae") == WEIGHTS / "vae"


def test_record_says_that_no_near_twin_of_a_stimulus_was_seen() -> None:
    record = read_json(WEIGHTS / "quality.json")
    left_out = record["left_out"]
    assert left_out["left_out"] > left_out["identical"] > 0
    assert left_out["nearest_kept_grey"] >= left_out["grey_threshold"]
    assert left_out["nearest_kept_binary"] >= left_out["binary_threshold"]


def test_thresholds_are_the_distance_between_different_stimuli(digits69_file: Path) -> None:
    stimuli = read_digits69(digits69_file).images[..., 0] / 255.0
    pairs = np.square(stimuli[:, None] - stimuli[None]).mean((2, 3)) ** 0.5 + 9 * np.eye(100)
    # Without shifts distances are larger; with them the smallest is 0.127.
    assert read_json(WEIGHTS / "quality.json")["left_out"]["grey_threshold"] <= pairs.min()


def test_autoencoder_rebuilds_strokes(digits_backbone: Backbone) -> None:
    images = strokes()
    with torch.no_grad():
        z = digits_backbone.encode_images(images)
        rebuilt = digits_backbone.decode(z).permute(0, 2, 3, 1).numpy()
    assert z.shape == (2, 4, 7, 7)
    assert -10 * np.log10(np.square(rebuilt - images / 255.0).mean()) > 20


def test_captions_decide_the_digit(digits_backbone: Backbone) -> None:
    """Generated zeros have a hole where generated ones have ink, without any image to start from."""
    cfg = compose(["experiment=digits69", "guidance=none", "method.steps=8", "method.strength=1", "method.cfg_scale=3"])
    sampler = GuidedSampler(digits_backbone, cfg)
    with torch.no_grad():
        c = digits_backbone.encode_text(["a handwritten zero", "a handwritten one"])
    (sampled,) = sampler.sample(torch.zeros(2, 4, 7, 7), c, None, noise_for(3, [0, 1], 6, (4, 7, 7)))
    pictures = sampled.images
    assert pictures.shape == (2, 6, 3, 28, 28)
    zeros, ones = pictures.mean(2).numpy()
    middle = np.s_[..., 11:17, 12:16]  # ink of a one, hole of a zero
    assert zeros[middle].mean() < 0.5 * ones[middle].mean()
