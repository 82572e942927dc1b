"""Guidance by true features on Scenes: the images come nearer to what was drawn."""

from __future__ import annotations

import pytest
import torch

from nd.backbone.loading import load_backbone
from nd.backbone.tower import BlockFeatures
from nd.config.application import compose
from nd.generate.sampler import GuidedSampler, point_of
from nd.generate.trajectories import Point, noise_for
from nd.metrics.correlation import pixcorr
from nd.scenes.captions import captions
from nd.scenes.draw import draw_scenes
from nd.scenes.scene import sample_scene

N = 16  # as many as go through the networks at once


@pytest.mark.slow
def test_guided_by_true_features_beats_unguided_in_nearly_all_images() -> None:
    cfg = compose(["experiment=scenes", "method.repeats=1"])
    backbone = load_backbone(cfg.backbone)
    scenes = [sample_scene(2024, index) for index in range(N)]
    images = draw_scenes(scenes)
    with torch.no_grad():
        z, shown = backbone.encode_images(images), backbone.to_float(images)
        c = torch.stack([backbone.encode_text(captions(scene)).mean(0) for scene in scenes])
        features = BlockFeatures(backbone.tower, cfg.decoding("g").target.layers)
        g = torch.stack(features(backbone.tower_input(shown)), dim=1)
    sampler = GuidedSampler(backbone, cfg, [point_of(cfg), Point(0.0, 0)])
    guided, unguided = sampler.sample(z, c, g, noise_for(cfg.seed, range(N), 1, backbone.latent_shape))
    scores = [pixcorr(found.images[:, 0], shown) for found in (guided, unguided)]
    assert float((scores[0] > scores[1]).float().mean()) >= 0.95
    assert float((scores[0] - scores[1]).mean()) > 0.02
