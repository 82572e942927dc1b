"""Brain correlation of a run: encoders by hand, columns and summaries, and layers that cannot be asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers_config import method_settings
from numpy.typing import NDArray

from nd.config import Config, PathsConfig, ProtocolConfig
from nd.config.rules import contradictions
from nd.data.prepared import Stimuli, mean_betas, open_subject, split_of, stimuli_path
from nd.evaluate import evaluate
from nd.evaluation import brain_scores
from nd.evaluation.brain_correlation import BrainCorrelation, Encoder
from nd.evaluation.brain_scores import brain_lines
from nd.evaluation.scores import read_per_image
from nd.files import read_json
from nd.generate.inputs import TrainingImages, part_ids
from nd.metrics.features import RANDOM, features
from nd.metrics.measures import encoded_layers
from nd.metrics.noise_ceiling import pattern_ceiling, repeat_ceiling
from nd.metrics.protocol import describe
from nd.runs.folder import RunFolder


@pytest.fixture
def cfg(small_world: Config, tmp_path: Path) -> Config:
    """The small world and a network with random weights; responses are predicted from its pooled head."""
    paths = PathsConfig(
        root=str(tmp_path), data=small_world.paths.data, cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs")
    )
    method = method_settings(name="random_image", generator="random_image", targets=[], repeats=2)
    protocol = ProtocolConfig(n_boot=100, network_size=64, random_weights=True, brain=["high"])
    return replace(small_world, paths=paths, method=method, protocol=protocol)


def pictures_of(cfg: Config) -> NDArray[np.uint8]:
    """The stimuli, each beside another one."""
    stimuli = Stimuli(stimuli_path(cfg)).images(np.array(part_ids(cfg)))
    return np.stack([stimuli, np.roll(stimuli, 1, 0)], 1)


def reconstructed(cfg: Config) -> None:
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as handle:
        handle["images"], handle["image_id"] = pictures_of(cfg), np.array(part_ids(cfg), np.int32)


def by_hand(cfg: Config, mask: NDArray[np.bool_], rotated: int) -> NDArray[np.float64]:
    """(N,) correlations across voxels of responses predicted from stimuli, each taken ``rotated`` places further."""
    view = encoded_layers(cfg.protocol)["high"].view
    stimuli, subject, test = Stimuli(stimuli_path(cfg)), open_subject(cfg), np.array(part_ids(cfg))
    training = split_of(cfg).folds[0].seen
    encoder = Encoder.fit(features(stimuli.images(training), view, RANDOM)["high"], mean_betas(subject, training))
    predicted = encoder.responses(features(np.roll(stimuli.images(test), rotated, 0), view, RANDOM)["high"])
    past = mean_betas(subject, training)
    measured = (mean_betas(subject, test) - past.mean(0)) / past.std(0)
    return np.array([np.corrcoef(p[mask], m[mask])[0, 1] for p, m in zip(predicted, measured, strict=True)])


def test_pictures_are_judged_by_the_responses_they_predict(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    reconstructed(cfg)
    path = evaluate(cfg)
    everywhere = np.ones(open_subject(cfg).n_voxels, bool)
    wanted = (by_hand(cfg, everywhere, 0) + by_hand(cfg, everywhere, 1)) / 2
    np.testing.assert_allclose(read_per_image(path / "per_image.csv")["brain_high"], wanted, atol=1e-5)
    summary = read_json(path / "scores.json")
    assert summary["metrics"]["brain_high"]["mean"] == pytest.approx(wanted.mean(), abs=1e-5)
    rois = open_subject(cfg).inner_rois
    assert set(summary["brain"]["brain_high"]) == {"all", *(name for name, mask in rois.items() if mask.sum() >= 10)}
    for name, one in summary["brain"]["brain_high"].items():
        mask = everywhere if name == "all" else rois[name]
        assert one["seen"] == pytest.approx(by_hand(cfg, mask, 0).mean(), abs=1e-5)
        assert one["lo"] <= one["mean"] <= one["hi"] <= one["ceiling"] <= 1
        assert one["n_voxels"] == mask.sum()
    assert "brain_high all" in capsys.readouterr().out


def test_voxels_outside_the_chosen_roi_take_no_part(cfg: Config) -> None:
    name, mask = next(iter(open_subject(cfg).inner_rois.items()))
    cfg = replace(cfg, subject=replace(cfg.subject, roi=name))
    reconstructed(cfg)
    found = read_json(evaluate(cfg) / "scores.json")["brain"]["brain_high"]
    assert found["all"]["n_voxels"] == found[name]["n_voxels"] == mask.sum()
    assert len({one["n_voxels"] for one in found.values()}) == 1 or min(o["n_voxels"] for o in found.values()) >= 10


def test_the_ceiling_comes_from_repeats_else_from_ncsnr_else_from_nowhere(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, ids = open_subject(cfg), np.array(part_ids(cfg), np.int32)
    past = mean_betas(subject, split_of(cfg).folds[0].seen)
    encoder = Encoder.fit(np.random.default_rng(0).normal(size=(len(past), 3)), past)
    rows = np.stack([subject.rows_of([i]) for i in ids])
    trials = ((subject.voxels(rows.ravel()) - past.mean(0)) / past.std(0)).reshape(*rows.shape, -1)
    assert brain_scores._ceilings(subject, encoder, ids)["all"] == pytest.approx(repeat_ceiling(trials), abs=1e-5)
    uneven = subject.only(np.arange(len(subject.image_id)) != rows[0, 0])
    uneven.ncsnr = np.full(subject.n_voxels, 0.5, np.float32)
    counts = np.r_[rows.shape[1] - 1, np.full(len(ids) - 1, rows.shape[1])]
    assert brain_scores._ceilings(uneven, encoder, ids)["all"] == pytest.approx(pattern_ceiling(uneven.ncsnr, counts))
    uneven.ncsnr = None
    assert brain_scores._ceilings(uneven, encoder, ids) == {}
    assert "ceiling unknown" in brain_lines({"brain_high": {"all": {
        "mean": 0.1, "lo": 0, "hi": 0.2, "seen": 0.3, "ceiling": None, "n_voxels": 12,
    }}})[0]  # fmt: skip


def test_features_of_training_pictures_are_computed_once(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    training, measure = TrainingImages(cfg), encoded_layers(cfg.protocol)["high"]
    once = brain_scores.training_features(cfg, training, 0, measure, torch.device("cpu"))
    monkeypatch.setattr(brain_scores, "features", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(brain_scores.training_features(cfg, training, 0, measure, torch.device("cpu")), once)
    assert once.shape == (len(split_of(cfg).folds[0].seen), 1280)


def test_images_of_several_folds_come_back_to_their_places() -> None:
    parts = tuple(
        {"all": BrainCorrelation(np.array(values), 0.0, ceiling, 5)}
        for values, ceiling in (([0.1, 0.3], 0.8), ([0.2], 0.5))
    )
    got = brain_scores._over_folds(parts, [np.array([0, 2]), np.array([1])])["all"]
    np.testing.assert_allclose(got.per_image, [0.1, 0.2, 0.3])
    assert (got.mean, got.ceiling) == (pytest.approx(0.2), pytest.approx(0.7))
    unknown = (parts[0], {"all": replace(parts[1]["all"], ceiling=None)})
    assert brain_scores._over_folds(unknown, [np.array([0, 2]), np.array([1])])["all"].ceiling is None


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["hihg"], r"protocol.brain: hihg is no layer .* Did you mean 'high'\? Layers: mid, high"),
        (["low"], r"protocol.brain: low is no layer"),
        (["swav_224"], r"protocol.brain: swav_224 is no layer"),
    ],
)
def test_layers_that_are_not_computed_are_refused(cfg: Config, layers: list[str], said: str) -> None:
    found = contradictions(replace(cfg, protocol=replace(cfg.protocol, brain=layers)), "evaluate")
    assert any(re.search(said, one) for one in found), found
    measured = ProtocolConfig(network="none", measures=["swav_224", "alexnet2_256"], brain=["swav_224"])
    assert list(encoded_layers(measured)) == ["swav_224"], "AlexNet(2) has 139,968 numbers"
    assert not [one for one in contradictions(replace(cfg, protocol=measured), "evaluate") if "protocol.brain" in one]


def test_brain_correlation_is_no_other_protocol() -> None:
    assert describe(ProtocolConfig(brain=["high"]))["name"] == "scenes"
