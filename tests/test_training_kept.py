"""What training keeps and shows: weights, scores, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import N_VAL, SMALL, Weights, curve_of, finetuned, linear_target, truth_of
from pytorch_lightning import Callback

import nd.mappers.training.callbacks as callbacks
from nd.config.application import compose
from nd.mappers.network.network import predict_slices
from nd.mappers.validation import target_scores


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    return [*linear_world, *SMALL, "target=c", "trainer.checkpoint_minutes=0"]


# ---- what is kept --------------------------------------------------------------------------------------------------


def scored(monkeypatch: pytest.MonkeyPatch, unexplained: list[float]) -> None:
    """Give each further validation of a training its score."""
    left = iter(unexplained)

    def next_score(*_: Any) -> dict[str, dict[str, float]]:
        return {"c": {"unexplained": next(left), "correlation": 0.1, "identification": 0.5}}

    monkeypatch.setattr(callbacks, "score_held", next_score)


@pytest.mark.parametrize(("keep", "epoch"), [("best", 1), ("last", 5)])
def test_best_and_last_weights(
    given: list[str], keep: str, epoch: int, tmp_path: Path, watched: list[Callback], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of those with the smallest unexplained variance, or the last; both as they were then."""
    scored(monkeypatch, [0.9, 0.5, 0.7, 0.5, 0.8, 0.6])
    copies = Weights()
    watched.append(copies)
    more = ["training.validate_every=1", "training.epochs=6", f"training.keep={keep}"]
    trained = finetuned(compose([*given, *more]), tmp_path, "c")
    assert trained.details["epoch"] == epoch
    assert trained.details["scores"] == curve_of(tmp_path)[epoch]["val"]
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, copies.copies[3 * (epoch + 1) - 1][name]), name
    assert not torch.equal(copies.copies[5]["heads.c.tokens.weight"], copies.copies[-1]["heads.c.tokens.weight"])


def test_last_epoch_is_validated_whatever_its_number(given: list[str], tmp_path: Path) -> None:
    cfg = compose([*given, "training.validate_every=3", "training.epochs=5", "training.keep=last"])
    trained = finetuned(cfg, tmp_path, "c")
    assert [bool(line["val"]) for line in curve_of(tmp_path)] == [False, False, True, False, True]
    assert trained.details["scores"] == curve_of(tmp_path)[-1]["val"]
    rare = finetuned(compose([*given, "training.validate_every=50"]), tmp_path / "rare", "c")
    assert rare.details["epoch"] == 3
    assert rare.details["scores"]["c"]


@pytest.mark.parametrize(("patience", "n_epochs"), [(0, 14), (1, 6), (2, 12), (3, 14)])
def test_patience_ends_training_and_keeps_the_best(
    given: list[str], patience: int, n_epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in validations, here of every second epoch, without progress over the best one."""
    scored(monkeypatch, [0.5, 0.4, 0.45, 0.3, 0.3, 0.31, 0.2])
    more = ["training.validate_every=2", "training.epochs=14", f"training.patience={patience}"]
    trained = finetuned(compose([*given, *more]), tmp_path, "c")
    assert len(curve_of(tmp_path)) == n_epochs == trained.details["epochs"]
    assert trained.details["epoch"] == {0: 13, 1: 3, 2: 7, 3: 13}[patience]
    assert trained.details["steps"] == 3 * n_epochs


def test_curve_holds_the_scores_of_what_is_predicted(given: list[str], tmp_path: Path) -> None:
    """The last line's are those that the kept network gets when it is asked again."""
    cfg = compose([*given, "training.keep=last", "network.prior=true", "network.predict=prior"])
    trained = finetuned(cfg, tmp_path, "c")
    batch = next(iter(trained.data.val_dataloader()))
    assert len(batch) == N_VAL
    voxels = {name: part.voxels for name, part in batch.subjects.items()}
    predicted = predict_slices(trained.network, voxels, batch.image_id, cfg.seed)["c"].flatten(1)
    scale = trained.scales["c"]
    whole = predicted * torch.from_numpy(scale.scale) + torch.from_numpy(scale.mean)
    found = curve_of(tmp_path)[-1]["val"]["c"]
    assert target_scores(whole, batch.image_id, truth_of(cfg, "c"), scale) == pytest.approx(found, abs=1e-5)
    true = linear_target("c", batch.image_id.numpy())
    error, size = ((whole.numpy() - true) ** 2).sum(), ((true - scale.mean) ** 2).sum()
    assert found["unexplained"] == pytest.approx(error / size, rel=1e-3)
