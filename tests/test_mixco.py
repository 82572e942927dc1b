"""MixCo: drawn within each subject whatever the number of processes, and labels that say what was mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from torch import Tensor

from nd.data.batch import Batch, SubjectBatch
from nd.mappers.network.draws import Draws
from nd.mappers.training.mixco import Mix, draw_mix, mix_labels, mix_rows, mix_targets, mixed_voxels

SIZES = (5, 1, 0, 7)
FIRST = (0, 5, 6, 6)


def drawn(sizes: tuple[int, ...] = SIZES, select: float = 0.5, step: int = 0, beta: float = 0.15) -> Mix:
    draws = Draws(3, 1, step, torch.arange(sum(sizes)), sum(sizes))
    return draw_mix(draws, sizes, beta, select)


def given(partner: list[int], first: list[int], beta: list[float]) -> Mix:
    own = torch.tensor(beta)
    return Mix(torch.tensor(partner), torch.tensor(first), own, own < 1)


def test_partners_are_a_permutation_within_each_subject() -> None:
    for step in range(20):
        mix = drawn(step=step)
        for first, size in zip(FIRST, SIZES, strict=True):
            assert sorted(mix.partner[first : first + size].tolist()) == list(range(first, first + size))
            assert mix.first[first : first + size].tolist() == [first] * size
    found = [tuple(drawn((3,), step=step).partner.tolist()) for step in range(600)]
    counts = [found.count(order) for order in set(found)]
    assert len(counts) == 6
    assert min(counts) > 60  # of 100 expected


def test_draws_follow_their_distributions() -> None:
    mix = drawn((40_000, 50_000), select=0.3)
    assert mix.selected.float().mean() == pytest.approx(0.3, abs=0.01)
    assert (mix.beta[~mix.selected] == 1).all()
    points = np.linspace(0.001, 0.999, 99)  # nearer to 1 float32 is too coarse for beta .15
    for beta, found in ((0.15, mix.beta[mix.selected]), (2.0, drawn((20_000,), 1, beta=2).beta)):
        below = (found.numpy()[:, None] <= points).mean(0)
        np.testing.assert_allclose(below, beta_distribution(beta, beta).cdf(points), atol=0.015)
    assert drawn((5000,), 1, beta=1e-3).beta.isfinite().all()
    assert not drawn(select=0).selected.any()
    assert drawn(select=1).selected.all()
    assert (mix.partner.dtype, mix.beta.dtype, mix.selected.dtype) == (torch.int64, torch.float32, torch.bool)


def test_a_step_s_mix_depends_on_seed_epoch_and_step_and_not_on_whose_rows_are_asked_for() -> None:
    def mix(seed: int, epoch: int, step: int, rows: list[int]) -> list[list[float]]:
        found = draw_mix(Draws(seed, epoch, step, torch.tensor(rows), 13), SIZES, 0.15, 0.5)
        return [found.partner.tolist(), found.beta.tolist()]

    assert mix(3, 1, 0, [0, 1, 5]) == mix(3, 1, 0, [2, 3, 4, 6])
    others = [mix(3, 1, 0, [0]), mix(4, 1, 0, [0]), mix(3, 2, 0, [0]), mix(3, 1, 1, [0])]
    assert all(a != b for k, a in enumerate(others) for b in others[:k])
    # Pinned: another order would make a resumed run mix other rows.
    assert mix(3, 1, 0, [0])[0][:6] == [4, 2, 1, 3, 0, 5]


def voxels(sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    """A different number of voxels for every subject."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.normal(size=(n, 3 + k)).astype(np.float32)) for k, n in enumerate(sizes)]


@pytest.mark.parametrize("own", [slice(0, 7), slice(2, 5), slice(7, 7)])
def test_rows_are_mixed_with_their_partner_s(own: slice) -> None:
    mix, values = drawn(select=0.7), voxels()[3]
    found = mix_rows(values, mix, 6, own)
    assert found.shape == (own.stop - own.start, 6)
    for row, mixed in zip(range(own.start, own.stop), found, strict=True):
        share = float(mix.beta[6 + row])
        wanted = share * values[row].double() + (1 - share) * values[int(mix.partner[6 + row]) - 6].double()
        torch.testing.assert_close(mixed.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[~mix.selected[6:][own]], values[own][~mix.selected[6:][own]])


def test_a_batch_is_mixed_subject_by_subject_and_left_as_it_was() -> None:
    mix, values = drawn(select=0.7), voxels()
    parts = {str(k): SubjectBatch(v, torch.arange(len(v)), {}, (len(v),)) for k, v in enumerate(values)}
    batch, before = Batch(parts), [v.clone() for v in values]
    found = mixed_voxels(batch, mix)
    assert list(found) == list(parts)
    for k, (first, size) in enumerate(zip(FIRST, SIZES, strict=True)):
        assert torch.equal(found[str(k)], mix_rows(values[k], mix, first, slice(0, size)))
        assert torch.equal(values[k], before[k])
    assert not torch.equal(found["3"], values[3])


def test_targets_are_mixed_as_their_voxels_are() -> None:
    mix, targets = drawn(select=0.7), torch.randn(13, 2, 3)
    rows = torch.tensor([6, 12, 0])
    for row, found in zip(rows.tolist(), mix_targets(targets, mix, rows), strict=True):
        share = mix.beta[row]
        torch.testing.assert_close(found, share * targets[row] + (1 - share) * targets[mix.partner[row]])


# ---- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(5))
def test_labels_are_what_was_mixed_for_every_subject(step: int) -> None:
    """Rows of one-hot voxels say by themselves what is in them."""
    mix = drawn(select=0.7, step=step)
    labels = mix_labels(mix)
    for first, size in zip(FIRST, SIZES, strict=True):
        own = labels[first : first + size]
        torch.testing.assert_close(
            own[:, first : first + size], mix_rows(torch.eye(size), mix, first, slice(0, size)), rtol=0, atol=1e-6
        )
        assert own.sum() == pytest.approx(size), "nothing in the columns of other subjects"
    torch.testing.assert_close(labels.sum(1), torch.ones(13))
    diagonal = labels.diagonal()
    assert (diagonal[~mix.selected] == 1).all()
    fixed = mix.partner == torch.arange(13)
    assert fixed[5]  # alone of its subject
    torch.testing.assert_close(diagonal[fixed], torch.ones(int(fixed.sum())))


# Two subjects of 3 rows. Row 0: its own partner, mixed. Row 1 with row 2. Row 2 left alone. Row 3 with row 4, row 4
# with row 5, row 5 with row 3 but left alone.
SIX = given([0, 2, 1, 4, 5, 3], [0, 0, 0, 3, 3, 3], [0.9, 0.8, 1.0, 0.7, 0.6, 1.0])


def test_labels_by_hand() -> None:
    wanted = torch.eye(6)
    wanted[1, 1], wanted[1, 2] = 0.8, 0.2
    wanted[3, 3], wanted[3, 4] = 0.7, 0.3
    wanted[4, 4], wanted[4, 5] = 0.6, 0.4
    torch.testing.assert_close(mix_labels(SIX), wanted)


def test_released_labels_have_both_slips() -> None:
    wanted = torch.diag(SIX.beta)
    wanted[0, 0] = 0.1  # 1 - beta overwrites
    wanted[1, 2] = 0.2  # right: the first subject
    wanted[2, 1] = 0
    wanted[3, 1] = 0.3  # place 1 among the subject's rows, taken as column 1
    wanted[4, 2] = 0.4
    wanted[5, 0] = 0
    torch.testing.assert_close(mix_labels(SIX, "released"), wanted)
    alone = given([0, 1], [0, 0], [1.0, 0.8])
    torch.testing.assert_close(mix_labels(alone, "released"), torch.diag(torch.tensor([0.0, 0.2])))
    torch.testing.assert_close(mix_labels(alone), torch.eye(2))


def test_both_variants_agree_for_one_subject_without_fixed_points() -> None:
    mix = given([1, 2, 0], [0, 0, 0], [0.3, 1.0, 0.9])
    torch.testing.assert_close(mix_labels(mix, "released"), mix_labels(mix))


def test_rows_that_do_not_fit_the_draws_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\[5, 1\] rows of the subjects, but draws for 7"):
        draw_mix(Draws.alone(7), [5, 1], 0.15, 0.5)
