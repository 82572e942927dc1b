"""mapper=volumetric is trained by the module of two_stage: stages, processes, resumption, checkpoints and refusals."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_commands import apart
from helpers_files import edited
from helpers_training import (
    SMALL,
    SUBJECTS,
    assert_close,
    curve_of,
    finetuned,
    identical,
    pretrained,
    stage_of,
    weights_of,
)

from nd.config import Config
from nd.config.application import _compose, compose, derive
from nd.data.prepared import mean_betas, open_subject, split_of
from nd.doctor.training import training_needs
from nd.errors import UserError
from nd.mappers.checkpoint import load, read_details, saved_path
from nd.mappers.folds import origin_of
from nd.mappers.training.fit import Checkpoints, Files
from nd.mappers.training.memory import training_bytes
from nd.mappers.training.pretrained import check_pretrained, load_pretrained
from nd.mappers.volumetric.encoder import Volumetric
from nd.predict import predict
from nd.runs.chain import extracted, pretrain_of, steps_of
from nd.runs.folder import RunFolder
from nd.train import fingerprint_of, train

VOLUMETRIC = [
    "mapper=volumetric", "mapper.regions=[some,others]", "mapper.region_tokens=2", "mapper.width=8", "mapper.heads=2",
    "mapper.cubes=[2,1,1]", "mapper.cube=3",
]  # fmt: skip
WHOLE = [*(text for text in SMALL if not text.startswith("mapper=")), *VOLUMETRIC]
CUBES = [
    "mapper.tokenizer=cubes",
    "mapper.mixer=transformer",
    "mapper.width=16",
    "mapper.cubes=[1,1,1]",
    "mapper.cube=4",
]
# Where sums are split otherwise, see test_training_distributed.
TOLERANCE, OF_SCORES = 1e-9, 1.1e-6


@pytest.fixture(scope="module")
def given(linear_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*linear_world, *WHOLE, "target=c", f"paths.runs={tmp_path_factory.mktemp('runs')}"]


@pytest.fixture(scope="module")
def trained(given: list[str]) -> Config:
    """A configuration whose training is done, in both stages."""
    cfg = compose([*given, "training.epochs=2", "training.pretrain_epochs=2", "mapper.voxel_numbers=true"])
    train(cfg)
    return cfg


def mapper_of(cfg: Config) -> Volumetric:
    folder = RunFolder.open(cfg, "train").path
    subject, split = open_subject(cfg), split_of(cfg)
    path = folder / "checkpoint" / "fold-00.safetensors"
    origin = origin_of(cfg, subject, split, 0, read_details(path)["origin"]["target_fingerprint"])
    found = load(saved_path(folder, origin), origin, "nd train")
    assert isinstance(found, Volumetric)
    return found


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [pytest.param(["mapper.voxel_numbers=true"], marks=pytest.mark.slow), CUBES])
def test_it_learns_and_not_where_there_is_nothing_to_learn(given: list[str], more: list[str], tmp_path: Path) -> None:
    """Validation images are told apart after a second of training; by exchanged targets they are not."""
    long = ["training.pretrain=false", "training.epochs=25", "training.lr=5e-3", *more]
    scores = {}
    for control in ("none", "shuffled_labels"):
        cfg = compose([*given, *long, f"control={control}"])
        scores[control] = finetuned(cfg, tmp_path / control, "c").details["scores"]["c"]
    assert scores["none"]["identification"] > 0.85 > 0.7 > scores["shuffled_labels"]["identification"]
    assert scores["none"]["unexplained"] < 0.6 < scores["shuffled_labels"]["unexplained"]


@pytest.mark.slow
def test_two_processes_equal_one(given: list[str], tmp_path: Path) -> None:
    """Curve and weights, of subjects with different voxels, with both mixers, dropout, contrasts and MixCo."""
    own = ["training.precision=64-true", "training.pretrain_epochs=2", "training.lr=1e-3", "network.share=all"]
    own += ["training.validate_every=1", "training.clip_norm=75", "training.aux_target=g", "mapper.voxel_numbers=true"]
    own += ["network.decoder_channels=[34,34]"]  # norms of two channels, see test_training_distributed
    two = ["trainer.devices=2", "trainer.strategy=ddp_spawn"]
    for name, more in (("one", []), ("two", two)):
        pretrained(compose([*given, *own, *more]), tmp_path / name, "c", "z")
    weights = [weights_of(Files(tmp_path / name, 0).result) for name in ("one", "two")]
    unseen = "to_k.bias"  # softmax does not see it: its gradient is rounding alone
    kept = [{name: value for name, value in one.items() if not name.endswith(unseen)} for one in weights]
    assert_close(kept[1], kept[0], TOLERANCE)
    for single, shared in zip(*(curve_of(tmp_path / name) for name in ("one", "two")), strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], rel=TOLERANCE)
        assert shared["val"]["c"] == pytest.approx(single["val"]["c"], rel=TOLERANCE, abs=OF_SCORES)
    numbers = [value for name, value in weights[0].items() if name.endswith(".own")]
    assert len(numbers) == len(SUBJECTS) - 1  # one trunk for both targets
    assert all(float(value.abs().max()) > 0 for value in numbers)


def test_stopped_and_resumed_equals_undisturbed(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit."""
    own = ["training.epochs=3", "training.pretrain=false", "trainer.checkpoint_minutes=0", "training.ema=0.9"]
    cfg = compose([*given, *own])
    alone = finetuned(cfg, tmp_path / "alone", "c")
    write = Checkpoints.on_train_epoch_end

    def stopping(self: Checkpoints, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise InterruptedError
        write(self, trainer, module)

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", stopping)
    with pytest.raises(InterruptedError):
        finetuned(cfg, tmp_path / "stopped", "c")
    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", write)
    resumed = finetuned(cfg, tmp_path / "stopped", "c")
    assert identical(resumed.network, alone.network)
    assert curve_of(tmp_path / "stopped") == curve_of(tmp_path / "alone")


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_through_both_stages(given: list[str], tmp_path: Path) -> None:
    """Killed after the first epoch of pretraining; checkpoints are the same to the last bit."""
    own = [*given, "training.epochs=2", "training.pretrain_epochs=2", "trainer.checkpoint_minutes=0"]
    killed, alone = ([*own, f"paths.runs={tmp_path / name}"] for name in ("killed", "alone"))
    words = ("pretrain", "0", "after")
    done = apart(*words, *killed, cwd=tmp_path, program=(str(Path(__file__).parent / "helpers_training.py"),))
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = RunFolder.open(pretrain_of(compose(killed)), "train").path
    assert Files(left, 0).checkpoint.exists()
    assert not (left / "checkpoint").exists()
    folders = [train(compose(overrides)) for overrides in (killed, alone)]
    folders += [RunFolder.open(pretrain_of(compose(overrides)), "train").path for overrides in (killed, alone)]
    for one, other in (folders[:2], folders[2:]):
        file = "checkpoint/fold-00.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()
        assert curve_of(one) == curve_of(other)


@pytest.mark.parametrize("mapper", ["volumetric", "two_stage"])
def test_other_subjects_pretrain_what_one_session_fine_tunes(given: list[str], mapper: str, tmp_path: Path) -> None:
    """All sessions of the others, one of the subject; one pretraining serves any number of sessions of it."""
    own = [text for text in given if not text.startswith("mapper.")] if mapper == "two_stage" else given
    few = ["training.epochs=1", "training.pretrain_epochs=1", f"paths.runs={tmp_path}", f"mapper={mapper}"]
    every, one = (compose([*own, *few, f"subject.sessions={n}"]) for n in (0, 1))
    seen = {n: len(split_of(cfg).folds[0].train) for n, cfg in ((0, every), (1, one))}
    assert seen[1] < seen[0]
    folder = train(one)
    details = read_details(folder / "checkpoint" / "fold-00.safetensors")["details"]
    assert (details["pretrained_on"], details["sessions"]) == (["subj02", "subj03"], 1)
    assert details["n_images"] == seen[1]
    start = RunFolder.open(pretrain_of(one), "train")
    assert start.path == RunFolder.open(pretrain_of(every), "train").path
    recorded = RunFolder.open(one, "train").manifest["inputs"]["pretrained"]
    assert recorded == fingerprint_of(start.path)
    taught, own_weights = (weights_of(path / "checkpoint" / "fold-00.safetensors") for path in (start.path, folder))
    shared = [name for name in taught if name in own_weights]
    assert shared
    assert any(not torch.equal(taught[name], own_weights[name]) for name in shared)


def test_fine_tuning_starts_from_what_others_taught(given: list[str], trained: Config, tmp_path: Path) -> None:
    """All but the voxels' numbers, of which a new subject's are nothing."""
    start = RunFolder.open(pretrain_of(trained), "train").path
    taught = weights_of(start / "checkpoint" / "fold-00.safetensors")
    assert not [name for name in taught if ".own" in name or name.startswith("anchors.")]
    cfg = compose([*given, "training.epochs=1", "training.lr=1e-12", "training.finetune_lr=1e-12",
                   "mapper.voxel_numbers=true", f"training.pretrained={start}"])  # fmt: skip
    from nd.mappers.training.pretrained import load_pretrained

    path = start / "checkpoint" / "fold-00.safetensors"
    result = finetuned(cfg, tmp_path, "c", start=(path, load_pretrained(path)))
    found = {f"network.{name}": value for name, value in result.network.state_dict().items()}
    numbers = [name for name in found if name.endswith(".own")]
    assert len(numbers) == 1
    assert float(found.pop(numbers[0]).abs().max()) < 1e-6
    assert_close(found, {name: taught[name] for name in found}, 1e-5)


def test_factor_on_predictions_leaves_what_others_taught_as_it_is(given: list[str], trained: Config) -> None:
    """It is applied to finished predictions, so one pretraining serves every factor."""
    wider = derive(trained, "mapper.spread=1.2", "mapper.rescale=train", "training.epochs=1")
    taught = RunFolder.open(pretrain_of(trained), "train").path
    assert RunFolder.open(pretrain_of(wider), "train").path == taught
    assert train(wider) != RunFolder.open(trained, "train").path
    path = taught / "checkpoint" / "fold-00.safetensors"
    start = load_pretrained(path)
    assert "mapper.spread" not in start.front
    earlier = replace(start, front=start.front | {"mapper.spread": 1.0})
    check_pretrained(path, earlier, "subj01", split_of(wider).folds[0], {}, stage_of(wider, "c").network())


# ---- the mapper ----------------------------------------------------------------------------------------------------


def test_restored_mapper_predicts_what_the_verb_writes(trained: Config) -> None:
    """Its layout comes from the checkpoint, not from the data."""
    import h5py

    cfg = derive(trained, "method=nearest_image", "method.targets=[c]")
    with h5py.File(predict(cfg) / "predictions.h5") as file:
        written, ids = file["c"][()], file["image_id"][()]
    mapper, voxels = mapper_of(trained), mean_betas(open_subject(trained), ids)
    np.testing.assert_array_equal(written.reshape(len(ids), -1), mapper.predict(voxels, ids))
    state = dict(mapper.state())
    np.testing.assert_array_equal(state["layout_ijk"], open_subject(trained).ijk)
    again = Volumetric.restore(trained.mapper, state, mapper.details())
    np.testing.assert_array_equal(again.predict(voxels, ids), mapper.predict(voxels, ids))
    state["layout_ijk"] = state["layout_ijk"][::-1].copy()
    moved = Volumetric.restore(trained.mapper, state, mapper.details())
    assert np.abs(moved.predict(voxels, ids) - mapper.predict(voxels, ids)).max() > 1e-4


def test_network_of_another_front_is_refused(given: list[str], trained: Config, tmp_path: Path) -> None:
    """Of other regions, and of two_stage, either way round."""
    taught = RunFolder.open(pretrain_of(trained), "train").path
    own = [*given, f"paths.runs={tmp_path}", "mapper.voxel_numbers=true"]
    with pytest.raises(
        UserError, match=r"another network: .*mapper.regions=\['some', 'others'\] there, \['some'\] here"
    ):
        train(compose([*own, f"training.pretrained={taught}", "mapper.regions=[some]"]))
    short = [text for text in own if not text.startswith("mapper")]
    with pytest.raises(UserError, match=r"another network: .*mapper.tokenizer=regions there, None here"):
        train(compose([*short, "mapper=two_stage", f"training.pretrained={taught}"]))
    plain = train(compose([*short, "mapper=two_stage", "training.stage=pretrain", "training.pretrain_epochs=1"]))
    with pytest.raises(UserError, match=r"another network: .*mapper.tokenizer=None there, regions here"):
        train(compose([*own, f"training.pretrained={plain}"]))


def test_runs_differ_by_what_the_encoder_is(given: list[str]) -> None:
    cfgs = [compose([*given, *more]) for more in ([], ["mapper.coordinates=shuffled"], ["mapper.mixer=transformer"],
            ["mapper.cube=4"], ["training.align=false"], ["subject.roi=some"])]  # fmt: skip
    folders = [RunFolder.open(cfg, "train").path for cfg in cfgs]
    assert len(set(folders)) == 4
    assert folders[0] == folders[3] == folders[4]  # cubes are not read, and nothing is aligned


def test_data_without_coordinates_are_refused_before_training(given: list[str], tmp_path: Path) -> None:
    from nd.data.prepared import data_folder, subject_path

    cfg = compose(given)
    shutil.copytree(data_folder(cfg), tmp_path / cfg.data.name)
    blind = compose([*given, f"paths.data={tmp_path}", "training.pretrain=false", f"paths.runs={tmp_path / 'runs'}"])
    with edited(subject_path(blind)) as file:
        file["ijk"][...] = np.full(file["ijk"].shape, -1, np.int16)
    with pytest.raises(UserError, match=r"subj01.h5 has no coordinates of 20 of 20 voxels.*mapper.coordinates=none"):
        train(blind)
    assert not (RunFolder.open(blind, "train").path / "training").exists()


# ---- rules and estimates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mapper.heads=3", r"mapper.heads: 3 heads do not divide a width of 8"),
        ("mapper.cubes=[2,2]", r"mapper.cubes: \[2, 2\] must hold three numbers"),
        ("mapper.region_tokens=0", r"mapper.region_tokens: 0 was given, wanted 1 or more"),
        ("mapper.regions=[some,some]", r"names a region twice"),
        ("mapper.variant=released", r"no code of a volumetric encoder is public"),
        ("network.trunk=mixer", r"network.trunk: mixer is two_stage's"),
        ("mapper.coordinates=true", r"mapper.coordinates: 'true' is not allowed.* Allowed: given, shuffled, none"),
        ("training.lr=0", r"training.lr: 0.0 must be positive"),
        ("target=pixels", r"mapper: volumetric has no head for target pixels"),
    ],
)
def test_contradictions_are_said(given: list[str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _compose([*given, text], "train")


def test_cubes_need_places(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"mapper.coordinates: none leaves nothing by which voxels could be put into"):
        compose([*given, "mapper.tokenizer=cubes", "mapper.coordinates=none"])


def test_memory_is_estimated_of_the_network_that_is_trained(given: list[str]) -> None:
    stage = stage_of(compose(given), "c")
    found = training_bytes(stage.network_config, stage.slices, stage.front, 8)
    assert found.parameters == sum(weights.numel() for weights in stage.network().parameters())
    more = training_bytes(stage.network_config, stage.slices, stage.front, 16)
    assert 1.5 * found.activations < more.activations < 2.1 * found.activations
    needs = list(training_needs(compose([*given, "method=nearest_image", "method.targets=[c]"]), SUBJECTS))
    assert [(need.stage, len(need.n_voxels)) for need in needs] == [("pretraining", 2), ("fine-tuning", 1)]
    assert all(need.estimate.total > 0 and "with network.hidden=8" in need.advice for need in needs)


def test_what_teaches_a_mapper_is_extracted_with_the_method(given: list[str]) -> None:
    """Only where something is trained by it."""
    method = ["method=vae", "training.aux_target=g"]
    taught = compose([*given, *method])
    steps = [step for step in steps_of(taught) if step.verb == "extract"]
    assert [extracted(step.cfg) for step in steps] == [["z", "g"]]
    for more in (["mapper=ridge"], ["training.aux_weight=0"], ["features=oracle"]):
        own = [text for text in given if "ridge" not in more[0] or not text.startswith("mapper.")]
        steps = [step for step in steps_of(compose([*own, *method, *more])) if step.verb == "extract"]
        assert [extracted(step.cfg) for step in steps] == [["z"]]
