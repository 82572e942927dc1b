"""The selection of well-decoded images: its accuracy against numpy by hand, what is selected, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_config import method_settings
from numpy.typing import NDArray

from nd.config import Config
from nd.config.rules import contradictions
from nd.errors import UserError
from nd.evaluation import well_decoded as module
from nd.evaluation.scores import one_metric
from nd.evaluation.well_decoded import accuracies, spread_of, well_decoded

TRAIN, TEST = np.arange(40), np.arange(40, 48)
Values = dict[str, NDArray[np.float32]]


def values() -> Values:
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(0, 30, 60), rng.uniform(0.1, 8, 60)
    return {name: (mean + scale * rng.normal(size=(48, 60))).astype(np.float32) for name in ("c", "g")}


class Store:
    """Stands in for a target store."""

    def __init__(self, true: NDArray[np.float32], allowed: NDArray[np.int64] | None) -> None:
        self.true, self.allowed, self.size = true, allowed, true.shape[1]

    def columns(self, ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        assert self.allowed is None or set(ids) <= set(self.allowed), "test images in the statistics would be a leak"
        return self.true[ids, start:stop]

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.columns(ids, 0, self.size)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Values:
    """Decoded c and g of the test images, which a test may change."""
    true, noise = values(), np.random.default_rng(1)
    found = {name: one[TEST] + one.std(0) * noise.normal(size=(8, 60)) * 0.3 for name, one in true.items()}
    found = {name: one.astype(np.float32) for name, one in found.items()}
    training = SimpleNamespace(fold_of=lambda image: 0, ids=lambda fold: TRAIN)
    rows = {int(image): row for row, image in enumerate(TEST)}
    predicted = SimpleNamespace(rows=lambda name, ids: found[name][[rows[i] for i in ids]])
    monkeypatch.setattr(module, "TrainingImages", lambda cfg: training)
    monkeypatch.setattr(module, "PredictedFeatures", lambda path: predicted)
    monkeypatch.setattr(module, "found", lambda cfg, verb: SimpleNamespace(output=Path))
    monkeypatch.setattr(module, "learned_store", lambda cfg, name: name)
    monkeypatch.setattr(module, "TargetStore", lambda name, allowed_ids=None: Store(true[name], allowed_ids))
    monkeypatch.setattr(module, "AT_ONCE", 3)
    return found


def cfg(**fields: object) -> Config:
    one = Config(method=method_settings("minddiffuser", targets=["z", "c", "g"]))
    return replace(one, protocol=replace(one.protocol, **({"min_decoding": 0.3} | fields)))


def test_statistics_over_parts_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 7)
    true = values()["c"]
    mean, std = spread_of(Store(true, TRAIN), TRAIN)  # type: ignore[arg-type]
    np.testing.assert_allclose(mean, true[TRAIN].mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(std, true[TRAIN].std(0, dtype=np.float64), rtol=1e-5)


def test_accuracy_is_the_correlation_of_standardised_numbers_that_were_decoded() -> None:
    rng = np.random.default_rng(2)
    mean, std = rng.normal(0, 50, 30), rng.uniform(1, 5, 30)
    true, decoded = (mean + std * rng.normal(size=(4, 30)) for _ in range(2))
    std[7], mean[7] = 0, 3  # a constant number, such as those of the first token
    decoded[:, 11:20] = 0  # numbers that a mapper leaves out
    used = np.r_[0:7, 8:11, 20:30]
    wanted = [
        np.corrcoef(((t - mean) / np.where(std, std, 1))[used], ((d - mean) / np.where(std, std, 1))[used])[0, 1]
        for t, d in zip(true, decoded, strict=True)
    ]
    np.testing.assert_allclose(accuracies(decoded, true, mean, std), wanted, rtol=1e-6)
    shared = np.tile(mean, (4, 1)) + 1e-3 * rng.normal(size=(4, 30))
    assert np.abs(accuracies(shared, true, mean, std)).max() < 0.8, "what all images share is not decoded"


def test_an_image_counts_by_its_worst_target(decoded: Values) -> None:
    one = well_decoded(cfg(), TEST.astype(np.int32))
    assert one.rows.tolist() == list(range(8))
    decoded["g"][2] = decoded["g"][3]  # another image's structure
    decoded["c"][5] = decoded["c"][4]  # another image's caption
    found = well_decoded(cfg(), TEST.astype(np.int32))
    assert found.rows.tolist() == [0, 1, 3, 4, 6, 7]
    assert (found.summary["n"], found.summary["of"], found.summary["share"]) == (6, 8, 0.75)
    assert found.summary["images"] != one.summary["images"]
    by_c = well_decoded(cfg(decoding_targets=["c"]), TEST.astype(np.int32))
    assert by_c.rows.tolist() == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.usefixtures("decoded")
def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"min_decoding=0\.999: 0 of 8 images .*the best has 0\.9"):
        well_decoded(cfg(min_decoding=0.999), TEST.astype(np.int32))


def test_columns_of_a_selection_carry_its_name() -> None:
    column = one_metric("two_way_low_decoded", np.array([0.5, 1.0, 0.75]), 50)
    assert (column["chance"], column["better"]) == (0.5, "higher")
    assert one_metric("clip_b32_cosine_224_pil_decoded", np.ones(3), 50)["chance"] is None


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (cfg(min_decoding=1.0), r"protocol\.min_decoding: 1\.0 lies outside"),
        (cfg(decoding_targets=["vdvae"]), r"method \w+ does not decode \['vdvae'\]"),
        (replace(cfg(), features="oracle"), r"features=oracle decodes nothing"),
    ],
)
def test_selections_that_cannot_be_made_are_named(one: Config, problem: str) -> None:
    assert contradictions(cfg()) == []
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError("\n".join(contradictions(one)))
