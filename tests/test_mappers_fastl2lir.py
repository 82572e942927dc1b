"""FastL2LiR against the fastl2lir package and plain formulas; its storage, its checkpoint, its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from helpers_linear import noisy_brain, one_fold, package_fit, package_predict

from nd.config import MapperConfig
from nd.errors import UserError
from nd.mappers import arrays, normal_equations
from nd.mappers.base import Group
from nd.mappers.checkpoint import Origin, checkpoint_path, load, save
from nd.mappers.components import build_mapper
from nd.mappers.fastl2lir import FastL2LiR
from nd.mappers.normal_equations import Solution, select_and_solve

PENALTY = 0.15


def config(n_feat: int, **others: Any) -> MapperConfig:
    return mapper_settings(name="fastl2lir", n_feat=n_feat, penalty=PENALTY, **others)


def whole(solution: Solution, n_voxels: int) -> Any:
    """Coefficients (voxels, columns), zeros included."""
    if solution.voxels is None:
        return solution.weights.numpy().T
    weights = np.zeros((n_voxels, len(solution.weights)))
    weights[solution.voxels.numpy().T, np.arange(len(solution.weights))] = solution.weights.numpy().T
    return weights


def solved(voxels: Any, targets: Any, n_feat: int, penalty: float = PENALTY) -> tuple[Any, Any]:
    solution = select_and_solve(torch.from_numpy(voxels), torch.from_numpy(targets), n_feat, penalty)
    return whole(solution, voxels.shape[1]), solution.bias.numpy()


# ---- arrays as given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.15, 40.0])
@pytest.mark.parametrize("n_feat", [1, 12, 39, 40, 41])
@pytest.mark.parametrize("n", [25, 90])
def test_equals_the_package(n: int, n_feat: int, penalty: float) -> None:
    voxels, targets = noisy_brain(n, 40, 7)
    weights, bias = solved(voxels, targets, n_feat, penalty)
    wanted_weights, wanted_bias = package_fit(voxels, targets, n_feat, penalty)
    np.testing.assert_allclose(weights, wanted_weights, rtol=1e-5, atol=1e-5 * np.abs(wanted_weights).max())
    np.testing.assert_allclose(bias, wanted_bias, rtol=1e-5)


def test_solves_the_equations_of_the_voxels_that_correlate_most() -> None:
    voxels, targets = noisy_brain(60, 30, 4)
    weights, bias = solved(voxels, targets, 5)
    for j in range(4):
        r = [abs(np.corrcoef(voxels[:, i], targets[:, j])[0, 1]) for i in range(30)]
        best = np.argsort(r)[-5:]
        assert set(np.flatnonzero(weights[:, j])) == set(best)
        x = np.column_stack([voxels[:, best].astype(float), np.ones(60)])
        expected = np.linalg.solve(x.T @ x + PENALTY * np.eye(6), x.T @ targets[:, j])
        np.testing.assert_allclose([*weights[best, j], bias[j]], expected, rtol=1e-6)


def test_every_column_uses_exactly_so_many_voxels() -> None:
    weights, _ = solved(*noisy_brain(60, 50, 9), n_feat=13)
    assert ((weights != 0).sum(0) == 13).all()


@pytest.mark.parametrize("value", [0.0, 7.0, 1e6])
def test_constant_voxel_is_not_chosen(value: float) -> None:
    voxels, targets = noisy_brain(60, 20, 6)
    voxels[:, 4] = value
    weights, bias = solved(voxels, targets, 19)
    assert (weights[4] == 0).all()
    rest = np.delete(voxels, 4, axis=1)
    expected, expected_bias = package_fit(rest, targets, 19, PENALTY)
    np.testing.assert_allclose(np.delete(weights, 4, axis=0), expected, rtol=1e-5)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-5)


@pytest.mark.parametrize("n_feat", [8, 30])
def test_columns_solved_a_few_at_a_time(n_feat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = noisy_brain(50, 30, 11)
    expected, expected_bias = solved(voxels, targets, n_feat)
    monkeypatch.setattr(normal_equations, "BLOCK_NUMBERS", 50 * 4)
    weights, bias = solved(voxels, targets, n_feat)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-9)


@pytest.mark.parametrize("n_feat", [2, 3])
def test_penalty_lost_to_rounding(n_feat: int) -> None:
    alike = np.array([1e8, -1e8, 1e8, -1e8])
    voxels = np.column_stack([alike, alike, [1.0, 1, -1, -1]])
    with pytest.raises(UserError, match=r"mapper.penalty is too small beside the squares of the voxels"):
        solved(voxels, voxels, n_feat, 1e-9)


def test_systems_solved_together_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 30))
    matrix, right = x.T @ x + np.eye(30), rng.normal(size=(11, 7))
    places = np.stack([np.sort(rng.permutation(30)[:7]) for _ in range(11)])
    expected = [np.linalg.solve(matrix[np.ix_(one, one)], own) for one, own in zip(places, right, strict=True)]
    monkeypatch.setattr(normal_equations, "TOGETHER", 3 * 49)
    for solve in (normal_equations.solve_each, normal_equations.solve_batches):
        found = solve(*(torch.from_numpy(values) for values in (matrix, places, right)))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
        with pytest.raises(UserError, match=r"mapper.penalty is too small"):
            solve(*(torch.from_numpy(values) for values in (matrix - 1e3 * np.eye(30), places, right)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("n_feat", [20, 100])
def test_gpu_gives_what_the_cpu_gives(n_feat: int) -> None:
    voxels, targets = noisy_brain(150, 100, 40)
    cpu, gpu = (FastL2LiR(config(n_feat), torch.device(name)) for name in ("cpu", "cuda"))
    for mapper in (cpu, gpu):
        mapper.fit(one_fold(voxels, targets, 120))
    np.testing.assert_allclose(gpu.predict(voxels), cpu.predict(voxels), rtol=1e-4, atol=1e-4)


# ---- the mapper ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "n_feat"), [(60, 9), (60, 31), (60, 40), (60, 55), (30, 9), (30, 40)])
def test_predicts_what_the_package_predicts_from_z_scores(n: int, n_feat: int) -> None:
    voxels, targets = noisy_brain(n + 15, 40, 8, noise=3.0)
    mapper = FastL2LiR(config(n_feat, refit=False))
    mapper.fit(one_fold(voxels, targets, n))
    new = voxels[n:] + np.float32(0.2)
    expected = package_predict(voxels[:n], targets[:n], new, n_feat, PENALTY)
    assert np.abs(mapper.predict(new) - expected).max() < 1e-4 * np.abs(expected).max()


def test_refit_uses_training_and_validation_images() -> None:
    voxels, targets = noisy_brain(60, 40, 5, noise=3.0)
    mapper = FastL2LiR(config(10))
    mapper.fit(one_fold(voxels, targets, 45))
    np.testing.assert_allclose(mapper.predict(voxels), package_predict(voxels, targets, voxels, 10, PENALTY), atol=1e-4)
    assert mapper.details()["n_images"] == 60


@pytest.mark.parametrize("refit", [True, False])
def test_scores_are_of_validation_images_that_were_not_fitted_on(refit: bool) -> None:
    voxels, targets = noisy_brain(60, 40, 12, noise=4.0)
    mapper = FastL2LiR(config(10, refit=refit))
    mapper.fit(one_fold(voxels, targets, 45, (Group("one", 0, 4), Group("other", 4, 12))))
    predicted = package_predict(voxels[:45], targets[:45], voxels[45:], 10, PENALTY)
    r = np.array([np.corrcoef(predicted[:, j], targets[45:, j])[0, 1] for j in range(12)])
    details, mean = mapper.details(), targets[:45].mean(0)
    found = {group["name"]: group["scores"]["correlation"] for group in details["groups"]}
    assert found == pytest.approx({"one": r[:4].mean(), "other": r[4:].mean()}, abs=1e-4)
    assert details["scores"]["correlation"] == pytest.approx(r.mean(), abs=1e-4)
    share = ((predicted - targets[45:]) ** 2).sum() / ((targets[45:] - mean) ** 2).sum()
    np.testing.assert_allclose(mapper.state()["validation_correlation"], r, atol=1e-4)
    assert details["scores"]["unexplained"] == pytest.approx(share, rel=1e-4)


def test_validation_images_change_nothing_without_refit() -> None:
    voxels, targets = noisy_brain(60, 40, 5)
    one, other = FastL2LiR(config(10, refit=False)), FastL2LiR(config(10, refit=False))
    one.fit(one_fold(voxels, targets, 45))
    voxels[45:], targets[45:] = voxels[45:] * 3 + 1, -targets[45:]
    other.fit(one_fold(voxels, targets, 45))
    names = one.state().keys() - {"validation_correlation"}
    assert all(np.array_equal(one.state()[name], other.state()[name]) for name in names)
    assert not np.allclose(one.state()["validation_correlation"], other.state()["validation_correlation"], atol=0.1)


@pytest.mark.parametrize("n_feat", [6, 40])
def test_blocks_of_columns_change_nothing(n_feat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = noisy_brain(50, 30, 11)
    one, blocked = FastL2LiR(config(n_feat)), FastL2LiR(config(n_feat))
    one.fit(one_fold(voxels, targets, 40))
    monkeypatch.setattr(normal_equations, "BLOCK_NUMBERS", 50 * 3)
    blocked.fit(one_fold(voxels, targets, 40, (Group("a", 0, 5), Group("b", 5, 11))))
    np.testing.assert_allclose(blocked.predict(voxels), one.predict(voxels), rtol=1e-5, atol=1e-6)
    assert blocked.details()["scores"] == pytest.approx(one.details()["scores"], abs=1e-5)


def test_known_brain_is_recovered_and_shuffled_images_are_at_chance() -> None:
    voxels, targets = noisy_brain(400, 100, 10, noise=0.5)
    mapper = FastL2LiR(config(60))
    mapper.fit(one_fold(voxels, targets, 300))
    assert mapper.details()["scores"]["correlation"] > 0.95
    mapper.fit(one_fold(voxels, np.random.default_rng(3).permutation(targets), 300))
    assert abs(mapper.details()["scores"]["correlation"]) < 0.15
    assert mapper.details()["scores"]["identification"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("n_feat", [8, 29, 40])
def test_constant_voxels_and_constant_targets_do_no_harm(n_feat: int) -> None:
    voxels, targets = noisy_brain(60, 30, 6)
    voxels[:, 4], targets[:, 2] = 7.0, 1.5
    mapper = FastL2LiR(config(n_feat))
    mapper.fit(one_fold(voxels, targets, 45))
    predicted = mapper.predict(voxels)
    assert np.isfinite(predicted).all()
    np.testing.assert_array_equal(predicted[:, 2], 1.5)
    assert mapper.details()["scores"]["correlation"] > 0.5  # the constant column is not counted


# ---- storage ---------------------------------------------------------------------------------------------------------


def test_whichever_form_takes_fewer_bytes_is_stored() -> None:
    data = one_fold(*noisy_brain(60, 40, 8), 45)
    sizes = {}
    for n_feat in (19, 21, 40):
        mapper = FastL2LiR(config(n_feat))
        mapper.fit(data)
        state = mapper.state()
        sizes[n_feat] = sum(state[name].nbytes for name in ("voxels", "coefficients", "weights") if name in state)
    assert sizes == {19: 8 * 19 * 8, 21: 8 * 40 * 4, 40: 8 * 40 * 4}


@pytest.mark.parametrize("n_feat", [8, 30])
def test_columns_that_are_not_kept_are_zero_and_take_no_room(n_feat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, targets = noisy_brain(60, 30, 11, noise=3.0)
    groups = (Group("a", 0, 5), Group("b", 5, 8), Group("c", 8, 11))
    mask = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1], bool)
    everything, some = FastL2LiR(config(n_feat)), FastL2LiR(config(n_feat))
    everything.fit(one_fold(voxels, targets, 45, groups))
    some.keep_columns(mask)
    monkeypatch.setattr(normal_equations, "BLOCK_NUMBERS", 60 * 2)
    some.fit(one_fold(voxels, targets, 45, groups))
    predicted = some.predict(voxels)
    assert (predicted[:, ~mask] == 0).all()
    np.testing.assert_allclose(predicted[:, mask], everything.predict(voxels)[:, mask], rtol=1e-5, atol=1e-5)
    assert {len(some.state()[name]) for name in ("bias", "voxels", "weights") if name in some.state()} == {5}
    assert [(group["name"], group["n_columns"]) for group in some.details()["groups"]] == [("a", 3), ("c", 2)]
    r = np.where(mask, everything.state()["validation_correlation"], 0)
    np.testing.assert_allclose(some.state()["validation_correlation"], r, atol=1e-5)
    assert everything.kept is None
    restored = FastL2LiR.restore(config(n_feat), some.state(), some.details())
    np.testing.assert_array_equal(restored.kept, mask)


def test_large_coefficients_are_made_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, (voxels, _) = one_fold(*noisy_brain(60, 40, 8), 45), noisy_brain(60, 40, 8)
    inside, outside = FastL2LiR(config(10)), FastL2LiR(config(10))
    inside.fit(data, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    monkeypatch.setattr(arrays, "LARGE_BYTES", 300)
    outside.fit(data, tmp_path / "scratch")
    assert isinstance(outside.state()["coefficients"], np.memmap)
    assert sum(file.stat().st_size for file in (tmp_path / "scratch").iterdir()) == 8 * 10 * 8
    np.testing.assert_array_equal(outside.predict(voxels), inside.predict(voxels))


@pytest.mark.parametrize("n_feat", [9, 30])
@pytest.mark.parametrize("keep", [False, True])
def test_checkpoint_gives_back_the_mapper(n_feat: int, keep: bool, tmp_path: Path) -> None:
    origin = Origin(
        subject="subj01", roi="all", n_voxels=30, mask_hash="m", split_hash="s", fold=0, target="z",
        target_fingerprint="f",
    )  # fmt: skip
    mapper, path = FastL2LiR(config(n_feat)), checkpoint_path(tmp_path, 0)
    if keep:
        mapper.keep_columns(np.array([1, 0, 1, 0, 1], bool))
    mapper.fit(one_fold(*noisy_brain(60, 30, 5), 45))
    save(path, mapper, config(n_feat), origin, (5,))
    found = load(path, origin, "nd train")
    voxels = noisy_brain(8, 30, 5, seed=1)[0]
    np.testing.assert_array_equal(found.predict(voxels), mapper.predict(voxels))
    np.testing.assert_array_equal(found.scaler.transform(voxels), mapper.scaler.transform(voxels))
    assert found.details() == mapper.details()
    assert (found.kept is None) == (not keep)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_fewer_voxels_than_wanted_are_all_used(caplog: pytest.LogCaptureFixture) -> None:
    build_mapper(config(41)).fit(one_fold(*noisy_brain(60, 40, 5), 45))
    assert "mapper.n_feat is 41, but there are 40 voxels: all are used" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_feat": -1}, r"mapper.n_feat=-1: voxels for each column, 1 or more, are needed; 0: chosen"),
        ({"penalty": -1.0}, r"mapper.penalty=-1.0: a positive number is needed, or 0 \(chosen\)"),
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_mapper(mapper_settings(name="fastl2lir", **change))


@pytest.mark.parametrize("n_feat", [10, 40])
def test_too_little_memory_is_said_before_anything_is_done(n_feat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "free_bytes", lambda device: 10_000_000)
    with pytest.raises(
        UserError, match=r"about 0\.\d GB are needed on cpu, 0.0 GB are free: .* 40 voxels .*subject.roi"
    ):
        FastL2LiR(config(n_feat)).fit(one_fold(*noisy_brain(60, 40, 5), 45))


def test_memory_asked_for_covers_what_the_equations_hold() -> None:
    n_voxels = 15_724
    asked = normal_equations.equation_bytes(8859, n_voxels, 500, "cpu")
    held = 8 * n_voxels**2 + 8859 * n_voxels * 12  # products, voxels in both precisions
    assert held < asked < held + 1e9
    assert arrays.free_bytes(torch.device("cpu")) is None or arrays.free_bytes(torch.device("cpu")) > 0


def test_z_scores_make_scale_and_offset_of_targets_irrelevant() -> None:
    voxels, targets = noisy_brain(60, 40, 5, noise=3.0)
    one, other = FastL2LiR(config(10)), FastL2LiR(config(10))
    one.fit(one_fold(voxels, targets, 45))
    other.fit(one_fold(voxels, 5 * targets + 20, 45))
    np.testing.assert_allclose(other.predict(voxels), 5 * one.predict(voxels) + 20, atol=1e-4)
