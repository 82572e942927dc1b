"""Metric functions against independent implementations, and the properties each must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import correlation as scipy_correlation
from scipy.spatial.distance import cosine as scipy_cosine
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torch import Tensor

from nd.errors import UserError
from nd.metrics import identification
from nd.metrics.correlation import feature_distance, pearson, pixcorr
from nd.metrics.identification import correlation_matrix, equal_rows, two_way_identification
from nd.metrics.images import check_images, is_constant, resize, to_float
from nd.metrics.repeats import SIMILARITIES, consistencies
from nd.metrics.ssim import ssim


def pictures(n: int, size: int = 28, seed: int = 0) -> Tensor:
    """Smooth random RGB images (n, 3, size, size) in [0, 1]."""
    coarse = torch.rand(n, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return resize(coarse, size, "bicubic", antialias=True)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_loops(pred: np.ndarray, true: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Two-way identification written out: for each reconstruction, over each wrong stimulus."""
    n, shares = len(pred), []
    for j in range(n):
        own = np.corrcoef(true[j], pred[j])[0, 1]
        others = [i for i in range(n) if i != j and (groups is None or groups[i] == groups[j])]
        wins = [float(np.corrcoef(true[i], pred[j])[0, 1] < own) for i in others]
        shares.append(np.mean(wins) if wins else np.nan)
    return np.array(shares)


# ---- PixCorr and distances


def test_pixcorr_equals_corrcoef() -> None:
    x, y = pictures(5), pictures(5, seed=1)
    wanted = [np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(pixcorr(x, y), wanted, atol=1e-6)


def test_pixcorr_is_best_for_equal_pictures_and_ignores_contrast_and_brightness() -> None:
    x = pictures(4)
    torch.testing.assert_close(pixcorr(x, x), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(pixcorr(0.3 * x + 0.2, x), torch.ones(4, dtype=torch.float64))


def test_constant_picture_correlates_zero_not_nan() -> None:
    grey = torch.full((2, 3, 28, 28), 0.3)
    assert pixcorr(grey, pictures(2)).tolist() == [0.0, 0.0]
    assert is_constant(torch.cat([grey, pictures(1)])).tolist() == [True, True, False]


def test_feature_distance_equals_scipy() -> None:
    x, y = rows(6, 50), rows(6, 50, seed=1)
    wanted = [scipy_correlation(a.double(), b.double()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(feature_distance(x, y), wanted, atol=1e-6)
    np.testing.assert_allclose(feature_distance(x, x), np.zeros(6), atol=1e-12)


def test_correlation_refuses_other_shapes_and_nan() -> None:
    with pytest.raises(UserError, match=r"\(3, 5\) against \(4, 5\).*same images in the same order"):
        pearson(rows(3, 5), rows(4, 5))
    with pytest.raises(UserError, match="1 values are NaN or infinite"):
        pearson(
            rows(3, 5),
            rows(3, 5)
            .index_fill(0, torch.tensor([1]), 1)
            .index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(torch.nan)),
        )


# ---- SSIM


def by_skimage(x: Tensor, y: Tensor, channel_axis: int | None = None) -> float:
    grey = [rgb2gray(image.permute(1, 2, 0).double().numpy()) for image in (x, y)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return float(structural_similarity(*grey, channel_axis=channel_axis, **settings))


@pytest.mark.parametrize("size", [11, 28, 64, 65])
def test_ssim_equals_skimage(size: int) -> None:
    x, y = pictures(3, size), pictures(3, size, seed=1)
    np.testing.assert_allclose(ssim(x, y), [by_skimage(a, b) for a, b in zip(x, y, strict=True)], atol=1e-9)


def test_ssim_of_photographs_is_two_dimensional() -> None:
    from skimage.data import astronaut

    x = to_float(astronaut()[None, :256, :256])
    y = resize(resize(x, 32, "bilinear", True), 256, "bilinear", True)
    value = float(ssim(x, y))
    assert value == pytest.approx(by_skimage(x[0], y[0]), abs=1e-9)
    by_columns = by_skimage(x[0], y[0], channel_axis=-1)  # what multichannel=True meant in scikit-image 0.17
    assert by_columns > value + 0.03
    assert float(ssim(x, y, "per_column")) == pytest.approx(by_columns, abs=1e-9)


@pytest.mark.parametrize("size", [11, 28, 65])
def test_ssim_per_column_equals_skimage_with_columns_as_channels(size: int) -> None:
    x, y = pictures(3, size), pictures(3, size, seed=1)
    wanted = [by_skimage(a, b, channel_axis=-1) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(x, y, "per_column"), wanted, atol=1e-9)
    with pytest.raises(UserError, match=r"unknown windows of SSIM 'columns'.*Allowed: 2d, per_column"):
        ssim(x, y, "columns")


def test_ssim_is_one_for_equal_pictures_and_needs_eleven_pixels() -> None:
    x = pictures(2)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    with pytest.raises(UserError, match=r"\(10, 10\) pixels; its window needs at least 11"):
        ssim(x[..., :10, :10], x[..., :10, :10])


# ---- two-way identification


@pytest.mark.parametrize("d", [7, 300])
def test_two_way_equals_loops(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "CHUNK", 64)  # several chunks, the last one short
    true = rows(15, d) + 5
    pred = true + 2 * rows(15, d, seed=1)
    got = two_way_identification(pred, true)
    np.testing.assert_allclose(got, by_loops(pred.double().numpy(), true.double().numpy()), atol=1e-12)


def test_correlation_matrix_equals_corrcoef(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "CHUNK", 64)
    true, pred = rows(6, 200) + 3, rows(6, 200, seed=1)
    wanted = np.corrcoef(true.double(), pred.double())[:6, 6:]
    np.testing.assert_allclose(correlation_matrix(true, pred), wanted, atol=1e-6)


def test_two_way_is_column_wise() -> None:
    true, pred = rows(30, 20), rows(30, 20, seed=1)
    pred[0] = pred[0] + 100 * true[0]  # one reconstruction wins everything; stimulus 0 is no harder for the others
    shares = two_way_identification(pred, true)
    assert shares[0] == 1
    np.testing.assert_allclose(shares[1:], two_way_identification(rows(30, 20, seed=1), true)[1:])


@pytest.mark.parametrize("n", [2, 15])
def test_two_way_by_rows_equals_loops(n: int) -> None:
    true = rows(n, 9) + 5
    pred = true + 2 * rows(n, 9, seed=1)
    r = np.corrcoef(true.double(), pred.double())[:n, n:]
    wanted = [np.mean([r[i, j] < r[i, i] for j in range(n) if j != i]) for i in range(n)]
    np.testing.assert_allclose(two_way_identification(pred, true, rule="row"), wanted)


def test_the_two_rules_of_identification_differ() -> None:
    true, pred = rows(30, 20), rows(30, 20, seed=1)
    pred[0] = pred[0] + 100 * true[0]
    by_row, by_column = (two_way_identification(pred, true, rule=rule) for rule in ("row", "column"))
    assert by_row[0] == by_column[0] == 1
    assert not torch.equal(by_row, by_column)
    with pytest.raises(UserError, match=r"unknown rule of identification 'rows'\. Did you mean 'row'"):
        two_way_identification(pred, true, rule="rows")


def test_two_way_by_rows_fails_ties_and_constant_reconstructions() -> None:
    true = rows(9, 50)
    pred = true.clone()
    pred[2], pred[7] = 0.5, pred[4]
    shares = two_way_identification(pred, true, rule="row")
    assert shares[2] == 0, "its own reconstruction is constant: it cannot win, although others correlate negatively"
    assert shares[4] == pytest.approx(7 / 8), "its equal ties"
    assert (shares[[0, 1, 3, 5, 6, 8]] == 1).all()


def test_two_way_of_equal_features_is_one_and_of_unrelated_ones_a_half() -> None:
    true = rows(300, 40)
    assert two_way_identification(true, true).min() == 1
    share = two_way_identification(rows(300, 40, seed=1), true).mean()
    assert abs(float(share) - 0.5) < 3 * np.sqrt(1 / 12 / 300)  # a rank among 300 is nearly uniform


def test_two_way_of_one_picture_for_all_is_exactly_a_half() -> None:
    true = rows(40, 30)
    shares = two_way_identification(true.mean(0, keepdim=True).expand(40, -1), true)
    assert float(shares.mean()) == pytest.approx(0.5, abs=1e-12)
    assert sorted(shares.tolist()) == pytest.approx([k / 39 for k in range(40)])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_two_way_of_constant_rows_fails_all_ties(value: float) -> None:
    true = rows(10, 1000)
    pred = true.clone()
    pred[3] = value
    shares = two_way_identification(pred, true)
    assert shares[3] == 0
    assert shares.isfinite().all()
    assert (np.delete(shares.numpy(), 3) == 1).all()


def test_two_way_ties_of_equal_stimuli_fail() -> None:
    true = rows(9, 5000)
    true[4] = true[7]
    shares = two_way_identification(true + 0.1 * rows(9, 5000, seed=1), true)
    assert shares[4] == shares[7] == pytest.approx(7 / 8)
    assert equal_rows(true).tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 8]


def test_rounding_does_not_decide_between_equal_stimuli() -> None:
    r = torch.tensor([[0.9, 0.2, 0.1], [0.2, 0.8, 0.8 - 1e-7], [0.1, 0.8 - 1e-7, 0.8]], dtype=torch.float64)
    wins = identification.wins_over(r, torch.tensor([0, 1, 1]))
    assert wins.tolist() == [[False, True, True], [True, False, False], [True, False, False]]


def test_rows_that_agree_only_in_part_are_not_taken_for_twins() -> None:
    true = torch.zeros(4, 1000)
    true[:, 1] = torch.arange(4.0)
    assert equal_rows(true).tolist() == [0, 1, 2, 3]


def test_two_way_within_groups_equals_loops() -> None:
    groups = torch.tensor([6, 6, 9, 9, 9, 6, 3])
    true, pred = rows(7, 12), rows(7, 12, seed=1)
    wanted = by_loops(pred.double().numpy(), true.double().numpy(), groups.numpy())
    np.testing.assert_allclose(two_way_identification(pred, true, groups), wanted)
    assert np.isnan(wanted[6]), "alone in its group: no comparison was made"


def test_two_way_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="1 image given, at least 2"):
        two_way_identification(rows(1, 4), rows(1, 4))
    with pytest.raises(UserError, match=r"reconstructions\): 1 values are NaN"):
        two_way_identification(
            rows(3, 4).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(torch.nan)), rows(3, 4)
        )
    with pytest.raises(UserError, match=r"\(3, 4\) against \(3, 5\)"):
        two_way_identification(rows(3, 4), rows(3, 5))


# ---- consistency


def test_consistency_is_the_mean_over_pairs() -> None:
    repeats = torch.stack([pictures(4, seed=s) for s in range(3)], 1)
    for name, similarity in (("pixcorr", pixcorr), ("ssim", ssim)):
        pairs = [similarity(repeats[:, a], repeats[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        torch.testing.assert_close(consistencies(repeats, name)[f"consistency_{name}"], sum(pairs) / 3)


def test_feature_consistency_equals_scipy_cosine() -> None:
    features = rows(6, 8).reshape(3, 2, 8)
    wanted = [1 - scipy_cosine(a.double(), b.double()) for a, b in features]
    np.testing.assert_allclose(consistencies(features, "feature")["consistency_feature"], wanted, atol=1e-6)


def test_consistency_of_equal_repeats_is_one_and_needs_two() -> None:
    same = pictures(3)[:, None].expand(-1, 4, -1, -1, -1)
    for name in SIMILARITIES:
        found = consistencies(same, name)[f"consistency_{name}"]
        torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64))
    with pytest.raises(UserError, match="1 repeat per image, at least 2"):
        consistencies(same[:, :1], "pixcorr")


# ---- images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), "RGB images .* Repeat the channel"),
        (np.zeros((2, 8, 8, 1), np.uint8), "RGB images .* Repeat the channel"),
        (np.zeros((2, 3, 8, 8), np.float32), "channels last"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), "384 pixels are NaN"),
        (np.full((2, 8, 8, 3), 200.0, np.float32), "from 200 to 200.*Divide 0-255 values by 255"),
        (np.full((2, 8, 8, 3), -0.1, np.float32), "from -0.1"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64 pixels"),
    ],
)
def test_bad_pictures_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=f"mine: .*{message}"):
        check_images(images, "mine")


def test_uint8_and_float_pictures_are_the_same() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    torch.testing.assert_close(to_float(images), to_float((images / 255).astype(np.float32)))
    assert to_float(images).shape == (2, 3, 5, 5)


@pytest.mark.parametrize("arithmetic", ["floats", "bytes"])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_constant_pictures_stay_constant_when_resized(method: str, arithmetic: str) -> None:
    grey = torch.arange(1, 250.0)[:, None, None, None].expand(-1, 3, 15, 15) / 255
    assert is_constant(resize(grey, 11, method, True, arithmetic)).all(), "rounding would be correlated with pictures"
    assert is_constant(resize(grey, 40, method, True, arithmetic)).all()


def test_resize_says_its_filter_and_keeps_what_has_the_size() -> None:
    x = pictures(1, 28)
    assert resize(x, 28, "bilinear", True) is x
    assert not torch.equal(resize(x, 14, "bilinear", True), resize(x, 14, "bilinear", False))
    with pytest.raises(UserError, match=r"unknown resize filter 'bilinaer'\. Did you mean 'bilinear'"):
        resize(x, 14, "bilinaer", True)
