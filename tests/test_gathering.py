"""Rows of several processes put together: the order of one process, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_gathering import N_VOXELS, SHAPE, Linear, batches, run, trained
from torch import Tensor
from torch.multiprocessing import start_processes

from nd.data.batch import Batch, SubjectBatch
from nd.mappers.training import mixco
from nd.mappers.training.mixco import gather, gather_subject


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(run, (2, str(folder)), nprocs=2, start_method="fork")  # which need not import everything anew
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_steps_hold_every_case() -> None:
    pairs = list(zip(batches(0, 2), batches(1, 2), strict=True))
    assert any(len(a) != len(b) for a, b in pairs)
    sizes = [(len(a.subjects[name].image_id), len(b.subjects[name].image_id)) for a, b in pairs for name in N_VOXELS]
    assert {(0, 0), (0, 1), (1, 0)} <= set(sizes)


def test_rows_come_in_the_order_of_one_process(processes: list[dict[str, Any]]) -> None:
    for found in processes:
        for ids, alone in zip(found["ids"], batches(0, 1), strict=True):
            assert torch.equal(ids, alone.image_id)
        first = batches(0, 1)[0]
        assert torch.equal(found["half"], first.target("t").bfloat16())
        for ids, part in zip(found["subjects"], first.subjects.values(), strict=True):
            assert torch.equal(ids, part.image_id)
        assert found["alone"], "rows of a batch that is not shared stay as they are"


def test_loss_and_gradient_are_those_of_one_process(processes: list[dict[str, Any]]) -> None:
    wanted = trained(0, 1)
    assert len(wanted) == 4
    assert all(len(step["gradients"]) == len(list(Linear().parameters())) for step in wanted)
    for found in processes:
        for step, alone in zip(found["trained"], wanted, strict=True):
            torch.testing.assert_close(step["loss"], alone["loss"], rtol=1e-10, atol=0)
            for gradient, one in zip(step["gradients"], alone["gradients"], strict=True):
                torch.testing.assert_close(gradient, one, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in wanted[0]["gradients"]) > 0.01


def test_places_of_every_process_are_all_places() -> None:
    for world_size in (1, 2, 3):
        for step in zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True):
            rows = [batch.rows(rank) for rank, batch in enumerate(step)]
            assert [len(r) for r in rows] == [len(batch) for batch in step]
            assert sorted(torch.cat(rows).tolist()) == list(range(step[0].n_rows))
            assert {batch.n_rows for batch in step} == {sum(map(len, step))}
            assert {batch.n_processes for batch in step} == {world_size}


# ---- without other processes ---------------------------------------------------------------------------------------


def sent(monkeypatch: pytest.MonkeyPatch, rank: int, rows: list[Tensor]) -> None:
    """As process ``rank`` of several, whose rows are these."""

    def all_gather(received: list[Tensor], padded: Tensor) -> None:
        assert not padded.requires_grad
        for place, own in zip(received, rows, strict=True):
            place.zero_()
            place[: len(own)] = own

    monkeypatch.setattr(mixco, "processes", lambda: (rank, len(rows)))
    monkeypatch.setattr(mixco.dist, "all_gather", all_gather)


def test_only_own_rows_carry_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.full((n, *SHAPE), float(n)) for n in (2, 3, 0)]
    sent(monkeypatch, 1, rows)
    x = rows[1].clone().requires_grad_()
    found = gather_subject(x, (2, 3, 0))
    assert torch.equal(found, torch.cat(rows))
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, *SHAPE))


def test_one_process_sends_nothing() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_subject(x, (3,)) is gather_subject(x, ()) is x
    part = SubjectBatch(x, torch.arange(3), {}, (3,))
    assert gather(x, Batch({"a": part})) is x


def test_rows_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="a step shared by 2 processes was read by one of 1"):
        gather_subject(torch.zeros(3, 2), (3, 1))
    sent(monkeypatch, 1, [torch.zeros(2), torch.zeros(3)])
    with pytest.raises(AssertionError, match="4 rows of process 1, which has 3 in this step"):
        gather_subject(torch.zeros(4), (2, 3))


def test_a_subject_that_nobody_has_in_a_step_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixco, "processes", lambda: (0, 2))
    assert gather_subject(torch.zeros(0, 4), (0, 0)).shape == (0, 4)
