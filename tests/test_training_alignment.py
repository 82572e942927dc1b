"""The aligned start of a subject's layer, against regressions written out and against a start from chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import N_TRAIN, N_VAL, SMALL, finetuned, pretrained, stage_of, truth_of
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from nd.config import Config
from nd.config.application import compose
from nd.data.subject import mean_betas
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network, predict_slices
from nd.mappers.statistics import TargetScale
from nd.mappers.training import alignment
from nd.mappers.training.alignment import FOLDS, SHARES, aligned_layer, shared_places
from nd.mappers.training.fit import Files
from nd.mappers.training.pretrained import Pretrained, load_shared
from nd.mappers.training.stage import Stage, align, anchors_of, others_of, train_stage
from nd.mappers.validation import target_scores


@pytest.fixture(scope="module")
def few(linear_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Pretrained]:
    """A subject with one session, and what the others taught."""
    long = ["training.pretrain_epochs=40", "network.subject_dropout=0.1", "training.contrast_weight=0"]
    cfg = compose([*linear_world, *SMALL, *long, "target=c", "subject.sessions=1", "training.batch_size=16"])
    return cfg, pretrained(cfg, tmp_path_factory.mktemp("few"), "c")


class Table:
    """Targets in memory; notes which images are asked for."""

    def __init__(self, values_NP: np.ndarray) -> None:
        self.values, self.size = values_NP.astype(np.float32), values_NP.shape[1]
        self.asked: set[int] = set()

    def columns(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        self.asked |= set(ids.tolist())
        return self.values[ids, start:stop]


def test_shared_places_are_kernel_ridge_from_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two targets with several parts, standardised; the penalty is the best over five folds of the anchors."""
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(2, 3, (60, 10)), "b": rng.normal(-1, 0.2, (60, 7))}
    tables = {name: Table(table) for name, table in values.items()}
    scales = {name: TargetScale.fit(table, np.arange(40)) for name, table in tables.items()}
    slices = [
        TargetSlice("a_0", "a", 0, 4, (2, 2)),
        TargetSlice("a_1", "a", 4, 10, (3, 2)),
        TargetSlice("b", "b", 0, 7, (1, 7)),
    ]
    anchor_ids, ids = rng.permutation(40)[:33], np.array([50, 3, 59, 50])
    joined = np.concatenate([(values[n] - scales[n].mean) / scales[n].scale for n in ("a", "b")], 1)
    anchors = joined[anchor_ids] @ rng.normal(size=(17, 5)) + 2 * rng.normal(size=(33, 5)) + 7
    monkeypatch.setattr(alignment, "BLOCK_NUMBERS", 3 * (len(anchor_ids) + len(ids)))  # several blocks
    for table in tables.values():
        table.asked.clear()
    found = shared_places(torch.from_numpy(anchors).float(), anchor_ids, ids, slices, dict(tables), scales)

    x, held = joined[anchor_ids], joined[ids]
    largest = np.linalg.svd(x, compute_uv=False)[0] ** 2
    fold = np.arange(len(x)) % FOLDS

    def fitted(rows: np.ndarray, penalty: float) -> Any:
        mean = anchors[rows].mean(0)
        model = KernelRidge(alpha=penalty, kernel="linear").fit(x[rows], anchors[rows] - mean)
        return lambda at: model.predict(at) + mean

    errors = {
        share: sum(
            ((fitted(fold != k, share * largest)(x[fold == k]) - anchors[fold == k]) ** 2).sum() for k in range(FOLDS)
        )
        for share in SHARES
    }
    best = min(errors, key=errors.__getitem__)
    assert SHARES[0] < best < SHARES[-1]
    np.testing.assert_allclose(found.numpy(), fitted(np.full(len(x), True), best * largest)(held), rtol=1e-4, atol=1e-4)
    assert all(table.asked == {*anchor_ids.tolist(), *ids.tolist()} for table in tables.values())  # and no others


@pytest.mark.parametrize("n_voxels", [12, 90])
def test_aligned_layer_is_ridge_with_the_penalty_of_the_validation_images(n_voxels: int) -> None:
    rng = np.random.default_rng(n_voxels)
    x, held = (rng.normal(0.3, 1, (n, n_voxels)).astype(np.float32) for n in (50, 20))
    truth = rng.normal(size=(n_voxels, 4))
    y, y_held = (rows @ truth + 3 * rng.normal(size=(len(rows), 4)) + 5 for rows in (x, held))
    weight, bias = aligned_layer(x, torch.from_numpy(y).float(), held, torch.from_numpy(y_held).float())
    largest = np.linalg.svd(x - x.mean(0), compute_uv=False)[0] ** 2
    models = [Ridge(alpha=share * largest).fit(x, y) for share in SHARES]
    best = min(models, key=lambda model: float(((model.predict(held) - y_held) ** 2).sum()))
    assert models[0] is not best
    np.testing.assert_allclose(weight.numpy(), best.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), best.intercept_, rtol=1e-4, atol=1e-4)


def started(cfg: Config, start: Pretrained, *, aligned: bool) -> tuple[Stage, Network]:
    stage = stage_of(cfg, "c")
    network = stage.network()
    load_shared(Path("start"), network, start.weights)
    if aligned:
        align(stage, network, start)
    return stage, network.eval()


def unexplained(cfg: Config, start: Pretrained, stage: Stage, network: Network) -> float:
    ((subject, fold),) = stage.subjects
    data = stage.data()
    data.setup()
    voxels = torch.from_numpy(data.scalers[subject.name].transform(mean_betas(subject, fold.val)))
    with torch.no_grad():
        predicted = predict_slices(network, {subject.name: voxels}, torch.from_numpy(fold.val), 0)["c"].flatten(1)
    scale = start.scales["c"]
    whole = predicted * torch.from_numpy(scale.scale) + torch.from_numpy(scale.mean)
    return target_scores(whole, torch.from_numpy(fold.val), truth_of(cfg, "c"), scale)["unexplained"]


def test_aligned_start_beats_chance_before_any_training(few: tuple[Config, Pretrained]) -> None:
    cfg, start = few
    assert start.details["scores"]["c"]["unexplained"] < 0.8  # the others taught something
    by_chance = unexplained(cfg, start, *started(cfg, start, aligned=False))
    aligned = unexplained(cfg, start, *started(cfg, start, aligned=True))
    assert by_chance > 1  # worse than the mean
    assert aligned < 0.8


def test_aligned_layer_is_only_the_subjects(few: tuple[Config, Pretrained]) -> None:
    """What the others taught stays as it is, and nothing is drawn."""
    cfg, start = few
    stage, network = started(cfg, start, aligned=True)
    for name, value in network.state_dict().items():
        assert ("subject_layers" in name) or torch.equal(value, start.weights[name]), name
    assert len(stage.train_ids) < N_TRAIN - N_VAL  # one session of two
    again = started(cfg, start, aligned=True)[1]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_fine_tuning_starts_where_it_is_told(few: tuple[Config, Pretrained], tmp_path: Path) -> None:
    """With a learning rate of next to nothing, the result is the start: aligned, or from chance."""
    cfg, start = few
    for align_it in (True, False):
        still = compose([*cfg.overrides, f"training.align={str(align_it).lower()}", "training.finetune_lr=1e-12"])
        trained = finetuned(still, tmp_path / str(align_it), "c", start=(Path("start"), start))
        wanted = started(cfg, start, aligned=align_it)[1]
        for name, value in trained.network.state_dict().items():
            torch.testing.assert_close(value, wanted.state_dict()[name], rtol=1e-6, atol=1e-7)
        assert trained.details["lr"] == 1e-12
        assert trained.scales is start.scales


def test_anchors_are_the_mean_of_the_subjects_layers(linear_world: list[str], tmp_path: Path) -> None:
    """Over those that saw the image, of mean responses scaled as in training."""
    cfg = compose([*linear_world, *SMALL, "target=c", "training.pretrain_epochs=1"])
    stage = Stage(cfg, others_of(cfg, 0), stage_of(cfg, "c").stores, 0)
    trained = train_stage(stage, Files(tmp_path, 0), stage.network(), stage.scales(), 1, 1e-3, False)
    assert trained is not None
    ids, anchors = anchors_of(stage, trained)
    assert ids.tolist() == stage.train_ids.tolist()
    total = 0.0
    for subject, _ in stage.subjects:
        layer = trained.network.trunk("c").subject_layers[subject.name]
        scaled = trained.data.scalers[subject.name].transform(mean_betas(subject, ids))
        total = total + scaled @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(anchors["c"].numpy(), total / 2, rtol=1e-4, atol=1e-5)


def test_few_anchors_are_spread_over_all_images(
    few: tuple[Config, Pretrained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nd.mappers.training.alignment.MOST_ANCHORS", 7)
    cfg = compose([*few[0].overrides, "training.pretrain_epochs=1"])
    start = pretrained(cfg, tmp_path, "c")
    assert len(start.anchor_ids) == 7
    assert start.anchors["c"].shape == (7, 16)
    assert np.isin(start.anchor_ids, start.seen).all()
    assert np.diff(start.anchor_ids).min() > 3
