"""`nd evaluate` on reconstructions made by hand: what is written, and what is refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_config import method_settings
from numpy.typing import NDArray

from nd.config import Config, PathsConfig, ProtocolConfig
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluate import evaluate
from nd.evaluation.reconstructions import Stored, read_images
from nd.evaluation.scores import read_per_image, read_scores
from nd.files import read_json
from nd.generate.inputs import part_ids
from nd.metrics.correlation import pixcorr
from nd.metrics.images import to_float
from nd.runs.folder import RunFolder


@pytest.fixture
def cfg(small_world: Config, tmp_path: Path) -> Config:
    """The small world, a floor that needs no predictions, pixel metrics only, and folders of its own."""
    paths = PathsConfig(
        root=str(tmp_path), data=small_world.paths.data, cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs")
    )
    method = method_settings(name="random_image", generator="random_image", targets=[], repeats=2)
    return replace(small_world, paths=paths, method=method, protocol=ProtocolConfig(network="none", n_boot=200))


def stimuli_of(cfg: Config) -> NDArray[np.uint8]:
    return Stimuli(stimuli_path(cfg)).images(np.array(part_ids(cfg)))


def made(cfg: Config, repeats: int = 2) -> NDArray[np.uint8]:
    """Reconstructions (N, R, H, W, 3): the stimuli under noise, the first one grey."""
    stimuli = stimuli_of(cfg)
    noise = np.random.default_rng(0).normal(scale=80, size=(len(stimuli), repeats, *stimuli.shape[1:]))
    images = np.clip(stimuli[:, None] + noise, 0, 255).astype(np.uint8)
    images[0, 0] = 128
    return images


def reconstructed(cfg: Config, images: NDArray[np.generic], image_ids: list[int], **attributes: bool | str) -> Path:
    """Write a finished reconstruct run that holds these images."""
    folder = RunFolder.open(cfg, "reconstruct")
    with folder.writing(cfg), h5py.File(folder.path / "images.h5", "w") as handle:
        handle["images"], handle["image_id"] = images, np.array(image_ids, np.int32)
        handle.attrs.update(attributes)
    return folder.path


def test_writes_scores_and_one_row_per_image(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    images, ids = made(cfg), part_ids(cfg)
    reconstructed(cfg, images, ids, oracle=False)
    path = evaluate(cfg)
    summary = read_json(path / "scores.json")
    assert summary["n_images"] == len(ids)
    assert summary["n_repeats"] == 2
    assert summary["n_constant_images"] == 1
    assert (summary["oracle"], summary["simulated"], summary["control"]) == (False, True, "none")
    assert summary["protocol"]["name"].startswith("scenes-changed-"), "no network is not the scenes protocol"
    score = summary["metrics"]["two_way_pixels"]
    assert set(score) == {"mean", "lo", "hi", "n", "chance", "better"}
    assert 0.5 == score["chance"] < score["lo"] < score["mean"] < score["hi"] <= 1
    rows = list(csv.DictReader((path / "per_image.csv").open(encoding="utf-8")))
    assert [int(row["image_id"]) for row in rows] == ids
    wanted = np.mean([pixcorr(to_float(images[:, r]), to_float(stimuli_of(cfg))).numpy() for r in range(2)], 0)
    np.testing.assert_allclose([float(row["pixcorr"]) for row in rows], wanted, atol=1e-6)
    assert summary["metrics"]["pixcorr"]["mean"] == pytest.approx(wanted.mean(), abs=1e-6)
    out = capsys.readouterr().out
    assert "two_way_pixels" in out
    assert f"wrote scores of {len(ids)} images at {path / 'scores.json'}" in out


def test_the_table_can_read_what_is_written(cfg: Config) -> None:
    reconstructed(cfg, made(cfg), part_ids(cfg), oracle=True, control="shuffled_voxels")
    path = evaluate(cfg)
    run = read_scores(path)
    assert (run.oracle, run.control, run.n_repeats) == (True, "shuffled_voxels", 2)
    assert set(read_per_image(path / "per_image.csv")) == {"image_id", *run.scores}


def test_twice_does_nothing_the_second_time(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructed(cfg, made(cfg), part_ids(cfg))
    path = evaluate(cfg)
    monkeypatch.setattr("nd.evaluate.compare", lambda *_: pytest.fail("scored again"))
    assert evaluate(cfg) == path


def test_other_processes_of_a_job_write_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructed(cfg, made(cfg), part_ids(cfg))
    ranks = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}
    for name, value in (ranks | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    second = replace(cfg, trainer=replace(cfg.trainer, devices=2))
    assert not evaluate(second).exists()


def test_rows_in_another_order_give_the_same_scores(cfg: Config, tmp_path: Path) -> None:
    images, ids = made(cfg), part_ids(cfg)
    reconstructed(cfg, images, ids)
    one = evaluate(cfg)
    other_cfg = replace(cfg, paths=replace(cfg.paths, runs=str(tmp_path / "other")))
    order = np.random.default_rng(1).permutation(len(ids))
    reconstructed(other_cfg, images[order], [ids[k] for k in order])
    other = evaluate(other_cfg)
    assert (one / "per_image.csv").read_bytes() == (other / "per_image.csv").read_bytes()
    assert (one / "scores.json").read_bytes() == (other / "scores.json").read_bytes()


def test_one_repeat_has_no_consistency(cfg: Config) -> None:
    reconstructed(cfg, made(cfg, repeats=1), part_ids(cfg))
    assert not [name for name in read_json(evaluate(cfg) / "scores.json")["metrics"] if "consistency" in name]


def test_the_best_repeat_and_the_mean_picture_are_scores_of_their_own(cfg: Config) -> None:
    images, stimuli = made(cfg, repeats=3), to_float(stimuli_of(cfg))
    reconstructed(cfg, images, part_ids(cfg))
    each_RN = np.array([pixcorr(to_float(images[:, r]), stimuli).numpy() for r in range(3)])
    blurred = pixcorr(to_float(np.float32(images.mean(1) / 255)), stimuli)
    wanted = {"each": each_RN.mean(0), "best": each_RN.max(0), "pixel_mean": blurred.numpy(), "first": each_RN[0]}
    for name, values in wanted.items():
        path = evaluate(replace(cfg, protocol=replace(cfg.protocol, aggregation=name)))
        np.testing.assert_allclose(read_per_image(path / "per_image.csv")["pixcorr"], values, atol=1e-6, err_msg=name)
    summary = read_json(evaluate(replace(cfg, protocol=replace(cfg.protocol, aggregation="best"))) / "scores.json")
    assert "a ceiling" in summary["aggregation"]


def test_consistency_has_a_variance_where_there_are_pairs(cfg: Config) -> None:
    images = made(cfg, repeats=3)
    reconstructed(cfg, images, part_ids(cfg))
    scores = read_per_image(evaluate(cfg) / "per_image.csv")
    pairs = [np.corrcoef(images[2, a].ravel(), images[2, b].ravel())[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert scores["consistency_pixcorr_variance"][2] == pytest.approx(np.var(pairs), rel=1e-4)


def test_pictures_are_read_as_they_are_needed(cfg: Config) -> None:
    images, ids = made(cfg), part_ids(cfg)
    stored, _, _ = read_images(reconstructed(cfg, images, ids) / "images.h5")
    assert isinstance(stored, Stored)
    assert (stored.shape, stored.dtype, len(stored)) == (images.shape, images.dtype, len(images))
    np.testing.assert_array_equal(stored[2:5, 1], images[2:5, 1])


def test_validation_pictures_are_judged_by_validation_stimuli(cfg: Config) -> None:
    cfg = replace(cfg, part="val")
    ids = part_ids(cfg)
    reconstructed(cfg, stimuli_of(cfg)[:, None], ids)
    assert read_json(evaluate(cfg) / "scores.json")["metrics"]["pixcorr"]["mean"] == pytest.approx(1)


def nothing_written(cfg: Config) -> bool:
    return not (Path(cfg.paths.runs) / "evaluate").exists()


def test_without_reconstructions_the_command_is_named(cfg: Config) -> None:
    with pytest.raises(UserError, match=r"has not been run\. Run: nd reconstruct"):
        evaluate(cfg)
    assert nothing_written(cfg)


def test_missing_and_foreign_images_are_refused(cfg: Config) -> None:
    images, ids = made(cfg), part_ids(cfg)
    reconstructed(cfg, images, [0, *ids[1:]])
    with pytest.raises(UserError, match=rf"1 missing \[{ids[0]}\], 1 that do not belong \[0\]"):
        evaluate(cfg)
    assert nothing_written(cfg)


def test_another_count_of_ids_is_refused(cfg: Config) -> None:
    reconstructed(cfg, made(cfg)[:-1], part_ids(cfg))
    with pytest.raises(UserError, match="11 images for 12 different image ids"):
        evaluate(cfg)


def test_the_same_image_twice_is_refused(cfg: Config) -> None:
    ids = part_ids(cfg)
    reconstructed(cfg, made(cfg), [ids[1], *ids[1:]])
    with pytest.raises(UserError, match="12 images for 11 different image ids"):
        evaluate(cfg)


def test_nan_and_grey_pictures_are_refused(cfg: Config, tmp_path: Path) -> None:
    images = made(cfg).astype(np.float32) / 255
    images[3, 1, 5, 5, 0] = np.nan
    reconstructed(cfg, images, part_ids(cfg))
    with pytest.raises(UserError, match="reconstructions: 1 pixels are NaN"):
        evaluate(cfg)
    cfg = replace(cfg, paths=replace(cfg.paths, runs=str(tmp_path / "grey")))
    reconstructed(cfg, made(cfg)[..., 0], part_ids(cfg))
    with pytest.raises(UserError, match=r"RGB images .* were wanted"):
        evaluate(cfg)
    assert nothing_written(cfg)


def test_a_truncated_file_is_refused(cfg: Config) -> None:
    path = reconstructed(cfg, made(cfg), part_ids(cfg)) / "images.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"images.h5 has \d+ bytes, was written with \d+\. Remove .* and run again"):
        evaluate(cfg)


def test_labels_are_asked_for_where_the_data_set_has_none(cfg: Config) -> None:
    cfg = replace(cfg, protocol=replace(cfg.protocol, label_identification=True))
    reconstructed(cfg, made(cfg), part_ids(cfg))
    with pytest.raises(UserError, match=r"no labels\. Set protocol.label_identification=false"):
        evaluate(cfg)
