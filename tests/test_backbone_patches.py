"""What patches of drawn images show: the task of telling it, and what the drawing program says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers_scripts import load_script
from torch import nn

from backbone_training.loop import Optimisation, fit, optimisers
from backbone_training.patches import NOTHING_WEIGHT, POSE_BETA, POSE_WEIGHT, Patches, PatchHeads, labels_loss
from nd.scenes.scene import Scene, sample_scene
from nd.scenes.shapes import SHAPES


def some_patches(n: int, side: int) -> Patches:
    """Random ones."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (n, side * side, 2)).astype(np.int8)
    pose = rng.normal(size=(n, side * side, 4)).astype(np.float16)
    return Patches(labels, pose, rng.random((n, side * side, 16)) < 0.5)


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The training script as a module."""
    return load_script("scenes-backbone/train.py")


def test_labels_count_where_there_is_something_to_tell() -> None:
    labels = torch.tensor([[[0, 2], [1, 0]]])  # one image, two patches, two kinds of labels
    logits = torch.randn(1, 2, 5)
    first, second = logits[0, :, :2].log_softmax(-1), logits[0, :, 2:].log_softmax(-1)
    w = NOTHING_WEIGHT
    wanted = -(w * first[0, 0] + first[1, 1]) / (1 + w) - (second[0, 2] + w * second[1, 0]) / (1 + w)
    assert float(labels_loss(logits, labels, [2, 3])) == pytest.approx(float(wanted), rel=1e-5)


def test_pose_counts_where_an_object_is_seen_and_cover_everywhere() -> None:
    patches = some_patches(n=5, side=2)
    heads = PatchHeads(8, patches)
    features, rows = torch.randn(2, 4, 8), np.array([3, 1])
    labels, pose, cover = heads.layer(features).split(heads.parts, -1)
    seen = torch.from_numpy(patches.labels[rows][..., 0] > 0)
    off = (pose - torch.from_numpy(patches.pose[rows]).float())[seen].abs()
    smooth = torch.where(off < POSE_BETA, off**2 / (2 * POSE_BETA), off - POSE_BETA / 2).mean()
    there = torch.from_numpy(patches.cover[rows])
    right = torch.where(there, cover.sigmoid(), 1 - cover.sigmoid())
    told = labels_loss(labels, torch.from_numpy(patches.labels[rows].astype(np.int64)), patches.n_classes)
    wanted = told + POSE_WEIGHT * smooth - right.log().mean()
    assert float(heads(features, rows).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def one_object(shape: str) -> Scene:
    """A scene of a single upright object in the middle of the right half."""
    scene = next(s for s in (sample_scene(1, i) for i in range(100)) if len(s.things) == 1)
    thing = replace(scene.things[0], shape=shape, x=0.75, y=0.5, radius=0.2, tilt_rad=0.0)
    return replace(scene, things=(thing,))


def test_patches_say_what_is_drawn(train: ModuleType) -> None:
    seen = train.seen_in_patches([one_object("circle")], side=8)
    labels, pose = seen.labels.reshape(8, 8, 2), seen.pose.reshape(8, 8, 4)
    assert (labels[:, :4] == 0).all()
    assert not seen.cover.reshape(8, 8, 16)[:, :4].any()
    assert labels[3, 6, 0] == 1 + SHAPES.index("circle")
    # Patch (3, 6) has its centre at x = 6.5 / 8, y = 3.5 / 8: in radii from (.75, .5), then 4 radius and 2 tilt.
    assert pose[3, 6].tolist() == pytest.approx([0.3125, -0.3125, 0.8, 0.0], abs=1e-3)
    assert seen.cover.reshape(8, 8, 16)[3, 6].all()


def test_the_object_in_front_is_the_one_that_is_seen(train: ModuleType) -> None:
    scene = one_object("circle")
    front = replace(scene.things[0], shape="square")
    seen = train.seen_in_patches([replace(scene, things=(*scene.things, front))], side=8)
    assert seen.labels.reshape(8, 8, 2)[3, 6, 0] == 1 + SHAPES.index("square")


def test_muon_takes_the_matrices_of_the_blocks_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"resblocks": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    how = Optimisation(steps=6, batch=1, learning_rate=1e-3, warmup=1, muon_rate=0.02)
    adam, muon = (optimiser for optimiser, _ in optimisers(model, how))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 3
    start = {name: p.detach().clone() for name, p in model.state_dict().items()}

    def train_to(steps: int, checkpoint: Path) -> dict[str, torch.Tensor]:
        model.load_state_dict(start)
        x = torch.ones(3, 4)
        loss = lambda draw: (model["head"](model["resblocks"](x + draw.step)) - 1).square().mean()  # noqa: E731
        fit(model, loss, replace(how, steps=steps, decay_share=0.0), seed=0, checkpoint=checkpoint)
        return {name: p.detach().clone() for name, p in model.state_dict().items()}

    whole = train_to(6, tmp_path / "whole.pt")
    train_to(3, tmp_path / "parts.pt")
    resumed = train_to(6, tmp_path / "parts.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
