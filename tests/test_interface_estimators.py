"""The estimators: numbers of the mappers, manners of scikit-learn, and life without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_config import mapper_settings
from helpers_linear import noisy_brain, one_fold, package_predict
from sklearn.base import clone
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import nd
from nd.mappers.components import build_mapper

ALPHAS = [1.0, 30.0, 300.0, 3e3]
SINGLE = dict.fromkeys(  # asked for to 1e-7 whatever the type
    ["check_regressor_multioutput", "check_methods_sample_order_invariance", "check_methods_subset_invariance"],
    "predictions are float32, as the mappers compute them",
)


@pytest.fixture(scope="module")
def brain() -> tuple[Any, Any, Any, Any]:
    """Voxels and targets of 90 images, and of 30 others."""
    voxels, targets = noisy_brain(120, 60, 9)
    return voxels[:90], targets[:90], voxels[90:], targets[90:]


def mapped(brain: tuple[Any, ...], **fields: Any) -> Any:
    """Predictions of a mapper fitted on the first images, the others being its validation images."""
    voxels, targets, new, _ = brain
    mapper = build_mapper(mapper_settings(refit=False, **fields))
    mapper.fit(one_fold(np.concatenate([voxels, new]), np.concatenate([targets, brain[3]]), len(voxels)))
    return mapper.predict(new)


@pytest.mark.parametrize("settings", [{}, {"alpha_per": "column"}, {"intercept": False}, {"voxel_power": 1.0},
                                      {"rescale": "train"}], ids=str)  # fmt: skip
def test_ridge_over_folds_is_the_mapper_to_the_last_bit(brain: tuple[Any, ...], settings: dict[str, Any]) -> None:
    expected = mapped(brain, name="ridge", alphas=ALPHAS, folds=4, **settings)
    found = nd.Ridge(ALPHAS, folds=4, **settings).fit(*brain[:2])
    np.testing.assert_array_equal(found.predict(brain[2]), expected)


def test_a_single_penalty_is_taken_as_it_is(brain: tuple[Any, ...]) -> None:
    voxels, targets, new, _ = brain
    found = nd.Ridge([30.0]).fit(voxels, targets).predict(new)
    np.testing.assert_array_equal(found, mapped(brain, name="ridge", alphas=[30.0]))
    theirs = make_pipeline(StandardScaler(), TheirRidge(alpha=30.0)).fit(voxels.astype(float), targets)
    np.testing.assert_allclose(found, theirs.predict(new.astype(float)), atol=1e-4)


@pytest.mark.parametrize("n_feat", [5, 50, 500])
def test_fastl2lir_is_the_mapper_and_the_package(brain: tuple[Any, ...], n_feat: int) -> None:
    voxels, targets, new, _ = brain
    found = nd.FastL2LiR(n_feat, 0.5).fit(voxels, targets).predict(new)
    np.testing.assert_array_equal(found, mapped(brain, name="fastl2lir", n_feat=n_feat, penalty=0.5))
    theirs = package_predict(voxels, targets, new, min(n_feat, voxels.shape[1]), 0.5)
    np.testing.assert_allclose(found, theirs, atol=1e-4)


@pytest.mark.parametrize("estimator", [nd.Ridge(), nd.FastL2LiR()], ids=lambda one: type(one).__name__)
def test_manners_of_scikit_learn(estimator: Any) -> None:
    check_estimator(estimator, expected_failed_checks=SINGLE, on_skip=None)


@pytest.mark.parametrize("estimator", [nd.Ridge(), nd.FastL2LiR()], ids=lambda one: type(one).__name__)
def test_an_image_is_decoded_alike_in_any_company(brain: tuple[Any, ...], estimator: Any) -> None:
    voxels, targets, new, _ = brain
    fitted, order = clone(estimator).fit(voxels, targets), np.random.default_rng(0).permutation(len(new))
    together = fitted.predict(new)
    # In any order, a product of V terms is off by at most V roundings of |x| |w| (Cauchy and Schwarz)
    mean, deviation = voxels.mean(0), voxels.std(0)
    weights = fitted.predict(mean + np.diag(deviation)) - fitted.predict(mean[None])
    sizes = np.outer(np.linalg.norm((new - mean) / deviation, axis=1), np.linalg.norm(weights, axis=0)) + abs(together)
    bound = 2 * voxels.shape[1] * np.finfo(np.float32).eps * sizes.max()
    assert bound < 1e-3 * together.std()
    np.testing.assert_allclose(fitted.predict(new[order]), together[order], rtol=0, atol=bound)
    alone = np.concatenate([fitted.predict(row[None]) for row in new])
    np.testing.assert_allclose(alone, together, rtol=0, atol=bound)


def test_clone_pipeline_and_grid_search(brain: tuple[Any, ...]) -> None:
    voxels, targets, new, true = brain
    fitted = nd.FastL2LiR(n_feat=7).fit(voxels, targets)
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert not hasattr(again, "mapper_")
    search = GridSearchCV(
        make_pipeline(VarianceThreshold(), nd.Ridge(folds=3)), {"ridge__alphas": [[1e-3], [30.0], [1e8]]}, cv=3
    ).fit(voxels, targets)
    assert search.best_params_ == {"ridge__alphas": [30.0]}
    assert search.score(new, true) > 0.3
    counts = GridSearchCV(nd.FastL2LiR(), {"n_feat": np.array([5, 20])}, cv=3).fit(voxels, targets)
    assert counts.best_params_["n_feat"] in (5, 20)


def test_one_column_is_a_vector_and_columns_do_not_mix(brain: tuple[Any, ...]) -> None:
    voxels, targets, new, _ = brain
    one = nd.Ridge([30.0]).fit(voxels, targets[:, 3]).predict(new)
    assert one.shape == (30,)
    np.testing.assert_allclose(one, nd.Ridge([30.0]).fit(voxels, targets).predict(new)[:, 3], atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (nd.Ridge([]), "mapper.alphas"),
        (nd.Ridge([-1.0]), "positive numbers"),
        (nd.Ridge(folds=1), "2 or more folds"),
        (nd.Ridge(folds=1000), "cannot be cut from 90 images"),
        (nd.Ridge(rescale="test"), "'none' or 'train'"),
        (nd.Ridge(alpha_per="voxel"), "Allowed: group, column"),
        (nd.FastL2LiR(n_feat=0), "1 or more voxels"),
        (nd.FastL2LiR(penalty=0.0), "a positive penalty"),
        (nd.FastL2LiR(penalty="much"), "wanted a number"),
    ],
    ids=str,
)
def test_parameters_out_of_range(brain: tuple[Any, ...], estimator: Any, message: str) -> None:
    with pytest.raises(nd.UserError, match=message):
        estimator.fit(*brain[:2])


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import numpy as np, pytest, nd
from helpers_linear import noisy_brain
voxels, targets = noisy_brain(60, 30, 4)
ridge = nd.Ridge([30.0]).set_params(intercept=False)
assert ridge.get_params()["intercept"] is False and nd.Ridge.__mro__[-2].__module__ == "nd.interface.plain_estimator"
with pytest.raises(ValueError, match="not fitted"):
    ridge.predict(voxels)
with pytest.raises(ValueError, match="Invalid parameter 'alpha'"):
    ridge.set_params(alpha=1)
for wrong in (voxels[:50], voxels[:, :20], voxels[:, 0], voxels * np.nan):
    with pytest.raises(ValueError, match="has shape|columns|NaN"):
        ridge.fit(voxels, targets).predict(wrong) if len(wrong) == 60 else ridge.fit(wrong, targets)
with pytest.raises(ValueError, match="at least 2 rows"):
    ridge.fit(voxels[:1], targets[:1])
targets[:, 1] = 3
fitted = nd.FastL2LiR(10).fit(voxels, targets)
np.save(sys.argv[1], fitted.predict(voxels))
print(fitted.score(voxels, targets.astype(float)))
"""


@pytest.mark.slow
def test_without_scikit_learn(tmp_path: Path) -> None:
    file = tmp_path / "predicted.npy"
    command = [sys.executable, "-c", WITHOUT, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    voxels, targets = noisy_brain(60, 30, 4)
    targets[:, 1] = 3
    fitted = nd.FastL2LiR(10).fit(voxels, targets)
    np.testing.assert_array_equal(np.load(file), fitted.predict(voxels))
    assert float(said.stdout) == pytest.approx(fitted.score(voxels, targets.astype(float)), abs=1e-9)
