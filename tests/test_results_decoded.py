"""What decoded targets say in scores.json: there where predictions and true targets are, else left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_config import method_settings, target_settings

from nd.config import Config, PathsConfig, ProtocolConfig
from nd.data.prepared import Stimuli, stimuli_path
from nd.evaluate import evaluate
from nd.evaluation import decoded_targets
from nd.evaluation.decoded_targets import DecodedScores, decoded_scores
from nd.extract import extract
from nd.files import read_json
from nd.generate.inputs import part_ids
from nd.runs.folder import RunFolder
from nd.targets import store
from nd.targets.store import TargetStore, store_path


@pytest.fixture
def cfg(small_world: Config, tmp_path: Path) -> Config:
    """The small world and a method that decodes pixels, with folders of its own."""
    paths = PathsConfig(
        root=str(tmp_path), data=small_world.paths.data, cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs")
    )
    method = method_settings(name="ridge_pixels", generator="pixels", targets=["pixels"])
    target = target_settings(name="pixels")
    protocol = ProtocolConfig(network="none", n_boot=50)
    return replace(small_world, paths=paths, method=method, target=target, protocol=protocol)


def predicted(cfg: Config, wrong: int) -> None:
    """Write a finished predict run: the true pixels with some noise; the first ``wrong`` images in rotation."""
    ids = np.array(part_ids(cfg))
    pixels = Stimuli(stimuli_path(cfg)).images(ids) / np.float32(255)
    pixels[:wrong] = np.roll(pixels[:wrong], 1, 0)
    folder = RunFolder.open(cfg, "predict")
    with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as handle:
        handle["image_id"], handle["pixels"] = ids[::-1].astype(np.int32), pixels[::-1]


def reconstructed(cfg: Config) -> None:
    ids = np.array(part_ids(cfg))
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as handle:
        handle["images"], handle["image_id"] = Stimuli(stimuli_path(cfg)).images(ids)[:, None], ids.astype(np.int32)


def test_evaluate_adds_retrieval_by_what_was_decoded(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    extract(cfg)
    predicted(cfg, wrong=3)
    reconstructed(cfg)
    summary = read_json(evaluate(cfg) / "scores.json")
    assert set(summary["retrieval"]) == {"retrieval_pixels_image", "retrieval_pixels_brain"}
    assert not set(summary["retrieval"]) & set(summary["metrics"]), "no value per image, so no column of a table"
    for found in summary["retrieval"].values():
        assert found["mean"] == pytest.approx(9 / 12)
        assert (found["n_images"], found["n_candidates"], found["all_images"]) == (12, 12, True)
    run = RunFolder.open(cfg, "predict")
    with h5py.File(run.path / "predictions.h5") as file:
        decoded = file["pixels"][()][::-1]
    true = Stimuli(stimuli_path(cfg)).images(np.array(part_ids(cfg))) / np.float32(255)
    spectra = [
        np.linalg.svd(x.reshape(12, -1) - x.reshape(12, -1).mean(0), compute_uv=False) ** 2 for x in (decoded, true)
    ]
    wanted = [shares.sum() ** 2 / (shares**2).sum() for shares in spectra]
    assert summary["decoded"]["run"] == run.run_id
    found = summary["decoded"]["diversity"]["pixels"]
    assert (found["predicted"], found["true"], found["n"]) == (*(pytest.approx(w, rel=1e-4) for w in wanted), 12)
    out = capsys.readouterr().out
    assert "retrieval_pixels_image" in out
    assert "chance 0.0833, all 12 images" in out


def test_decoded_values_are_held_against_what_was_learned(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever has become of the weights: features of the present ones are others than the mapper predicts."""
    extract(cfg)
    predicted(cfg, wrong=3)
    ids, learned = np.array(part_ids(cfg), np.int32), store_path(cfg)
    training = RunFolder.open(cfg.with_target("pixels"), "train")
    with training.writing(cfg, {"target pixels": TargetStore(learned).fingerprint}):
        pass
    wanted = decoded_scores(cfg, ids)
    assert wanted.diversity
    monkeypatch.setattr(store, "wanted_fingerprint", lambda *_: "0" * 12)  # as after a change of weights
    assert store_path(cfg).name != learned.name
    assert decoded_scores(cfg, ids) == wanted
    learned.rename(store_path(cfg))  # of the present weights alone
    assert decoded_scores(cfg, ids) == DecodedScores()
    assert f"no scores of decoded pixels, for its true values are not there: no {learned}" in caplog.text


def test_nothing_where_something_is_not_there(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.array(part_ids(cfg), np.int32)
    assert decoded_scores(cfg, ids) == DecodedScores(), "no predictions"
    predicted(cfg, wrong=0)
    assert decoded_scores(cfg, ids) == DecodedScores(), "no store"
    extract(cfg)
    assert decoded_scores(cfg, ids).retrieval["retrieval_pixels_brain"]["mean"] == 1
    assert decoded_scores(replace(cfg, features="oracle"), ids) == DecodedScores()
    assert decoded_scores(replace(cfg, images_hash="abc"), ids) == DecodedScores()
    assert decoded_scores(cfg, ids[:1]) == DecodedScores()
    monkeypatch.setattr(decoded_targets, "MOST_NUMBERS", 12_287)  # one less than 64 x 64 x 3
    assert decoded_scores(cfg, ids) == DecodedScores()


def test_runs_can_be_scored_where_the_weights_are_gone(cfg: Config) -> None:
    cfg = replace(cfg, method=replace(cfg.method, targets=["c"]), backbone=replace(cfg.backbone, weights="/gone"))
    ids = np.array(part_ids(cfg), np.int32)
    folder = RunFolder.open(cfg, "predict")
    with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as handle:
        handle["image_id"], handle["c"] = ids, np.zeros((len(ids), 2, 3), np.float32)
    assert decoded_scores(cfg, ids) == DecodedScores()
