"""Published protocols: golden numbers on fixed images, and every difference between protocols moves one of them.

The networks are replaced by fixed arithmetic on what they see, so that resizing, layers, kinds and columns are tested
to the digit without weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.distance import correlation, cosine
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from nd.config import ProtocolConfig
from nd.errors import UserError
from nd.metrics import features
from nd.metrics.images import resize, to_float
from nd.metrics.measures import KINDS, MEASURES, by_view, columns, measures_of
from nd.metrics.networks import NETWORKS
from nd.metrics.protocol import check_number, describe, settings_hash, weights_found
from nd.metrics.score import score_images

ROOT = Path(__file__).parent.parent
PUBLISHED = ("brain_diffuser", "mindeye1", "mindeye2", "minddiffuser")
N, SIDE = 7, 75


def protocol(name: str, **changes: Any) -> ProtocolConfig:
    """A shipped protocol, on any number of small images and with random weights."""
    values = yaml.safe_load((ROOT / "conf" / "protocol" / f"{name}.yaml").read_text(encoding="utf-8"))
    return replace(ProtocolConfig(**values), **({"n_images": 0, "image_size": 40, "random_weights": True} | changes))


def waves(phase: float) -> np.ndarray:
    """Fixed images (N, SIDE, SIDE, 3) uint8 by a formula: coloured waves with a hard edge."""
    i, y, x, c = np.meshgrid(np.arange(N), np.arange(SIDE), np.arange(SIDE), np.arange(3), indexing="ij")
    wave = np.sin(0.13 * (i + 1) * x + 0.4 * c + phase) + np.cos(0.09 * (i + 2) * y - c + 2 * phase) + (x > 8 * i)
    return np.round(127.5 + 127.5 * np.clip(wave / 3, -1, 1)).astype(np.uint8)


class Arithmetic(nn.Module):
    """In place of every network: slopes, block means and channel statistics of what it sees."""

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        slopes = x_BCHW[..., 1:] - x_BCHW[..., :-1]
        blocks = nn.functional.adaptive_avg_pool2d(x_BCHW, 3)
        layers = {"features.4": slopes, "features.11": slopes.abs(), "avgpool": blocks, "embedding": blocks.square()}
        return {name: values.flatten(1) for name, values in layers.items()}


@pytest.fixture
def _arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "loaded", lambda name, folder, device: Arithmetic())


GOT: dict[str, dict[str, float]] = {}


def golden(cfg: ProtocolConfig) -> dict[str, float]:
    """Mean scores of the fixed images, of two repeats each, by the arithmetic in place of networks; each made once."""
    if str(cfg) not in GOT:
        images = np.stack([waves(2.1), waves(1.5)], 1)
        scored = score_images(images, waves(0), cfg).scores
        GOT[str(cfg)] = {name: float(values.mean()) for name, values in scored.items()}
    return GOT[str(cfg)]


GOLDEN: dict[str, dict[str, float]] = {
    "brain_diffuser": {
        "pixcorr": -0.284621,
        "ssim": -0.397256,
        "ssim_per_column": -0.340618,  # scikit-image 0.26, column by column, in float64
        "alexnet2_224_pil": 0.142857,
        "alexnet5_224_pil": 0.285714,
        "inception_224_pil": 0.738095,
        "clip_l14_224_pil": 0.714286,
        "effnet_b1v1_224_pil": 0.33148,
        "swav_224_pil": 0.33148,
    },
    "mindeye2": {
        "pixcorr": -0.278694,
        "ssim": -0.391916,
        "alexnet2_256": 0.142857,
        "alexnet5_256": 0.285714,
        "inception_342": 0.738095,
        "clip_l14_224": 0.714286,
        "effnet_b1v2_255": 0.333722,
        "swav_224": 0.33128,
    },
    "minddiffuser": {
        "pixcorr": -0.284621,
        "ssim": -0.397256,
        "clip_b32_cosine_224_pil": 0.873479,
    },
}
GOLDEN["mindeye1"] = GOLDEN["mindeye2"]


@pytest.mark.usefixtures("_arithmetic")
@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_numbers(name: str) -> None:
    got = golden(protocol(name))
    ssim = ["ssim", "ssim_per_column"] if name == "brain_diffuser" else ["ssim"]
    assert list(got) == ["pixcorr", *ssim, *protocol(name).measures]
    assert got == pytest.approx(GOLDEN[name], abs=1e-5)


@pytest.mark.usefixtures("_arithmetic")
@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"image_size": 50}, ["pixcorr", "ssim"]),
        ({"picture_size": 0}, ["pixcorr", "ssim"]),
        ({"resize_filter": "bicubic"}, ["pixcorr", "ssim"]),
        ({"resize_antialias": True}, ["pixcorr", "ssim"]),
        ({"resize_antialias": True, "resize_arithmetic": "bytes"}, ["pixcorr", "ssim"]),
        ({"aggregation": "each"}, ["pixcorr", "ssim", "swav_224"]),
        ({"ssim": "per_column"}, ["ssim"]),
        ({"identification": "row"}, ["alexnet2_256"]),
    ],
)
def test_every_setting_moves_a_number_and_the_hash(change: dict[str, Any], moved: list[str]) -> None:
    before, after = protocol("mindeye2"), protocol("mindeye2", **change)
    assert settings_hash(before) != settings_hash(after)
    one, other = golden(before), golden(after)
    for name in moved:
        assert name not in other or abs(one[name] - other[name]) > 1e-6, name
    untouched = one.keys() - set(moved) if change.keys() <= {"ssim", "image_size", "picture_size"} else set()
    assert {name: one[name] for name in untouched} == {name: other[name] for name in untouched}


@pytest.mark.usefixtures("_arithmetic")
def test_other_definitions_have_other_columns() -> None:
    assert "ssim" not in golden(protocol("mindeye2", ssim="per_column"))
    row = golden(protocol("mindeye2", identification="row"))
    assert [name for name in row if name.startswith("alexnet")] == ["alexnet2_256_row", "alexnet5_256_row"]
    assert "swav_224" in row, "a distance has no rule of identification"
    shared = set(golden(protocol("mindeye2"))) & set(golden(protocol("brain_diffuser")))
    assert shared == {"pixcorr", "ssim"}
    definitions = {str(replace(measure, name="")) for measure in MEASURES.values()}
    assert len(definitions) == len(MEASURES), "two names for one definition"


@pytest.mark.usefixtures("_arithmetic")
def test_scores_equal_other_libraries_on_the_same_features() -> None:
    cfg = protocol("mindeye2", measures=["swav_224", "clip_l14_cosine_224", "inception_342"])
    scored = score_images(waves(0.4)[:, None], waves(0), cfg).scores
    first = [resize(to_float(x), 256, "bilinear", False) for x in (waves(0.4), waves(0))]
    pixels = [resize(x, 40, "bilinear", False).permute(0, 2, 3, 1).double().numpy() for x in first]
    wanted = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*pixels, strict=True)]
    np.testing.assert_allclose(scored["pixcorr"], wanted, atol=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    wanted = [structural_similarity(rgb2gray(a), rgb2gray(b), **options) for a, b in zip(*pixels, strict=True)]
    np.testing.assert_allclose(scored["ssim"], wanted, atol=1e-5)
    for name, layer, distance in (("swav_224", "avgpool", correlation), ("clip_l14_cosine_224", "embedding", cosine)):
        view = MEASURES[name].view
        normalise = NETWORKS[view.network].normalise
        sides = [Arithmetic()(normalise(resize(x, 224, "bilinear", False)))[layer].double() for x in first]
        values = np.array([distance(a.numpy(), b.numpy()) for a, b in zip(*sides, strict=True)])
        np.testing.assert_allclose(scored[name], 1 - values if distance is cosine else values, atol=1e-5)


@pytest.mark.usefixtures("_arithmetic")
def test_features_of_the_stimuli_are_kept_by_view_and_one_network_is_there_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[str, int]] = []
    true_features = features.features

    def counted(images: np.ndarray, view: Any, folder: str = "", *_: Any) -> dict[str, Tensor]:
        passes.append((view.network, len(images)))
        return true_features(images, view, folder)

    for module in ("nd.metrics.features", "nd.metrics.score"):
        monkeypatch.setattr(f"{module}.features", counted)
    cfg = protocol("mindeye2")
    one = score_images(waves(0.4)[:, None], waves(0), cfg, cache=tmp_path)
    networks = [name for name, _ in passes]
    assert networks == sorted(networks, key=networks.index), "a network comes back after another one"
    assert [networks.count(name) for name in dict.fromkeys(networks)] == [2] * 5, "stimuli and reconstructions once"
    passes.clear()
    other = score_images(waves(0.4)[:, None], waves(0), cfg, cache=tmp_path)
    assert len(passes) == 5, "only the reconstructions are seen again"
    assert all(np.array_equal(one.scores[name], other.scores[name]) for name in one.scores)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.usefixtures("_arithmetic")
def test_constant_pictures_are_counted_and_fail_every_tie() -> None:
    images = waves(0)[:, None].copy()
    images[3] = 77
    scored = score_images(images, waves(0), protocol("mindeye2"))
    assert scored.n_constant == 1
    assert (scored.scores["pixcorr"][3], scored.scores["alexnet2_256"][3]) == (0, 0)
    assert scored.scores["pixcorr"][[0, 1, 2, 4, 5, 6]].min() == pytest.approx(1)
    assert all(np.isfinite(values).all() for values in scored.scores.values())


def test_tables_of_measures_are_whole() -> None:
    for name, measure in MEASURES.items():
        if measure.kind == "caption":  # judged by no network of images
            assert (columns()[name].better, columns()[name].chance) == ("higher", None)
            continue
        assert measure.kind in KINDS
        assert measure.kind == "pair" or measure.view.network in NETWORKS
        assert str(measure.view.size) in name
        assert ("_pil" in name) == (measure.view.arithmetic == "bytes")
        assert columns()[name].better == ("lower" if measure.kind in ("distance", "pair") else "higher")
        assert (columns()[name].chance is not None) == (measure.kind == "two_way") == (f"{name}_row" in columns())


def test_mindeye_and_brain_diffuser_differ_as_published() -> None:
    one, other = (measures_of(protocol(name)) for name in ("mindeye2", "brain_diffuser"))
    sizes = {view.network: view.size for view in by_view(one)}
    assert sizes == {
        "alexnet": 256, "inception_v3": 342, "clip_vit_l14": 224, "efficientnet_b1_v2": 255, "swav_resnet50": 224,
    }  # fmt: skip
    assert {view.size for view in by_view(other)} == {224}
    assert {view.antialias for view in by_view(one)} == {False}
    assert "efficientnet_b1_v1" in {view.network for view in by_view(other)}
    assert [name for name in one if "ssim" in name] == ["ssim"]
    assert [name for name in other if "ssim" in name] == ["ssim", "ssim_per_column"], "neither is the script's for sure"


def test_another_number_of_images_is_refused() -> None:
    cfg = protocol("mindeye2", n_images=1000)
    with pytest.raises(UserError, match=r"protocol mindeye2: 7 images were given, it is defined on 1000.*n_images=0"):
        score_images(waves(0)[:, None], waves(0), cfg)
    check_number(cfg, 1000)
    assert describe(protocol("mindeye2"))["name"].startswith("mindeye2-changed-"), "n_images=0 is a change"


def test_what_was_loaded_is_recorded_and_random_weights_mark_the_protocol(tmp_path: Path) -> None:
    cfg = protocol("mindeye2", n_images=1000, image_size=425)
    assert describe(cfg)["name"].startswith("mindeye2-changed-")
    assert describe(replace(cfg, random_weights=False, weights=str(tmp_path)))["name"] == "mindeye2"
    assert set(weights_found(cfg).values()) == {"random"}
    torch.save({"w": torch.ones(1)}, tmp_path / "clip_vit_b32.pth")
    found = weights_found(protocol("minddiffuser", weights=str(tmp_path), random_weights=False))
    assert list(found) == ["clip_vit_b32"]
    assert len(found["clip_vit_b32"]) == 12
    assert weights_found(ProtocolConfig())["efficientnet_lite0"] == "579344248a93"


def test_all_absent_weights_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("nd.metrics.score.by_pixels", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UserError) as caught:
        score_images(waves(0)[:, None], waves(0), protocol("mindeye2", random_weights=False))
    for title in ("AlexNet", "Inception-v3", "EfficientNet-B1 (V2)", "SwAV's ResNet-50", "CLIP ViT-L/14"):
        assert f"{title}. Needed" in str(caught.value)
    assert str(caught.value).count("protocol=nd (photographs) score with EfficientNet-Lite0") == 1


@pytest.mark.usefixtures("_arithmetic")
def test_a_damaged_file_of_features_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = MEASURES["swav_224"].view
    path = features.features_path(tmp_path, waves(0), view, features.RANDOM)
    path.write_bytes(b"broken")
    features.stimulus_features(waves(0), view, ["avgpool"], features.RANDOM, tmp_path)
    assert "damaged" in caplog.text
