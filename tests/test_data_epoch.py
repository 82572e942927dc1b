"""The order of samples: every one exactly once, in near-equal steps, the same steps for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nd.data.epoch import OrderedPlan, PlanSampler, Pool, Step, TrainPlan, deal
from nd.errors import UserError


def pool(values: NDArray[np.int64]) -> Pool:
    return Pool(values, values)


def joined(parts: list[Step], name: str) -> list[int]:
    return np.concatenate([step.samples[name] for step in parts]).tolist()


@pytest.mark.parametrize("counts", [[10], [7, 7, 7], [100, 3, 0, 41], [1, 1, 1]])
@pytest.mark.parametrize("n_parts", [1, 2, 3, 8])
def test_dealt_parts_are_near_equal_both_ways(counts: list[int], n_parts: int) -> None:
    sizes = deal(np.array(counts), n_parts)
    assert sizes.sum(1).tolist() == counts
    assert np.ptp(sizes, axis=1).max() <= 1
    assert np.ptp(sizes.sum(0)) <= 1


def random_plan(rng: np.random.Generator) -> tuple[TrainPlan, dict[str, NDArray[np.int64]]]:
    values = {f"subj{k:02d}": rng.permutation(1000)[: rng.integers(20, 90)] for k in range(rng.integers(1, 5))}
    batch_size = int(rng.integers(4, 40))
    return TrainPlan({name: pool(v) for name, v in values.items()}, batch_size, int(rng.integers(99))), values


@pytest.mark.parametrize("case", range(12))
def test_an_epoch_has_every_sample_once_and_the_processes_of_a_step_have_what_one_has(case: int) -> None:
    rng = np.random.default_rng(case)
    plan, values = random_plan(rng)
    alone, total = list(plan.steps(3)), sum(map(len, values.values()))
    assert len(alone) == plan.n_steps() == -(-total // plan.batch_size)
    totals = [sum(len(part) for part in step.samples.values()) for step in alone]
    assert (max(totals) <= plan.batch_size, max(totals) - min(totals) <= 1) == (True, True)
    for name, own in values.items():
        sizes = [len(step.samples[name]) for step in alone]
        assert max(sizes) - min(sizes) <= 1
        assert sorted(joined(alone, name)) == sorted(own.tolist())
    for world in (2, 3, 4):
        if min(totals) < world:
            continue
        ranks = [list(plan.steps(3, rank, world)) for rank in range(world)]
        for k, step in enumerate(alone):
            shares = [sum(map(len, rank[k].samples.values())) for rank in ranks]
            assert min(shares) >= max(1, max(shares) - 1)
            np.testing.assert_allclose([rank[k].share for rank in ranks], np.array(shares) * world / sum(shares))
            for name in values:
                assert joined([rank[k] for rank in ranks], name) == step.samples[name].tolist()
                counts = tuple(len(rank[k].samples[name]) for rank in ranks)
                assert {rank[k].counts[name] for rank in ranks} == {counts}
                assert step.counts[name] == (sum(counts),)


def test_an_epoch_is_a_function_of_seed_and_epoch_and_each_subject_has_its_own() -> None:
    def order(seed: int, epoch: int, names: str = "ab") -> dict[str, list[int]]:
        plan = TrainPlan({name: pool(np.arange(50)) for name in names}, 10, seed)
        return {name: joined(list(plan.steps(epoch)), name) for name in names}

    assert order(1, 0) == order(1, 0)
    several = [order(1, 0)["a"], order(1, 0)["b"], order(1, 1)["a"], order(2, 0)["a"], order(0, 1)["a"]]
    assert len({tuple(o) for o in several}) == 5
    assert order(1, 0, "ca")["a"] == order(1, 0)["a"]  # whoever else is trained on
    # Pinned: another order would make a resumed run see samples twice.
    assert order(1, 0)["a"][:8] == [5, 21, 7, 30, 18, 13, 23, 11]


def test_one_random_trial_of_each_image_depends_on_seed_epoch_and_image_alone() -> None:
    rng = np.random.default_rng(0)
    image_id = np.sort(np.repeat(rng.permutation(500)[:200], 3))
    trials = Pool(rng.permutation(600), image_id, one_per_image=True)
    assert len(trials) == 200
    drawn = np.stack([trials.draw(5, epoch) for epoch in range(60)])
    by_image = trials.values.reshape(200, 3)
    choice = (by_image[None] == drawn[..., None]).argmax(-1)  # (epochs, images) 0, 1 or 2
    np.testing.assert_array_equal(np.take_along_axis(by_image, choice.T, 1).T, drawn)  # each a trial of its image
    assert np.abs(np.bincount(choice.ravel()) / choice.size - 1 / 3).max() < 0.02
    assert np.abs(np.corrcoef(choice[:-1].ravel(), choice[1:].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(trials.draw(5, 7), drawn[7])
    assert (trials.draw(6, 7) != drawn[7]).any()
    half = image_id >= np.unique(image_id)[100]  # fewer images: the same trial for those that stay
    fewer = Pool(trials.values[half], image_id[half], one_per_image=True)
    np.testing.assert_array_equal(fewer.draw(5, 7), drawn[7][100:])


@pytest.mark.parametrize("counts", [[23], [23, 9], [4, 0, 50]])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_processes_in_order_give_the_order_of_one_process(counts: list[int], batch_size: int) -> None:
    samples = {f"s{k}": np.arange(n) * 3 for k, n in enumerate(counts)}
    plan = OrderedPlan(samples, batch_size)
    assert plan.n_steps() == -(-sum(counts) // batch_size)
    for world in (1, 2, 3, 7):
        ranks = [list(plan.steps(0, rank, world)) for rank in range(world)]
        assert {len(rank) for rank in ranks} == {plan.n_steps(world)}
        assert min(sum(map(len, step.samples.values())) for rank in ranks for step in rank) >= 1
        for name, values in samples.items():
            assert [i for rank in ranks for i in joined(rank, name)] == values.tolist()


def test_too_many_processes_and_other_mistakes_are_named() -> None:
    few = TrainPlan({"a": pool(np.arange(5))}, 4, 0)
    assert few.n_steps(2) == 2
    with pytest.raises(UserError, match=r"5 training samples in 2 steps .* as few as 2 .* each of 3 processes"):
        few.n_steps(3)
    with pytest.raises(UserError, match="a batch_size of 6 or more, or at most 2 processes"):
        few.n_steps(3)
    assert TrainPlan({"a": pool(np.arange(5))}, 6, 0).n_steps(3) == 1  # as the message advised
    with pytest.raises(UserError, match="2 validation samples cannot be shared by 3 processes"):
        OrderedPlan({"a": np.arange(2)}, 4).n_steps(3)
    with pytest.raises(UserError, match="0 training samples"):
        PlanSampler(TrainPlan({"a": pool(np.arange(0))}, 4, 0))
    for batch_size in (0, -3):
        with pytest.raises(UserError, match=f"batch_size={batch_size}; wanted 1 or more"):
            TrainPlan({}, batch_size, 0)
        with pytest.raises(UserError, match=f"batch_size={batch_size}; wanted 1 or more"):
            OrderedPlan({}, batch_size)
    with pytest.raises(UserError, match="seed=-1; the order"):
        TrainPlan({}, 4, -1)
