"""Batches for Lightning: right pairs, every trial once whatever the number of processes, nothing of the test images."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_datamodule import (
    FOLD,
    N_IMAGES,
    WIDTHS,
    Recorder,
    Targets,
    module_of,
    numbered,
    record,
    subject_with,
    trainer,
    trials_in,
)
from helpers_scripts import load_script
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from nd.data.batch import Batch, Steps
from nd.data.datamodule import VoxelDataModule
from nd.data.epoch import PlanSampler
from nd.data.prepared import Subject, mean_betas
from nd.data.splits import Fold
from nd.errors import LeakError, UserError
from nd.targets.store import TargetStore

HELPER = Path(__file__).with_name("helpers_datamodule.py")


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """20 images, each shown twice."""
    return subject_with(np.random.default_rng(6).normal(size=(40, 6)).astype(np.float32), tmp_path / "s.h5")


def one(subject: Subject, targets: Any = None, **options: Any) -> VoxelDataModule:
    return VoxelDataModule([(subject, FOLD)], {"a": targets or Targets()}, **options)


def arrays(batches: list[Batch]) -> list[NDArray[Any]]:
    """Everything in some batches."""
    found: list[NDArray[Any]] = []
    apply_to_collection(batches, torch.Tensor, lambda t: found.append(t.numpy()))
    return found


# ---- what is in a batch --------------------------------------------------------------------------------------------


def test_mean_batches_pair_an_image_s_mean_with_its_target(subject: Subject) -> None:
    data = one(subject, trials="mean", batch_size=5)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    means = mean_betas(subject, FOLD.train)
    expected = StandardScaler().fit_transform(means.astype(np.float64))
    for batch in batches:
        ids = batch.image_id.numpy()
        np.testing.assert_allclose(batch.subjects["s"].voxels.numpy(), expected[ids], atol=1e-5)
        np.testing.assert_array_equal(batch.target("a").numpy(), Targets().rows(ids))
    assert sorted(np.concatenate([b.image_id for b in batches]).tolist()) == FOLD.train.tolist()


@pytest.mark.parametrize("trials", ["single", "random"])
def test_scalers_of_trials_are_those_of_all_training_trials(subject: Subject, trials: Any) -> None:
    data = one(subject, trials=trials)
    data.setup()
    oracle = StandardScaler().fit(subject.voxels(subject.rows_of(FOLD.train)).astype(np.float64))
    np.testing.assert_allclose(data.scalers["s"].mean, oracle.mean_, atol=1e-6)
    np.testing.assert_allclose(data.scalers["s"].scale, oracle.scale_, rtol=1e-6)


def test_every_trial_of_the_training_images_is_in_an_epoch_once_and_no_other(tmp_path: Path) -> None:
    subjects = numbered(tmp_path)
    loader = module_of(subjects).train_dataloader()
    batches = list(loader)
    assert [len(batch) for batch in batches] == [7] * 6 + [6] * 3
    for subject, fold in subjects:
        seen = [t for batch in batches for t in trials_in(batch)[subject.name]]
        assert sorted(seen) == np.flatnonzero(np.isin(subject.image_id, fold.train)).tolist()
        ids = [i for batch in batches for i in batch.subjects[subject.name].image_id.tolist()]
        assert ids == subject.image_id[seen].tolist()
    assert all(batch.subjects[name].voxels.shape[1] == n for batch in batches for name, n in WIDTHS.items())
    loader.sampler.set_epoch(1)
    assert [trials_in(b) for b in loader] != [trials_in(b) for b in batches]


def test_random_trials_take_every_image_once_and_another_trial_in_another_epoch(tmp_path: Path) -> None:
    (subject, fold), _ = numbered(tmp_path)
    loader = module_of([(subject, fold)], trials="random").train_dataloader()
    epochs = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        seen = [t for batch in loader for t in trials_in(batch)["subj01"]]
        assert sorted(subject.image_id[seen].tolist()) == fold.train.tolist()
        epochs.append(frozenset(seen))
    assert len(set(epochs)) == 4


def test_validation_batches_are_in_order(subject: Subject) -> None:
    data = one(subject, batch_size=3)
    batches = list(data.val_dataloader())
    assert np.concatenate([b.image_id for b in batches]).tolist() == FOLD.val.tolist()
    got = np.concatenate([b.subjects["s"].voxels for b in batches])
    np.testing.assert_array_equal(got, data.scalers["s"].transform(mean_betas(subject, FOLD.val)))
    assert batches[0].target("a").shape == (2, 2)


def test_several_targets_and_subjects_in_one_batch(tmp_path: Path) -> None:
    class Square:
        def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
            return (np.asarray(ids)[:, None, None] * np.ones((1, 2, 3))).astype(np.float32)

    data = VoxelDataModule(numbered(tmp_path), {"a": Targets(), "b": Square()}, batch_size=7)
    batch = next(iter(data.train_dataloader()))
    parts = list(batch.subjects.values())
    assert (list(batch.subjects), batch.share) == (list(WIDTHS), 1)
    assert len(batch) == len(parts[0].voxels) + len(parts[1].voxels)
    assert batch.target("b").shape == (len(batch), 2, 3)
    assert torch.equal(batch.target("b")[:, 1, 2], batch.image_id.float())
    assert torch.equal(batch.image_id, torch.cat([part.image_id for part in parts]))
    # As Lightning moves it to a device and changes its precision.
    moved = Recorder().transfer_batch_to_device(batch, torch.device("meta"), 0)
    half = apply_to_collection(batch, torch.Tensor, lambda t: t.half())
    assert isinstance(moved, Batch)
    assert {part.targets["b"].device.type for part in moved.subjects.values()} == {"meta"}
    assert {part.voxels.dtype for part in half.subjects.values()} == {torch.float16}
    assert batch.target("b").dtype == torch.float32
    assert [part.counts for part in moved.subjects.values()] == [(len(part.voxels),) for part in parts]
    assert moved.rows(0).device.type == "meta"


def test_a_batch_knows_its_places_in_the_step(tmp_path: Path) -> None:
    data = module_of(numbered(tmp_path))
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, Steps)
    alone = dataset[next(dataset.plan.steps(0))]
    assert (alone.n_rows, alone.n_processes) == (len(alone), 1)
    assert torch.equal(alone.rows(0), torch.arange(len(alone)))
    ids = torch.full((len(alone),), -1)
    for rank in range(2):
        part = dataset[next(dataset.plan.steps(0, rank, 2))]
        assert (part.n_rows, part.n_processes) == (len(alone), 2)
        ids[part.rows(rank)] = part.image_id
    assert torch.equal(ids, alone.image_id)
    held_out = next(iter(data.val_dataloader()))
    assert torch.equal(held_out.rows(1), torch.arange(len(held_out)))
    assert (held_out.n_rows, held_out.n_processes) == (len(held_out), 1)


def test_page_locked_copies_keep_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(module_of(numbered(tmp_path)).train_dataloader()))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # the real one needs a GPU
    copied = batch.pin_memory()
    for a, b in zip(arrays([batch]), arrays([copied]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [part.counts for part in copied.subjects.values()] == [part.counts for part in batch.subjects.values()]
    assert copied.share == batch.share


# ---- no leak -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(6))
def test_changing_test_rows_changes_nothing_of_training(tmp_path: Path, case: int) -> None:
    rng = np.random.default_rng(case)
    trials = ("single", "mean", "random")[case % 3]
    ids = rng.permutation(30)  # the last few are of no part
    fold = Fold(*(np.sort(part).astype(np.int32) for part in np.split(ids, [14, 19, 26])[:3]))
    image_id = rng.permutation(np.concatenate([np.arange(30), rng.integers(0, 30, 40)]))
    voxels = rng.normal(size=(70, 5)).astype(np.float32)
    changed = voxels.copy()
    changed[~np.isin(image_id, fold.seen)] += 1000
    seen = []
    assert (changed != voxels).any()
    for k, values in enumerate((voxels, changed)):
        subject = subject_with(values, tmp_path / str(k) / "s.h5", image_id)
        data = VoxelDataModule([(subject, fold)], {"a": Targets()}, trials=trials, batch_size=4, seed=case)
        train = data.train_dataloader()
        epochs = []
        for epoch in range(2):
            train.sampler.set_epoch(epoch)
            epochs += list(train)
        seen.append([*arrays([*epochs, *data.val_dataloader()]), data.scalers["s"].mean, data.scalers["s"].scale])
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_targets_of_test_images_are_never_asked_for(subject: Subject) -> None:
    targets = Targets()
    data = one(subject, targets)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert targets.asked == set(range(16))


def test_a_test_image_of_one_subject_that_another_one_sees_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (first, fold), (second, _) = numbered(tmp_path)
    other = Fold(train=np.arange(4, 20), val=np.arange(1, 4), test=np.arange(0, 1))
    with pytest.raises(LeakError, match=r"4 test image.s. of subj01 .first: image 16. are training .* of subj02"):
        module_of([(first, fold), (second, other)])
    shifted = Fold(train=np.arange(4, 16), val=np.arange(0, 4), test=fold.test)
    module_of([(first, fold), (second, shifted)])
    assert "validation images of subj01 are training images of subj02" in caplog.text


# ---- what it costs -------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(6000, 4000)).astype(np.float32)  # 96 MB
    subject = subject_with(voxels, tmp_path / "s.h5")
    del voxels
    data = one(subject, batch_size=42)
    tracemalloc.start()
    list(zip(range(5), data.train_dataloader(), strict=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48e6


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """20 images of 300 x 100 numbers: 2.4 MB."""
    with h5py.File(tmp_path / "x-t-0.h5", "w") as handle:
        handle["features"] = np.arange(N_IMAGES * 30_000, dtype=np.float32).reshape(N_IMAGES, -1)
        handle["image_id"] = np.arange(N_IMAGES, dtype=np.int32)
        handle["reference"] = np.zeros((4, 3), np.float32)
        texts = {"fingerprint": "0", "target": "t", "details": "{}", "versions": "{}"}
        handle.attrs.update({"shape": json.dumps([300, 100]), **texts})
    return TargetStore(tmp_path / "x-t-0.h5", allowed_ids=FOLD.seen)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_and_are_sent_no_data(subject: Subject, store: TargetStore, context: str) -> None:
    loader = one(subject, store, batch_size=9).train_dataloader()
    assert len(pickle.dumps(loader.dataset)) < 20_000
    workers = type(loader)(
        loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=1, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for a, b in zip(arrays(list(loader)), arrays(list(workers)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_benchmark_runs_small_and_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("benchmarks/data_feed.py")
    (tmp_path / "work").mkdir()
    small = [
        "--trials",
        "90",
        "--voxels",
        "50",
        "--tokens",
        "3",
        "--width",
        "8",
        "--hidden",
        "4",
        "--batch-size",
        "6",
        "--batches",
        "15",
        "--steps",
        "1",
    ]
    figures = script.main([*small, "--folder", str(tmp_path / "work"), "--out", str(tmp_path / "figures.json")])
    assert list((tmp_path / "work").iterdir()) == []
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["batches_per_s"] == figures["batches_per_s"]
    assert min([*figures["batches_per_s"].values(), *figures["steps_per_s"].values(), figures["open_s"]]) > 0
    printed = capsys.readouterr().out
    assert "simulated subject: 90 trials x 50 voxels" in printed
    assert "training steps with prior" in printed


# ---- Lightning -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process is given."""
    folder = tmp_path_factory.mktemp("alone")
    record(folder, devices=1, num_workers=0)
    return json.loads((folder / "rank0.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes is given, under ``Trainer(strategy="ddp")`` and with workers."""
    folder = tmp_path_factory.mktemp("pair")
    numbered(folder)
    command = [sys.executable, str(HELPER), str(folder), "2", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_together_are_given_what_one_is(
    alone: dict[str, Any], pair: list[dict[str, Any]], tmp_path: Path
) -> None:
    subjects = {subject.name: subject for subject, _ in numbered(tmp_path)}
    assert alone["train"][0] != alone["train"][1]
    for epoch, steps in enumerate(alone["train"]):
        both = list(zip(*(process["train"][epoch] for process in pair), strict=True))
        assert len(both) == len(steps) == 9
        for step, parts in zip(steps, both, strict=True):
            assert {name: parts[0][name] + parts[1][name] for name in WIDTHS} == step
        for name, subject in subjects.items():
            seen = [trial for parts in both for part in parts for trial in part[name]]
            assert sorted(seen) == subject.rows_of(FOLD.train).tolist()


@pytest.mark.slow
def test_two_processes_learn_and_validate_what_one_does(alone: dict[str, Any], pair: list[dict[str, Any]]) -> None:
    for k, weights in enumerate(alone["weights"]):
        for process in pair:
            np.testing.assert_allclose(process["weights"][k], weights, rtol=1e-4, atol=1e-6)
    assert alone["val"] == pair[0]["val"] + pair[1]["val"] == FOLD.val.tolist()
    np.testing.assert_allclose([process["val_loss"] for process in pair], alone["val_loss"], atol=1e-7)


def test_a_resumed_run_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    subjects = numbered(tmp_path)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    trainer(max_epochs=3).fit(whole, datamodule=module_of(subjects, num_workers=1))
    options = {"enable_checkpointing": True, "callbacks": [keep]}
    trainer(max_epochs=1, **options).fit(first, datamodule=module_of(subjects, num_workers=1))
    last = str(tmp_path / "last.ckpt")
    trainer(max_epochs=3).fit(second, datamodule=module_of(subjects, num_workers=1), ckpt_path=last)
    assert first.train_steps + second.train_steps == whole.train_steps
    assert len({json.dumps(epoch) for epoch in whole.train_steps}) == 3


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown trials 'singel'. Did you mean 'single'"):
        one(subject, trials="singel")
    with pytest.raises(UserError, match=r"given the subjects \['s', 's'\]; wanted one or more, each once"):
        VoxelDataModule([(subject, FOLD), (subject, FOLD)], {})
    with pytest.raises(UserError, match=r"given the subjects \[\]"):
        VoxelDataModule([], {})
    wide = Fold(FOLD.train, FOLD.val, np.arange(16, 25))
    with pytest.raises(UserError, match=r"s.h5 has no trial of 5 images of its fold .first: image 20"):
        VoxelDataModule([(subject, wide)], {})
    monkeypatch.setattr("nd.data.epoch.processes", lambda: (0, 5))
    data = one(subject, batch_size=4)
    with pytest.raises(UserError, match=r"24 training samples in 6 steps .* each of 5 processes needs 1"):
        data.train_dataloader()
    with pytest.raises(UserError, match=r"4 validation samples cannot be shared by 5 processes"):
        data.val_dataloader()


class Broken:
    """A reader that meets damage."""

    def __init__(self, kind: type[UserError]) -> None:
        self.kind = kind

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        raise self.kind("the file is damaged: fetch it again.")


@pytest.mark.parametrize(("kind", "num_workers"), [(UserError, 0), (LeakError, 1)])
def test_what_a_worker_meets_is_said_as_clearly(subject: Subject, kind: type[UserError], num_workers: int) -> None:
    loader = one(subject, Broken(kind), num_workers=num_workers).train_dataloader()
    with pytest.raises(kind) as caught:
        list(loader)
    if num_workers:  # left to the collector, a worker is waited for in whichever test that meets, and then ended
        loader._iterator._shutdown_workers()
    assert (type(caught.value), str(caught.value)) == (kind, "the file is damaged: fetch it again.")


def test_the_sampler_of_a_plain_loader_works_too(subject: Subject) -> None:
    dataset = one(subject).train_dataloader().dataset
    assert isinstance(dataset, Steps)
    assert len(list(DataLoader(dataset, batch_size=None, sampler=PlanSampler(dataset.plan)))) == len(dataset) == 1
