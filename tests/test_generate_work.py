"""Parts on disk, sampling as a Lightning job, and the generators without a sampler."""

from __future__ import annotations

import functools
import hashlib
import logging
import signal
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers_backbone import tiny_backbone
from helpers_config import data_settings, method_settings
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from nd.config import Config, GuidanceConfig, PathsConfig, TrainerConfig
from nd.config.components import component
from nd.data.prepared import stimuli_path, write_stimuli
from nd.data.splits import get_split
from nd.digests import digest_rows
from nd.errors import UserError
from nd.generate import floors, guided_diffusion
from nd.generate.base import to_uint8
from nd.generate.inputs import PredictedFeatures, TrainingImages, part_ids
from nd.generate.module import Work, run_work
from nd.generate.parts import Parts, captions_of, partition, unfinished
from nd.lightning import user_error_of
from nd.sealed import recorded_of

SIZE = 6
CPU = TrainerConfig(accelerator="cpu", progress=False)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- parts -------------------------------------------------------------------------------------------------------


def test_partition_is_fixed_and_keeps_order() -> None:
    assert partition([4, 7, 9, 10, 30], 2) == [[4, 7], [9, 10], [30]]


def pictures_of(ids: Sequence[int]) -> NDArray[np.uint8]:
    return np.stack([np.full((2, 3, 3, 3), i, np.uint8) for i in ids])


def test_parts_merge_in_canonical_order_and_are_removed(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts")
    assert parts.finished() == set()
    for batch in ([9, 12], [3, 5]):
        parts.write(batch, pictures_of(batch))
    assert parts.finished() == {3, 5, 9, 12}
    assert unfinished([[1, 3, 5], [9], [12, 15]], parts.finished()) == [[1], [15]]
    parts.merge([3, 5, 9, 12], tmp_path / "images.h5", {"seed": 4, "oracle": False})
    (tmp_path / "parts" / ".part-000003.h5.77.tmp").touch()  # of a killed process
    parts.remove()
    assert not (tmp_path / "parts").exists()
    with h5py.File(tmp_path / "images.h5") as file:
        assert file["image_id"][:].tolist() == [3, 5, 9, 12]
        assert file["images"][:, 1, 2, 0, 1].tolist() == [3, 5, 9, 12]
        assert (file.attrs["seed"], bool(file.attrs["oracle"])) == (4, False)
        digests = digest_rows(file["images"][:])
    assert recorded_of(tmp_path / "images.h5").rows["images"].tolist() == digests.tolist()


def test_captions_follow_their_images(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts")
    parts.write([9, 12], pictures_of([9, 12]), ["a dog", "zwei Bäume"])
    parts.write([3], pictures_of([3]), ["the sea"])
    parts.merge([3, 9, 12], tmp_path / "images.h5", {})
    with h5py.File(tmp_path / "images.h5") as file:
        assert captions_of(file) == ["the sea", "a dog", "zwei Bäume"]
    parts.write([4], pictures_of([4]))  # begun by a version that kept no captions
    parts.merge([3, 4, 9], tmp_path / "images.h5", {})
    with h5py.File(tmp_path / "images.h5") as file:
        assert captions_of(file) == ["the sea", "", "a dog"]


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.write([1], pictures_of([1]))
    with pytest.raises(UserError, match=r"no image of 2 images \(2, 8\)"):
        parts.merge([1, 2, 8], tmp_path / "images.h5", {})


def test_what_failed_in_a_killed_run_and_is_made_since_is_no_failure(tmp_path: Path) -> None:
    killed = Parts(tmp_path / "parts")
    killed.fail({2: "image 2 is not finite", 8: "image 8 is not finite"})
    again = Parts(tmp_path / "parts")
    again.write([1, 2], pictures_of([1, 2]))
    assert again.failures() == ["image 8 is not finite"]
    assert again.failures() == []
    assert again.finished() == {1, 2}


def test_damaged_part_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(tmp_path)
    path = parts.write([1, 2], pictures_of([1, 2]))
    path.write_bytes(path.read_bytes()[:300])
    with caplog.at_level(logging.WARNING):
        assert parts.finished() == set()
    assert "damaged" in caplog.text


def test_pictures_are_rounded_not_truncated() -> None:
    picture = torch.tensor([0.0, 0.5, 0.999, 1.2, -0.1]).view(1, 1, 1, 1, 5).expand(1, 1, 3, 1, 5)
    assert to_uint8(picture)[0, 0, 0, :, 0].tolist() == [0, 128, 255, 255, 0]


# ---- sampling as a job -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("job")
    return Config(
        data=data_settings(n_train=12, n_val=4, n_test=5, image_size=SIZE),
        method=method_settings(steps=4, strength=0.75, cfg_scale=3.0, repeats=2),
        guidance=GuidanceConfig(kappa=0.5, eta=0.4, normalise=True),
        backbone=tiny_backbone(folder / "backbone"),
        paths=PathsConfig(data=str(folder / "data")),
    )


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> PredictedFeatures:
    """Predictions of 5 images, in an order of their own."""
    path = tmp_path_factory.mktemp("predictions") / "predictions.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["image_id"] = np.array([14, 12, 16, 13, 15])
        for name, shape in {"z": (4, 4, 4), "c": (8, 16), "g": (6, 17, 16)}.items():
            file[name] = random.standard_normal((5, *shape)).astype(np.float32)
    return PredictedFeatures(path)


def sample_all(cfg: Config, source: PredictedFeatures, folder: Path, batch: int, trainer: TrainerConfig = CPU) -> Path:
    """What the reconstruct verb does between opening and closing its run folder."""
    parts, ids = Parts(folder / "parts"), [12, 13, 14, 15, 16]
    batches = partition(ids, batch)
    work = Work(unfinished(batches, parts.finished()), source, component("generator", "guided_diffusion").wants(cfg))
    build = functools.partial(component("generator", "guided_diffusion").build, [cfg])
    run_work(build, work, [parts], trainer, [len(b) for b in batches])
    parts.merge(ids, folder / "images.h5", {"seed": cfg.seed})
    return folder / "images.h5"


def images_in(path: Path) -> NDArray[np.uint8]:
    with h5py.File(path) as file:
        return file["images"][:]


def test_batch_size_changes_no_picture(cfg: Config, predictions: PredictedFeatures, tmp_path: Path) -> None:
    one, many = (images_in(sample_all(cfg, predictions, tmp_path / str(n), n)) for n in (1, 5))
    assert one.shape == (5, 2, 16, 16, 3)
    assert np.abs(one.astype(int) - many).max() <= 1  # 1e-4 of range may cross a rounding boundary
    assert len(np.unique(one.reshape(10, -1), axis=0)) == 10


class KilledError(Exception):
    pass


def test_interrupted_and_resumed_gives_the_same_bytes(
    cfg: Config, predictions: PredictedFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample_all(cfg, predictions, tmp_path / "whole", 2)
    made: list[int] = []
    generate = guided_diffusion.GuidedDiffusion.__call__

    def dying(self: object, ids: Sequence[int], features: Mapping[str, Tensor]) -> NDArray[np.uint8]:
        if len(made) == 2:
            raise KilledError
        made.extend(ids)
        return generate(self, ids, features)  # type: ignore[arg-type]

    monkeypatch.setattr(guided_diffusion.GuidedDiffusion, "__call__", dying)
    with pytest.raises(KilledError):
        sample_all(cfg, predictions, tmp_path / "resumed", 2)
    monkeypatch.setattr(guided_diffusion.GuidedDiffusion, "__call__", generate)
    calls: list[int] = []
    monkeypatch.setattr(Parts, "write", _counting(Parts.write, calls))
    resumed = sample_all(cfg, predictions, tmp_path / "resumed", 2)
    assert (made, calls) == ([12, 13], [14, 15, 16])  # nothing that was finished is made again
    assert digest(resumed) == digest(whole)


def _counting(write: object, calls: list[int]) -> object:
    def counted(self: Parts, ids: Sequence[int], *made: object) -> Path:
        calls.extend(ids)
        return write(self, ids, *made)  # type: ignore[operator]

    return counted


def test_quiet_but_for_one_bar(
    cfg: Config, predictions: PredictedFeatures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample_all(cfg, predictions, tmp_path, 5, replace(CPU, progress=True))
    out, err = capfd.readouterr()
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert out == ""
    assert all(line.startswith("reconstruct:") for line in err.replace("\r", "\n").strip().splitlines() if line.strip())
    assert "5/5" in last
    assert "image" in last
    assert [str(w.message) for w in caught if "lightning" in str(w.filename)] == []


def test_sigterm_ends_sampling_at_once(
    cfg: Config, predictions: PredictedFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would note the signal and sample on."""
    seen: list[object] = []
    generate = guided_diffusion.GuidedDiffusion.__call__

    def watched(self: object, ids: Sequence[int], features: Mapping[str, Tensor]) -> object:
        seen.append(signal.getsignal(signal.SIGTERM))
        return generate(self, ids, features)  # type: ignore[arg-type]

    monkeypatch.setattr(guided_diffusion.GuidedDiffusion, "__call__", watched)
    sample_all(cfg, predictions, tmp_path, 5)
    assert seen == [signal.SIG_DFL]


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(cfg: Config, predictions: PredictedFeatures, tmp_path: Path) -> None:
    one = sample_all(cfg, predictions, tmp_path / "one", 2)
    two = sample_all(cfg, predictions, tmp_path / "two", 2, replace(CPU, devices=2))
    assert digest(one) == digest(two)


def test_user_error_of_another_process_keeps_its_message() -> None:
    trace = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File ...\n"
    error = user_error_of(ProcessRaisedException(trace + "nd.errors.UserError: image 3: too far\n", 1, 77))
    assert isinstance(error, UserError)
    assert str(error) == "image 3: too far"
    bug = ProcessRaisedException(trace + "KeyError: 'x'\n", 1, 77)
    assert user_error_of(bug) is bug


# ---- predictions -------------------------------------------------------------------------------------------------


def test_predictions_are_read_by_image_id(predictions: PredictedFeatures) -> None:
    with h5py.File(predictions.path) as file:
        stored = file["z"][:]
    assert np.array_equal(predictions.rows("z", [12, 16, 14]), stored[[1, 2, 0]])
    with pytest.raises(UserError, match="no prediction for image 99"):
        predictions.rows("z", [12, 99])
    with pytest.raises(UserError, match="no predictions of 'pixels'"):
        predictions.rows("pixels", [12])


def test_predictions_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values = np.zeros((3, 2), np.float32)
    values[1, 0] = np.inf
    with h5py.File(tmp_path / "predictions.h5", "w") as file:
        file["image_id"], file["z"] = np.array([3, 4, 3]), values
    source = PredictedFeatures(tmp_path / "predictions.h5")
    assert source.rows("z", [3]).shape == (1, 2)  # of an image in two folds, the first row counts
    with pytest.raises(UserError, match=r"'z' for image 4 .* not finite"):
        source.rows("z", [3, 4])


# ---- floors ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stimuli(cfg: Config) -> NDArray[np.uint8]:
    images = np.random.default_rng(1).integers(0, 256, (17, SIZE, SIZE, 3)).astype(np.uint8)
    write_stimuli(
        stimuli_path(cfg), images=images, captions=[[f"picture {i}", "x"] for i in range(17)], image_id=np.arange(17)
    )
    return images


def test_part_ids_are_sorted(cfg: Config) -> None:
    assert part_ids(cfg) == [12, 13, 14, 15, 16]
    assert part_ids(replace(cfg, part="val")) == get_split(cfg.data).folds[0].val.tolist()


def test_mean_image_is_that_of_the_training_images(cfg: Config, stimuli: NDArray[np.uint8]) -> None:
    made = floors.build_mean(cfg, torch.device("cpu"))([12, 15], {})
    assert made.shape == (2, 1, SIZE, SIZE, 3)
    assert np.abs(made[0, 0] - stimuli[:12].mean(axis=0)).max() <= 0.5
    assert np.array_equal(made[0], made[1])
    val = replace(cfg, part="val")
    train = get_split(cfg.data).folds[0].train
    made = floors.build_mean(val, torch.device("cpu"))([part_ids(val)[0]], {})
    assert np.abs(made[0, 0] - stimuli[train].mean(axis=0)).max() <= 0.5  # validation images are held out there


def test_random_images_are_training_images_of_their_own_draw(cfg: Config, stimuli: NDArray[np.uint8]) -> None:
    build = functools.partial(floors.build_random, device=torch.device("cpu"))
    together = build(cfg)([12, 13, 14, 15], {})
    assert np.array_equal(build(cfg)([14], {})[0], together[2])
    drawn = together.reshape(8, -1)
    assert all((stimuli[:12].reshape(12, -1) == row).all(axis=1).any() for row in drawn)
    assert len(np.unique(drawn, axis=0)) > 3
    assert not np.array_equal(build(replace(cfg, seed=1))([12, 13, 14, 15], {}), together)


def test_nearest_image_finds_the_image_whose_targets_were_decoded(
    cfg: Config, stimuli: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    targets = {name: 5 + random.standard_normal((17, *shape)).astype(np.float32) for name, shape in SHAPES.items()}

    class Store:
        def __init__(self, path: Path, allowed_ids: NDArray[np.int32]) -> None:
            assert allowed_ids.max() < 12
            self.values = targets[path.name]

        def rows(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
            return self.values[ids]

    monkeypatch.setattr(floors, "TargetStore", Store)
    nearest = floors.NearestImage(TrainingImages(cfg), {name: Path(name) for name in targets})
    wanted = [7, 0, 11]
    noise = {name: 0.3 * random.standard_normal((3, *shape)) for name, shape in SHAPES.items()}
    decoded = {name: torch.tensor(targets[name][wanted] + noise[name], dtype=torch.float32) for name in targets}
    assert np.array_equal(nearest([12, 13, 16], decoded)[:, 0], stimuli[wanted])
    (shown,) = floors.Alone(nearest)([12, 13, 16], decoded)
    assert shown.captions == [f"picture {i}" for i in wanted]


SHAPES = {"z": (4, 3, 3), "c": (5, 6)}


def test_centred_correlation_equals_corrcoef() -> None:
    random = np.random.default_rng(3)
    decoded, true = random.standard_normal((4, 30)), 2 + random.standard_normal((6, 30))
    expected = np.corrcoef(decoded - true.mean(0), true - true.mean(0))[:4, 4:]
    np.testing.assert_allclose(floors.centred_correlation(decoded, true), expected, atol=1e-6)
    assert np.array_equal(floors.centred_correlation(np.zeros((1, 30)), np.zeros((2, 30))), np.zeros((1, 2)))


def test_decoded_pixels_are_clipped() -> None:
    pixels = torch.tensor([-0.2, 0.5, 1.3]).view(1, 1, 1, 3).expand(2, SIZE, SIZE, 3)
    made = floors.DecodedPixels()([0, 1], {"pixels": pixels})
    assert made.shape == (2, 1, SIZE, SIZE, 3)
    assert made[0, 0, 2, 3].tolist() == [0, 128, 255]


def test_decoded_latents_are_the_decoder_s_pictures(cfg: Config) -> None:
    generator = floors.build_latents(cfg, torch.device("cpu"))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = generator.backbone.vae.decode(z / generator.backbone.vae.config.scaling_factor).sample / 2 + 0.5
    made = generator([0, 1], {"z": z})
    assert made.shape == (2, 1, 16, 16, 3)
    assert np.abs(made[:, 0].transpose(0, 3, 1, 2) - expected.clamp(0, 1).numpy() * 255).max() <= 0.51


def test_names_of_generators_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown generator 'nearest'.* Did you mean 'nearest_image'"):
        component("generator", "nearest")
