"""How many voxels and which penalty FastL2LiR chooses, against an explicit loop over the fastl2lir package."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers_config import mapper_settings
from helpers_linear import noisy_brain, one_fold, package_predict

from nd.config.application import check, compose
from nd.errors import UserError
from nd.mappers import voxel_choice
from nd.mappers.fastl2lir import FastL2LiR
from nd.mappers.voxel_choice import choose

N_FEATS, PENALTIES = [6, 15, 200], [0.15, 15.0, 1500.0]


def left(truth: Any, predicted: Any, train: Any) -> float:
    """Share of the variance about the training mean that predictions leave, mean of the columns."""
    errors = np.square(predicted - truth).sum(0) / np.square(truth - train.mean(0, dtype=float)).sum(0)
    return float(errors.mean())


def test_every_setting_is_judged_as_the_package_fits_it() -> None:
    voxels, targets = noisy_brain(70, 40, 9, noise=3.0)
    found = choose(one_fold(voxels, targets, 50), N_FEATS, PENALTIES)
    assert [(one.n_feat, one.penalty) for one in found.tried] == [(n, p) for n in (6, 15, 40) for p in PENALTIES]
    for one in found.tried:
        predicted = package_predict(voxels[:50], targets[:50], voxels[50:], one.n_feat, one.penalty)
        assert one.unexplained == pytest.approx(left(targets[50:], predicted, targets[:50]), rel=1e-4)
    assert found.best.unexplained == min(one.unexplained for one in found.tried)
    assert len({one.unexplained for one in found.tried}) == 9


def test_columns_between_the_sampled_ones_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxel_choice, "SAMPLED", 3)
    voxels, targets = noisy_brain(60, 20, 9)
    few = choose(one_fold(voxels, targets[:, [0, 4, 8]], 40), N_FEATS, PENALTIES)
    assert choose(one_fold(voxels, targets, 40), N_FEATS, PENALTIES) == few


def test_the_mapper_is_fitted_with_what_was_chosen() -> None:
    voxels, targets = noisy_brain(70, 40, 9, noise=3.0)
    fold = one_fold(voxels, targets, 50)
    best = choose(fold, N_FEATS, PENALTIES).best
    asked = mapper_settings(name="fastl2lir", n_feat=0, penalty=0.0, n_feats=N_FEATS, penalties=PENALTIES)
    given = mapper_settings(name="fastl2lir", n_feat=best.n_feat, penalty=best.penalty)
    mappers = [FastL2LiR(config) for config in (asked, given)]
    for mapper in mappers:
        mapper.fit(fold)
    np.testing.assert_array_equal(*(mapper.predict(voxels) for mapper in mappers))
    assert mappers[0].details()["chosen"]["penalty"] == best.penalty
    assert "chosen" not in mappers[1].details()


def test_a_mapper_that_is_fitted_again_chooses_again() -> None:
    config = mapper_settings(name="fastl2lir", n_feat=0, penalty=0.0, n_feats=N_FEATS, penalties=PENALTIES)
    noisy, clear = (one_fold(*noisy_brain(70, 40, 9, noise=noise), 50) for noise in (30.0, 0.01))
    mapper = FastL2LiR(config)
    chosen = []
    for fold in (noisy, clear):
        mapper.fit(fold)
        chosen.append(mapper.details()["chosen"])
    assert chosen[0]["penalty"] > chosen[1]["penalty"]
    assert chosen[1]["unexplained"] == choose(clear, N_FEATS, PENALTIES).best.unexplained


def test_one_of_both_can_be_given() -> None:
    voxels, targets = noisy_brain(70, 40, 9, noise=3.0)
    mapper = FastL2LiR(mapper_settings(name="fastl2lir", n_feat=7, penalty=0.0, penalties=[0.1, 0.2]))
    mapper.fit(one_fold(voxels, targets, 50))
    assert [one["n_feat"] for one in mapper.details()["tried"]] == [7, 7]
    assert mapper.details()["chosen"]["at_end"]
    mapper = FastL2LiR(mapper_settings(name="fastl2lir", n_feat=0, penalty=0.2, n_feats=[3, 7]))
    mapper.fit(one_fold(voxels, targets, 50))
    assert [one["n_feat"] for one in mapper.details()["tried"]] == [3, 7]
    assert not mapper.details()["chosen"]["at_end"]


def test_without_validation_images_both_have_to_be_given() -> None:
    voxels, targets = noisy_brain(40, 10, 3)
    fold = one_fold(voxels, targets, 40)
    assert not len(fold.val_ids)
    with pytest.raises(UserError, match=r"choose on validation images, of which there are none\. Give both, or keep"):
        choose(replace(fold, val_voxels=voxels[:0]), N_FEATS, PENALTIES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("mapper.n_feat=-1", r"mapper\.n_feat: -1 was given, wanted 1 or more voxels for each column, or 0 \(chosen\)"),
        ("mapper.penalty=-1", r"mapper\.penalty: -1\.0 must be positive, or 0 \(chosen\)"),
        ("mapper.n_feat=0 mapper.n_feats=[0,5]", r"mapper\.n_feats: \[0, 5\] must hold one or more numbers of voxels"),
        ("mapper.penalty=0 mapper.penalties=[]", r"mapper\.penalties: \[\] must hold one or more positive numbers"),
    ],
)
def test_settings_that_cannot_be(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check("train", ["experiment=scenes", "table=", "target=z", "mapper=fastl2lir", *given.split()])


def test_lists_without_effect_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["experiment=scenes", "table=", "target=z", "mapper=fastl2lir"]
    check("train", [*given, "mapper.penalties=[1]", "mapper.n_feats=[9]"])
    assert "mapper.penalties" in (said := capsys.readouterr().err)
    assert "0 chooses" in said
    check("train", [*given, "mapper.penalties=[1]", "mapper.n_feats=[9]", "mapper.penalty=0", "mapper.n_feat=0"])
    assert capsys.readouterr().err == ""


def test_minddiffuser_chooses_and_its_presets_do_not() -> None:
    for method, chosen in (("minddiffuser", True), ("minddiffuser_paper", False), ("minddiffuser_released", False)):
        cfg = compose(["experiment=scenes", "table=", f"method={method}"])
        for target in ("z", "c", "g"):
            mapper = cfg.decoding(target).mapper
            assert (mapper.n_feat == 0 and mapper.penalty == 0) is chosen
