"""mapper=cycle: shapes, three stages that each lower their loss, images without voxels, settings, and a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_commands import succeed
from helpers_config import mapper_settings
from numpy.typing import NDArray

from nd.config.application import compose
from nd.data.prepared import images_without_voxels, open_subject, split_of
from nd.errors import LeakError, UserError
from nd.files import read_json
from nd.mappers.base import FoldData, Group
from nd.mappers.checkpoint import Origin, checkpoint_path, load, save
from nd.mappers.cycle import mapper as cycle_mapper
from nd.mappers.cycle.mapper import Cycle, as_maps, flattened, map_shape
from nd.mappers.cycle.networks import MapsToVoxels, VoxelsToMaps
from nd.mappers.folds import fold_data, predict_fold
from nd.mappers.ridge import Ridge

N_TRAIN, N_VAL, N_TEST, N_OTHERS, V, SIDE = 120, 30, 60, 200, 40, 8
FEW = {"encode_steps": 100, "decode_steps": 50, "cycle_steps": 75, "channels": 8, "voxel_dropout": 0.1, "rate": 3e-3}


class InMemory:
    """Targets by image id, all but some (``Columns``)."""

    def __init__(self, values: NDArray[np.float32], hidden: NDArray[np.int32]) -> None:
        self.values, self.size, self.hidden, self.read = values, values.shape[1], set(hidden.tolist()), set[int]()

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        assert not self.hidden & {int(i) for i in ids}
        self.read |= {int(i) for i in ids}
        return self.values[ids, start:stop]


@pytest.fixture(scope="module")
def world() -> tuple[FoldData, NDArray[np.float32], NDArray[np.float32]]:
    """Smooth maps of three colours and voxels that look at places of them, with noise; test voxels and maps."""
    random = np.random.default_rng(0)
    n = N_TRAIN + N_VAL + N_TEST + N_OTHERS
    coarse = torch.from_numpy(random.random((n, 3, 3, 3)).astype(np.float32))
    maps = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    flat = flattened(maps).numpy()
    voxels = (flat - flat.mean(0)) @ random.standard_normal((flat.shape[1], V)).astype(np.float32)
    voxels += 0.7 * voxels.std(0) * random.standard_normal(voxels.shape).astype(np.float32)
    ids = np.arange(n, dtype=np.int32)
    train, val, test, others = np.split(ids, np.cumsum([N_TRAIN, N_VAL, N_TEST]))
    targets, group = InMemory(flat, test), (Group("all", 0, flat.shape[1]),)
    data = FoldData(voxels[train], voxels[val], train, val, targets, group, unlabelled_ids=others)
    return data, voxels[test], flat[test]


def fitted(data: FoldData, **changed: Any) -> Cycle:
    mapper = Cycle(mapper_settings("cycle", **(FEW | changed)))
    mapper.fit(data)
    return mapper


@pytest.fixture(scope="module")
def whole(world: Any) -> Cycle:
    """All three stages on everything there is."""
    return fitted(world[0])


def correlation(predicted: NDArray[np.float32], true: NDArray[np.float32], mean: NDArray[np.float32]) -> float:
    return float(np.mean([np.corrcoef(p - mean, t - mean)[0, 1] for p, t in zip(predicted, true, strict=True)]))


@pytest.mark.parametrize(("side", "colours"), [(64, 1), (8, 3), (28, 1)])
def test_maps_keep_their_places_and_networks_their_shapes(side: int, colours: int) -> None:
    flat = torch.arange(2 * side * side * colours).view(2, -1).float()
    assert map_shape(side * side * colours) == (side, colours)
    maps = as_maps(flat, side, colours)
    assert maps.shape == (2, colours, side, side)
    assert maps[1, colours - 1, 2, 3] == flat[1, (2 * side + 3) * colours + colours - 1]
    assert torch.equal(flattened(maps), flat)
    assert MapsToVoxels(side, colours, 5, 4)(maps / maps.max()).shape == (2, 5)
    assert VoxelsToMaps(side, colours, 5, 4, 0.0)(torch.rand(2, 5)).shape == maps.shape


def test_a_target_that_is_no_map_is_refused() -> None:
    with pytest.raises(UserError, match=r"square maps, and a target of 24 numbers is none. Give mapper=ridge"):
        map_shape(24)


def test_every_stage_lowers_its_loss_and_maps_are_decoded(world: Any, whole: Cycle) -> None:
    (data, test, true), mapper = world, whole
    stages = mapper.details()["stages"]
    assert list(stages) == ["encode", "decode", "cycle"]
    for stage, outcome in stages.items():
        assert outcome["after"] < outcome["before"], stage
        assert outcome["steps"] > 0
    assert stages["encode"]["after"] < 0.9  # of a variance of 1: noise alone has .33
    assert stages["cycle"]["before"] == stages["decode"]["after"]
    assert (mapper.details()["n_images"], mapper.details()["n_unlabelled"]) == (N_TRAIN, N_OTHERS)
    mean = data.targets.values[:N_TRAIN].mean(0)
    found = correlation(mapper.predict(test), true, mean)
    assert found > 0.6
    assert correlation(mapper.predict(test[::-1].copy()), true, mean) < 0.2


def test_without_the_third_stage_it_is_the_first_two(world: Any, whole: Cycle, monkeypatch: pytest.MonkeyPatch) -> None:
    data, test, _ = world
    two = fitted(data, cycle_steps=0)
    assert not np.array_equal(two.predict(test), whole.predict(test))
    stopped: list[NDArray[np.float32]] = []

    def nothing(encoder: Any, decoder: Any, *rest: Any) -> Any:
        stopped.append(decoder.coarse.weight.detach().numpy().copy())
        return cycle_mapper.Outcome(0.0, 0.0, 0)

    monkeypatch.setattr(cycle_mapper, "cycle", nothing)
    after_two = fitted(data, encode_steps=1)
    assert np.array_equal(stopped[0], two.state()["decoder.coarse.weight"])
    assert np.array_equal(after_two.predict(test), two.predict(test))
    assert two.details()["n_unlabelled"] == 0


def test_images_without_voxels_are_seen_only_where_asked_for(world: Any) -> None:
    data, test, _ = world
    few = replace(data, train_voxels=data.train_voxels[:40], train_ids=data.train_ids[:40])
    short = {"encode_steps": 5, "decode_steps": 5, "cycle_steps": 5, "rate": 1e-2}
    with_them = fitted(few, **short)
    assert set(data.unlabelled_ids.tolist()) <= data.targets.read
    data.targets.read.clear()
    without = fitted(few, **short, unlabelled=False)
    assert not set(data.unlabelled_ids.tolist()) & data.targets.read
    assert without.details()["n_unlabelled"] == 0
    assert not np.array_equal(with_them.predict(test), without.predict(test))


def test_the_same_seed_gives_the_same_decoder_whatever_was_drawn_before(world: Any) -> None:
    data, test, _ = world
    short = {"encode_steps": 5, "decode_steps": 5, "cycle_steps": 5, "rate": 1e-2}
    first = fitted(data, **short).predict(test)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert np.array_equal(fitted(data, **short).predict(test), first)
    assert torch.equal(torch.random.get_rng_state(), before), "nothing of the caller's generator is used"
    assert not np.array_equal(fitted(data, **short, seed=1).predict(test), first)


def test_a_checkpoint_predicts_the_same(world: Any, tmp_path: Path) -> None:
    data, test, _ = world
    mapper = fitted(data, encode_steps=5, decode_steps=5, cycle_steps=5)
    origin = Origin(
        subject="s", roi="early", n_voxels=V, mask_hash="m", split_hash="h", fold=0, target="colour",
        target_fingerprint="f",
    )  # fmt: skip
    save(tmp_path / "fold.safetensors", mapper, mapper.config, origin, (SIDE, SIDE, 3))
    again = load(tmp_path / "fold.safetensors", origin, "nd train")
    assert np.array_equal(again.predict(test), mapper.predict(test))
    one_by_one = np.concatenate([again.predict(row[None]) for row in test[:5]])
    np.testing.assert_allclose(one_by_one, mapper.predict(test)[:5], atol=1e-5)
    assert again.predict(test[:0]).shape == (0, SIDE * SIDE * 3)


def test_spread_is_about_the_mean_of_the_training_maps(world: Any, tmp_path: Path) -> None:
    """What the decoder makes of mean voxels is another map."""
    data, test, _ = world
    mapper, mean = fitted(data, encode_steps=5, decode_steps=5, cycle_steps=5), data.targets.values[:N_TRAIN].mean(0)
    assert np.abs(mapper.predict(mapper.scaler.mean[None])[0] - mean).max() > 0.01
    origin = Origin(
        subject="s", roi="early", n_voxels=V, mask_hash="m", split_hash="h", fold=0, target="colour",
        target_fingerprint="f",
    )  # fmt: skip
    path = checkpoint_path(tmp_path, 0)
    path.parent.mkdir()
    save(path, mapper, mapper.config, origin, (SIDE, SIDE, 3))
    found = predict_fold(tmp_path, origin, test, "nd train", spread=2.0).reshape(len(test), -1)
    np.testing.assert_allclose(found, mean + 2 * (mapper.predict(test) - mean), atol=1e-5)


def test_a_rate_that_is_too_large_is_said(world: Any) -> None:
    with pytest.raises(
        UserError, match=r"loss of stage 'encode' is (nan|inf) in step \d+ of 50. Give a smaller mapper"
    ):
        fitted(world[0], encode_steps=50, rate=1e4)


# ---- which images have no voxels ------------------------------------------------------------------------------------


def test_sessions_left_out_leave_images_without_voxels(linear_world: list[str]) -> None:
    every = compose(linear_world)
    assert images_without_voxels(every).size == 0  # all training images have some
    cfg = replace(every, subject=replace(every.subject, sessions=1))
    own, whole = split_of(cfg).folds[0], split_of(every).folds[0]
    found = images_without_voxels(cfg)
    assert found.size
    assert np.array_equal(found, np.setdiff1d(whole.train, own.train))
    assert not np.intersect1d(found, np.concatenate([whole.val, whole.test, own.seen])).size


def test_targets_of_test_images_stay_out_of_reach(linear_world: list[str]) -> None:
    cfg = compose([*linear_world, "target=z"])
    from nd.targets.store import store_path

    own = split_of(cfg).folds[0]
    data = fold_data(cfg, open_subject(cfg), own, store_path(cfg), own.train[:3])
    with pytest.raises(LeakError):
        data.targets.columns(own.test[:1], 0, 2)


# ---- settings and a whole run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["target=c", "mapper=cycle"],
            "cycle decodes maps, targets edge, colour, pixels; c is none. Give mapper=",
        ),
        (["target=edge", "mapper=cycle", "mapper.rate=0"], "mapper.rate: 0.0 must be positive"),
        (["target=edge", "mapper=cycle", "mapper.voxel_dropout=1"], r"voxel_dropout: 1.0 lies outside \[0, 1\)"),
        (["target=edge", "mapper=cycle", "mapper.decode_steps=0"], "decode_steps: 0 was given, wanted 1 or more"),
        (["target=edge", "mapper=cycle", "mapper.cycle_steps=-1"], "cycle_steps: -1 was given, wanted 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(["method=vae", "method.targets=[edge]", "method.generator=nearest_image", *given])


def test_a_ridge_is_the_reference_that_the_networks_come_near(world: Any, whole: Cycle) -> None:
    """Linear maps and Gaussian noise are what ridge is best at."""
    data, test, true = world
    ridge = Ridge(mapper_settings("ridge", alphas=[1.0, 10.0, 100.0, 1000.0]))
    ridge.fit(data)
    mean = data.targets.values[:N_TRAIN].mean(0)
    assert correlation(whole.predict(test), true, mean) > correlation(ridge.predict(test), true, mean) - 0.1


def test_train_and_predict_as_a_user_runs_them(tmp_path: Path) -> None:
    given = ["experiment=scenes", "debug=fast", "table=", "method=souldiffuser", "trainer.progress=false"]
    sizes = ["data.n_train=40", "data.n_val=8", "data.subjects=[subj01]", "training.pretrain=false"]
    for verb in (["prepare"], ["extract", "target=edge"], ["train", "target=edge"]):
        done = succeed(*verb, *given, *sizes, cwd=tmp_path)
    assert "edge-cycle" in done.out
    (scores,) = tmp_path.rglob("scores.json")
    (fold,) = read_json(scores)["folds"]
    assert set(fold["stages"]) == {"encode", "decode", "cycle"}
    with pytest.raises(AssertionError, match=r"ROI of subj01\.h5 'erly'"):
        succeed("train", "target=edge", *given, *sizes, "method.targets.edge.roi=erly", cwd=tmp_path)
