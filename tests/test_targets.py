"""Targets: values against plain re-statements, and the store that keeps them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_backbone import IMAGE_SIZE
from helpers_clip import tiny_clip
from helpers_config import with_fields
from numpy.typing import NDArray

from nd.backbone.loading import Backbone, load_backbone
from nd.config import BackboneConfig, Config
from nd.config.components import found
from nd.data.prepared import Stimuli, write_stimuli
from nd.errors import LeakError, UserError
from nd.targets import fill
from nd.targets.base import Extractor, Items
from nd.targets.components import build_extractor
from nd.targets.store import TargetStore, details_of, store_fingerprint, store_path

N_IMAGES = 10
# The network of vdvae comes in one, large size: see test_vdvae.py.
NAMES = sorted(found("target").components.keys() - {"vdvae"})


@pytest.fixture(scope="module")
def cfg(tiny_backbone_config: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A configuration whose stimuli are ten noisy images with one to three captions each."""
    cfg = Config(backbone=tiny_backbone_config)
    cfg.data.image_size = IMAGE_SIZE
    root = tmp_path_factory.mktemp("targets")
    cfg.paths.data, cfg.paths.cache = str(root / "data"), str(root / "cache")
    cfg = with_fields(cfg, clip=str(tiny_clip(root / "clip")))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N_IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
    captions = [[f"no {i} {k}" for k in range(1 + i % 3)] for i in range(N_IMAGES)]
    write_stimuli(
        root / "data" / "scenes" / "stimuli.h5", images=images, captions=captions, image_id=np.arange(N_IMAGES)
    )
    return cfg


@pytest.fixture(scope="module")
def stimuli(cfg: Config) -> Stimuli:
    return Stimuli(Path(cfg.paths.data) / "scenes" / "stimuli.h5")


@pytest.fixture(scope="module")
def backbone(cfg: Config) -> Backbone:
    return load_backbone(cfg.backbone)


def batch(extractor: Extractor, stimuli: Stimuli, ids: list[int]) -> Items:
    return Items.read(stimuli, np.array(ids), {extractor.needs})


def pictures(images: NDArray[np.uint8]) -> Items:
    return Items(np.arange(len(images), dtype=np.int32), images)


def texts_of(captions: list[list[str]]) -> Items:
    return Items(np.arange(len(captions), dtype=np.int32), captions=captions)


@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_and_independence_of_the_batch(
    name: str, cfg: Config, stimuli: Stimuli, backbone: Backbone
) -> None:
    extractor = build_extractor(name, cfg, backbone)
    together = extractor(batch(extractor, stimuli, [1, 2, 3]))
    assert together.shape == (3, *extractor.shape)
    assert together.dtype == np.float32
    alone = extractor(batch(extractor, stimuli, [2]))
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # different images differ


def test_z_is_the_posterior_mode_times_the_scaling_factor(cfg: Config, stimuli: Stimuli, backbone: Backbone) -> None:
    images = stimuli.images(np.array([4]))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    moments = backbone.vae.quant_conv(backbone.vae.encoder(x))
    expected = moments[:, :4] * 0.3  # the fixture's scaling factor
    np.testing.assert_allclose(build_extractor("z", cfg, backbone)(pictures(images)), expected.numpy(), atol=1e-5)


def test_c_averages_the_captions_last_hidden_states(cfg: Config, stimuli: Stimuli, backbone: Backbone) -> None:
    texts = stimuli.captions(np.array([5]))[0]
    assert len(texts) == 3
    coded = backbone.tokenizer(texts, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    hidden = backbone.text_encoder(coded["input_ids"])[0]
    found = build_extractor("c", cfg, backbone)(texts_of([texts]))[0]
    np.testing.assert_allclose(found, hidden.mean(0).numpy(), atol=1e-5)


def test_c_uses_at_most_max_captions(cfg: Config, backbone: Backbone) -> None:
    one = with_fields(cfg, max_captions=1)
    found = build_extractor("c", one, backbone)(texts_of([["a b", "zz"], ["zz"]]))
    expected = backbone.encode_text(["a b", "zz"])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_c_without_caption_is_refused(cfg: Config, backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"^image 1 has no caption; target c needs at least one"):
        build_extractor("c", cfg, backbone)(texts_of([["a"], []]))


def test_pixels_of_another_size_are_refused(cfg: Config, backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"Set data.image_size=20"):
        build_extractor("pixels", cfg, backbone)(pictures(np.zeros((1, 20, 20, 3), np.uint8)))


def test_unknown_target(cfg: Config, backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"unknown target 'pixel'. Did you mean 'pixels'"):
        build_extractor("pixel", cfg, backbone)


# ---- store ---------------------------------------------------------------------------------------------------------


def fill_store(cfg: Config, stimuli: Stimuli, extractor: Extractor, path: Path, **options: Any) -> int:
    job = fill.Job(extractor, path, options.pop("dtype", "float32"))
    options = {"batch_size": 3, "progress": False, **options}
    return fill.extract_to_stores([job], stimuli, **options)[extractor.name]


@pytest.mark.parametrize("name", NAMES)
def test_store_gives_back_what_was_extracted(
    name: str, cfg: Config, stimuli: Stimuli, backbone: Backbone, tmp_path: Path
) -> None:
    extractor = build_extractor(name, cfg, backbone)
    path = tmp_path / "x-y-z.h5"
    assert fill_store(cfg, stimuli, extractor, path) == N_IMAGES
    store = TargetStore(path)
    ids = [7, 0, 7, 3]  # any order, repeats allowed
    np.testing.assert_allclose(store.rows(np.array(ids)), extractor(batch(extractor, stimuli, ids)), atol=1e-5)
    flat = store.rows(np.array(ids)).reshape(4, -1)
    np.testing.assert_array_equal(store.columns(np.array(ids), 2, 9), flat[:, 2:9])
    assert fill_store(cfg, stimuli, extractor, path) == 0  # the second call does nothing


def test_store_keeps_images_it_must_not_show_out_of_reach(
    cfg: Config, stimuli: Stimuli, backbone: Backbone, tmp_path: Path
) -> None:
    fill_store(cfg, stimuli, build_extractor("z", cfg, backbone), tmp_path / "s.h5")
    store = TargetStore(tmp_path / "s.h5", allowed_ids=np.arange(8))
    assert len(store.rows(np.arange(8))) == 8
    with pytest.raises(LeakError, match="first: image 8"):
        store.rows(np.array([0, 8]))
    with pytest.raises(UserError, match="holds no image 77"):
        TargetStore(tmp_path / "s.h5").rows(np.array([77]))


class KilledError(Exception):
    """Stands for a kill."""


class Failing:
    """An extractor that fails at one image, and counts what it computes."""

    name, needs, shape = "z", "images", (5,)

    def __init__(self, fail_at_call: int = -1, value: float | None = None) -> None:
        self.fail_at_call, self.value, self.seen = fail_at_call, value, []

    def fingerprint(self) -> dict[str, Any]:
        return {"target": "failing"}

    def __call__(self, items: Items) -> NDArray[np.float32]:
        batch = items.images
        if self.fail_at_call == len(self.seen):
            raise KilledError
        self.seen.append(len(batch))
        features = batch.reshape(len(batch), -1)[:, :5].astype(np.float32)
        return features if self.value is None else np.full_like(features, self.value)


def test_interrupted_extraction_keeps_finished_batches(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    path, whole = tmp_path / "a.h5", tmp_path / "b.h5"
    first = Failing(fail_at_call=3)  # the reference images come first
    with pytest.raises(KilledError):
        fill_store(cfg, stimuli, first, path)
    assert not path.exists()  # the final name never holds an unfinished store
    second = Failing()
    assert fill_store(cfg, stimuli, second, path) == N_IMAGES - 6
    assert second.seen == [4, 3, 1]
    fill_store(cfg, stimuli, Failing(), whole)
    ids = stimuli.image_id
    np.testing.assert_array_equal(TargetStore(path).rows(ids), TargetStore(whole).rows(ids))


def test_truncated_partial_file_is_started_again(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    (tmp_path / ".a.h5.partial").write_bytes(b"not HDF5")
    assert fill_store(cfg, stimuli, Failing(), path) == N_IMAGES


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "of 3 of 3 images .0, 1, 2. are not finite"),
        (1e6, "float16", "overflow target.dtype=float16"),
        (3.0, "float32", "are the same for all 10 images"),
    ],
)
def test_features_without_information_are_refused(
    value: float, dtype: str, message: str, cfg: Config, stimuli: Stimuli, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fill_store(cfg, stimuli, Failing(value=value), tmp_path / "a.h5", dtype=dtype)
    assert not (tmp_path / "a.h5").exists()


def test_store_of_other_settings_is_refused(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    fill_store(cfg, stimuli, Failing(), tmp_path / "a.h5")
    with pytest.raises(
        UserError,
        match=r"made otherwise .*:\n  - dtype: float32 in the store, float16 now",
    ):
        fill_store(cfg, stimuli, Failing(), tmp_path / "a.h5", dtype="float16")


def test_missing_and_truncated_stores(cfg: Config, stimuli: Stimuli, tmp_path: Path) -> None:
    for data in ("scenes", "my-own-data"):
        with pytest.raises(UserError, match="Run: nd extract target=g"):
            TargetStore(tmp_path / f"{data}-g-0123456789ab.h5")
    path = tmp_path / "a.h5"
    fill_store(cfg, stimuli, Failing(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"not a whole HDF5 file|truncated"):
        TargetStore(path)


def test_full_disk_is_foreseen(cfg: Config, stimuli: Stimuli, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("nd.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match="GB are free"):
        fill_store(cfg, stimuli, Failing(), tmp_path / "a.h5")


def test_fingerprint_follows_settings_and_weights_but_not_sampling_dtype(cfg: Config, backbone: Backbone) -> None:
    path = store_path(cfg, "g")
    assert path.name.startswith("scenes-g-")
    assert store_path(replace(cfg, backbone=replace(cfg.backbone, dtype="bfloat16")), "g") == path
    assert store_path(with_fields(cfg, layers=[0, 1]), "g") != path
    assert store_path(with_fields(cfg, layers=[0, 1]), "z") == store_path(cfg, "z")
    assert store_path(replace(cfg, backbone=replace(cfg.backbone, tower_mean=[0.5] * 3)), "g") != path


@dataclass(frozen=True)
class Named:
    """Stimuli whose hash is their name."""

    name: str

    def hash_of(self, needs: str) -> str:
        return self.name


def test_fingerprint_follows_the_stimuli(cfg: Config, backbone: Backbone) -> None:
    extractor = build_extractor("z", cfg, backbone)
    a, b = (store_fingerprint(details_of(extractor, Named(name), "float32", "float32")) for name in "ab")
    assert a != b
