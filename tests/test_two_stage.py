"""The trained mapper as verbs use it: both stages, checkpoints, predictions, refusals, and what it may not see."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from helpers_files import edited
from helpers_training import EVERYTHING, N_TEST, N_TRAIN, SHAPES, SMALL, finetuned, linear_target, stage_of, truth_of
from numpy.typing import NDArray
from safetensors.numpy import load_file

import nd.mappers.training.pretrained as pretraining
import nd.mappers.two_stage as two_stage
from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import open_subject, split_of, subject_path
from nd.data.splits import Fold, Split
from nd.data.subject import mean_betas
from nd.errors import LeakError, UserError
from nd.files import read_json, write_json
from nd.mappers.checkpoint import Origin, checkpoint_path, load, read_details, saved_path
from nd.mappers.training.pretrained import load_pretrained, others_of, save_pretrained
from nd.mappers.training.stage import Stage
from nd.mappers.two_stage import TwoStage
from nd.predict import predict, write_predictions
from nd.runs.chain import pretrain_of
from nd.runs.folder import RunFolder
from nd.runs.identity import run_id
from nd.targets.store import TargetStore, store_path
from nd.train import train

TEST_IDS = np.arange(N_TRAIN, N_TRAIN + N_TEST)


@pytest.fixture(scope="module")
def given(linear_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """With run folders of this module."""
    short = ["training.epochs=2", "training.pretrain_epochs=2"]
    return [*linear_world, *SMALL, *short, "target=c", f"paths.runs={tmp_path_factory.mktemp('runs')}"]


@pytest.fixture(scope="module")
def trained(given: list[str]) -> Config:
    """A configuration whose training is done, with a prior whose noise is of the image."""
    cfg = compose([*given, *EVERYTHING, "network.prior_sampling=ddim", "network.prior_steps=3"])
    train(cfg)
    return cfg


@pytest.fixture(scope="module")
def together(given: list[str]) -> Config:
    """All targets trained at once."""
    cfg = compose([*given, "network.share=all"])
    train(cfg)
    return cfg


def folder_of(cfg: Config) -> Path:
    return RunFolder.open(cfg, "train").path


def origin_of(cfg: Config, target: str = "c") -> Origin:
    subject, split = open_subject(cfg), split_of(cfg)
    return Origin(
        subject=subject.name, roi=cfg.subject.roi, n_voxels=subject.n_voxels, mask_hash=subject.mask_hash,
        split_hash=split.hash, fold=0, target=target, target_fingerprint=truth_of(cfg, target).fingerprint,
    )  # fmt: skip


def mapper_of(cfg: Config, target: str = "c") -> TwoStage:
    path = saved_path(folder_of(cfg), origin_of(cfg, target))
    return TwoStage.restore(cfg.mapper, load_file(path), read_details(path)["details"])


# ---- predicting ----------------------------------------------------------------------------------------------------


def test_prediction_is_of_scaled_voxels_in_units_of_the_target(given: list[str], tmp_path: Path) -> None:
    result = finetuned(compose(given), tmp_path, "g")
    scaler, scale = result.data.scalers["subj01"], result.scales["g"]
    mapper = TwoStage.of(result.network, "g", "subj01", 0, scaler, scale, {})
    voxels = np.random.default_rng(0).normal(2, 3, (5, 20)).astype(np.float32)
    outputs = result.network({"subj01": torch.from_numpy((voxels - scaler.mean) / scaler.scale)})
    columns = np.concatenate([outputs[f"g_{k}"].predicted.detach().flatten(1).numpy() for k in (0, 1)], 1)
    np.testing.assert_allclose(mapper.predict(voxels), columns * scale.scale + scale.mean, rtol=1e-4, atol=1e-5)
    assert mapper.kept is None


def test_restored_mapper_predicts_the_same(trained: Config) -> None:
    first = mapper_of(trained)
    details = json.loads(json.dumps(first.details()))
    second = TwoStage.restore(mapper_settings(name="two_stage"), first.state(), details)
    voxels = mean_betas(open_subject(trained), TEST_IDS)
    np.testing.assert_array_equal(first.predict(voxels, TEST_IDS), second.predict(voxels, TEST_IDS))
    loaded = load(saved_path(folder_of(trained), origin_of(trained)), origin_of(trained), "nd train")
    np.testing.assert_array_equal(loaded.predict(voxels, TEST_IDS), first.predict(voxels, TEST_IDS))


@pytest.mark.parametrize(("accelerator", "wanted"), [("cpu", "cpu"), ("auto", "cuda")])
def test_networks_predict_where_the_settings_say(
    accelerator: str, wanted: str, trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a GPU, too: one that was not asked for may be too small, or somebody else's."""
    used, really = list[str](), TwoStage.predict

    def noted(self: TwoStage, *given: Any) -> NDArray[np.float32]:
        used.append(self.device.type)
        self.device = torch.device("cpu")
        return really(self, *given)

    cfg = derive(trained, f"trainer.accelerator={accelerator}")
    path, origin = saved_path(folder_of(cfg), origin_of(cfg)), origin_of(cfg)
    monkeypatch.setattr(TwoStage, "predict", noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    write_predictions(tmp_path / "predictions.h5", cfg, split_of(cfg), {"c": (RunFolder.open(cfg, "train"), [origin])})
    assert used == [wanted]
    assert load(path, origin, "nd train").device.type == "cpu"


def test_prediction_of_an_image_is_its_own(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order, the others and the batches are; the prior's noise is drawn for the image."""
    mapper, voxels = mapper_of(trained), mean_betas(open_subject(trained), TEST_IDS)
    whole = mapper.predict(voxels, TEST_IDS)
    monkeypatch.setattr(two_stage, "IMAGES_AT_ONCE", 3)
    np.testing.assert_allclose(mapper.predict(voxels, TEST_IDS), whole, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(N_TEST)
    np.testing.assert_allclose(mapper.predict(voxels[order], TEST_IDS[order]), whole[order], rtol=1e-4, atol=1e-5)
    assert np.abs(mapper.predict(voxels, TEST_IDS + 1) - whole).max() > 1e-3
    np.testing.assert_array_equal(mapper.predict(voxels), mapper.predict(voxels, np.arange(N_TEST)))
    assert mapper.predict(voxels[:0], TEST_IDS[:0]).shape == (0, 12)
    assert whole.dtype == np.float32


def test_scores_are_of_mean_responses_to_validation_images(trained: Config) -> None:
    """As ridge's are, and the verb's closing scores are the same."""
    mapper, val = mapper_of(trained), split_of(trained).folds[0].val
    scores = mapper.details()["scores"]
    predicted, true = mapper.predict(mean_betas(open_subject(trained), val), val), linear_target("c", val)
    error = ((predicted - true) ** 2).sum() / ((true - mapper.scale.mean) ** 2).sum()
    assert scores["unexplained"] == pytest.approx(error, rel=1e-4)
    r = np.corrcoef(predicted - mapper.scale.mean, true - mapper.scale.mean)[: len(val), len(val) :]
    wins = (r < np.diag(r)[:, None]).sum() / (len(val) * (len(val) - 1))
    assert scores["identification"] == pytest.approx(wins, abs=1e-6)
    written = read_json(folder_of(trained) / "scores.json")
    assert written["mean"]["c"] == scores
    assert written["folds"] == [{"c": scores}]


def test_voxels_of_another_mask_are_refused(trained: Config) -> None:
    with pytest.raises(UserError, match=r"19 voxels.* 20"):
        mapper_of(trained).predict(np.zeros((2, 19), np.float32))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n_voxels": 9, "roi": "some"}, r"was trained on 20 voxels of subj01 .*roi=all\), but subj01 .*=some\) has 9"),
        ({"mask_hash": "x"}, "was trained on other voxels"),
        ({"target": "z"}, "predicts target 'c', but 'z' is wanted"),
        ({"target_fingerprint": "x"}, "was trained on features"),
        ({"split_hash": "x"}, "its test images may have been seen"),
    ],
)
def test_checkpoint_of_something_else_is_refused(trained: Config, other: dict[str, Any], message: str) -> None:
    wanted = replace(origin_of(trained), **other)
    with pytest.raises(UserError, match=f"{message}.*Train for these settings: nd train"):
        load(saved_path(folder_of(trained), wanted), wanted, "nd train")


@pytest.mark.parametrize("share", ["target", "all"])
def test_predict_verb_uses_the_trained_mapper(linear_world: list[str], share: str, tmp_path: Path) -> None:
    """Of a target's own run, or of the one in which it was trained with others."""
    short = ["training.epochs=1", "training.pretrain=false", "method=nearest_image", "method.targets=[c,z]"]
    cfg = compose([*linear_world, *SMALL, *short, f"network.share={share}", f"paths.runs={tmp_path}"])
    for target in ("c", "z"):
        train(derive(cfg, f"target={target}"))
    assert len(list((tmp_path / "train").iterdir())) == (1 if share == "all" else 2)
    with h5py.File(predict(cfg) / "predictions.h5") as file:
        found, ids = {target: file[target][()] for target in ("c", "z")}, file["image_id"][()]
    voxels = mean_betas(open_subject(cfg), ids)
    for target, values in found.items():
        mapper = mapper_of(derive(cfg, f"target={target}"), target)
        np.testing.assert_array_equal(values, mapper.predict(voxels, ids).reshape(-1, *SHAPES[target]))


def test_spread_is_restored_by_predictions_of_validation_images(trained: Config) -> None:
    """The same training serves both; no test image takes part, so that one alone is predicted as among the others."""
    plain = derive(trained, "method=nearest_image", "method.targets=[c]")
    restored, wider = derive(plain, "mapper.rescale=train"), derive(plain, "mapper.rescale=train", "mapper.spread=1.3")
    assert RunFolder.open(restored, "train").path == folder_of(trained)
    found = {}
    for name, cfg in (("none", plain), ("train", restored), ("wider", wider)):
        with h5py.File(predict(cfg) / "predictions.h5") as file:
            found[name] = file["c"][()].reshape(N_TEST, -1).astype(np.float64)
    own = split_of(trained).folds[0]
    held_out = mapper_of(trained).predict(mean_betas(open_subject(trained), own.val), own.val).astype(np.float64)
    true = linear_target("c", own.train).reshape(len(own.train), -1).astype(np.float64)
    standard = (found["none"] - held_out.mean(0)) / held_out.std(0)
    np.testing.assert_allclose(found["train"], standard * true.std(0) + true.mean(0), rtol=1e-4, atol=1e-4)
    assert np.abs(found["train"] - found["none"]).max() > 0.01
    np.testing.assert_allclose(
        found["wider"], true.mean(0) + 1.3 * (found["train"] - true.mean(0)), rtol=1e-4, atol=1e-4
    )


# ---- all targets at once -------------------------------------------------------------------------------------------


def test_targets_trained_together_are_one_run(together: Config, capsys: pytest.CaptureFixture[str]) -> None:
    others = [derive(together, f"target={target}") for target in ("g", "z")]
    assert {run_id("train", cfg) for cfg in (together, *others)} == {run_id("train", together)}
    for cfg in others:
        train(cfg)
    assert capsys.readouterr().out.count("nothing to do") == 4  # both stages of both
    names = sorted(path.name for path in (folder_of(together) / "checkpoint").glob("*.json"))
    assert names == [f"fold-00-{target}.json" for target in ("c", "g", "z")]
    assert len(list(Path(together.paths.runs).glob(f"train/*{run_id('train', together)}"))) == 1


def test_saved_path_is_the_targets_own_file_where_there_is_one(together: Config, trained: Config) -> None:
    own = saved_path(folder_of(together), origin_of(together, "g"))
    assert own == folder_of(together) / "checkpoint" / "fold-00-g.safetensors"
    alone = folder_of(trained) / "checkpoint" / "fold-00.safetensors"
    assert saved_path(folder_of(trained), origin_of(trained)) == alone
    assert saved_path(folder_of(trained), replace(origin_of(trained), fold=3)).name == "fold-03.safetensors"


@pytest.mark.parametrize("target", SHAPES)
def test_mapper_of_one_of_several_targets(together: Config, target: str) -> None:
    """It holds the shared trunk and the target's own heads."""
    mapper = mapper_of(together, target)
    assert {part.target for part in mapper.network.slices} == {target}
    assert list(mapper.network.trunks) == ["shared"]
    assert mapper.details()["pretrained_on"] == ["subj02", "subj03"]
    voxels = mean_betas(open_subject(together), TEST_IDS)
    assert mapper.predict(voxels).shape == (N_TEST, int(np.prod(SHAPES[target])))
    wanted = mapper_of(together, "c").network.trunk("shared").state_dict()
    assert all(torch.equal(v, wanted[name]) for name, v in mapper.network.trunk("shared").state_dict().items())


# ---- what a pretrained network may be -------------------------------------------------------------------------------


def pretrained_folder(cfg: Config) -> Path:
    return folder_of(pretrain_of(cfg))


def refused(given: list[str], folder: Path, kind: type[Exception], message: str, *more: str) -> None:
    """The verb refuses it, and leaves no folder behind."""
    cfg = compose([*given, f"training.pretrained={folder}", *more])
    with pytest.raises(kind, match=message):
        train(cfg)
    assert RunFolder.open(cfg, "train").status == "new"
    assert not folder_of(cfg).exists()


@pytest.fixture(scope="module")
def stage1(given: list[str]) -> Path:
    """What subj02 and subj03 taught about c."""
    return train(compose([*given, "training.stage=pretrain"]))


def test_network_that_saw_the_subject_is_refused(given: list[str], stage1: Path) -> None:
    wanted = r"pretrained on subj02, subj03, so it has seen subj02, whom .* training.stage=pretrain subject=subj02"
    refused(given, stage1, LeakError, wanted, "subject=subj02")


def test_network_that_saw_test_images_is_refused(given: list[str], stage1: Path) -> None:
    cut = [f"data.n_train={N_TRAIN - 3}", f"data.n_test={N_TEST + 3}"]
    seen = np.isin(load_pretrained(checkpoint_path(stage1, 0)).seen, np.arange(N_TRAIN - 3, N_TRAIN)).sum()
    assert seen == 3
    wanted = rf"pretrained on 3 test image\(s\) of subj01 \(first: image {N_TRAIN - 3}\).*same split"
    refused(given, stage1, LeakError, wanted, *cut)


def test_network_of_other_features_is_refused(given: list[str], stage1: Path, tmp_path: Path) -> None:
    found = load_pretrained(checkpoint_path(stage1, 0))
    save_pretrained(checkpoint_path(tmp_path, 0), replace(found, fingerprints={"c": "0123"}))
    refused(given, tmp_path, UserError, r"other features of c \(0123\), but c \(\w+\) is wanted. Use the same backbone")
    refused(given, stage1, UserError, r"was pretrained on targets c, but z \(\w+\) is wanted", "target=z")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.hidden=8", "another network: hidden=16 there, 8 here. Give the same network settings"),
        ("network.blocks=2", "another network: blocks=1 there, 2 here"),
        ("network.prior=true", "another network: prior=False there, True here"),
        ("training.contrast_weight=0", "another network: projector=True there, False here"),
        ("network.share=part", "another network: share=target there, part here"),
    ],
)
def test_network_of_another_shape_is_refused(given: list[str], stage1: Path, setting: str, message: str) -> None:
    refused(given, stage1, UserError, message, setting)


def test_network_of_the_other_variant_is_refused(given: list[str], stage1: Path) -> None:
    more = ["mapper.variant=released", "training.align=false"]
    refused(given, stage1, UserError, "another network: variant=nd there, released here", *more)


def test_network_with_another_auxiliary_head_is_refused(given: list[str]) -> None:
    """Its width is no setting of the network, but its weights tell."""
    taught = train(compose([*given, "training.stage=pretrain", "target=z", "training.aux_target=g"]))
    wanted = r"another network: \d+ of \d+ weights do not fit \(first: heads.z.maps_projector\S*, \(4, 8, 1, 1\) there"
    cfg = compose([*given, "target=z", "training.aux_target=c", f"training.pretrained={taught}"])
    with pytest.raises(UserError, match=r"training.aux_target has features of shape \(3, 4\)"):
        train(cfg)
    found = load_pretrained(checkpoint_path(taught, 0))
    first = next(name for name in found.weights if "maps_projector" in name)
    found.weights[first] = found.weights[first][:1]
    save_pretrained(checkpoint_path(Path(cfg.paths.runs) / "cut", 0), found)
    refused(
        given, Path(cfg.paths.runs) / "cut", UserError, wanted.replace("4, 8", "1, 8"), "target=z",
        "training.aux_target=g",
    )  # fmt: skip


def test_folder_without_a_pretrained_network_is_refused(given: list[str], trained: Config, tmp_path: Path) -> None:
    refused(given, tmp_path, UserError, r"holds no pretrained network \(fold-00.safetensors .* training.stage=pretrain")
    refused(given, folder_of(trained), UserError, "is no pretrained network of format 1, but a finished mapper")
    with pytest.raises(UserError, match=r"training.pretrained: \S*absent does not exist"):
        compose([*given, f"training.pretrained={tmp_path / 'absent'}"])


def test_damaged_pretrained_network_is_refused(given: list[str], stage1: Path, tmp_path: Path) -> None:
    shutil.copytree(stage1 / "checkpoint", tmp_path / "checkpoint")
    path = checkpoint_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:200])
    refused(given, tmp_path, UserError, "fold-00.safetensors is damaged")
    shutil.copytree(stage1 / "checkpoint", tmp_path / "old" / "checkpoint")
    description = checkpoint_path(tmp_path / "old", 0).with_suffix(".json")
    write_json(description, {**read_json(description), "format": 0})
    refused(given, tmp_path / "old", UserError, "is no pretrained network of format 1")


def test_pretrained_network_made_elsewhere_is_used(given: list[str], stage1: Path, trained: Config) -> None:
    """It gives what one's own first stage gives, and is recorded as an input."""
    elsewhere = train(compose([*given, f"training.pretrained={stage1}", "paths.runs=" + str(stage1.parent / "other")]))
    own = train(compose(given))
    name = "checkpoint/fold-00.safetensors"
    assert (elsewhere / name).read_bytes() == (own / name).read_bytes()
    recorded = [read_json(folder / "manifest.json")["inputs"]["pretrained"] for folder in (elsewhere, own)]
    assert recorded[0] == recorded[1]


def test_network_pretrained_on_more_targets_serves_some_of_them(given: list[str], together: Config) -> None:
    """Their heads are taken and the others left."""
    more = ["network.share=all", "method=nearest_image", "method.targets=[c,z]"]
    path = train(compose([*given, *more, f"training.pretrained={pretrained_folder(together)}"]))
    assert sorted(file.name for file in (path / "checkpoint").glob("*.json")) == ["fold-00-c.json", "fold-00-z.json"]


def test_finished_run_of_another_pretrained_network_is_refused(given: list[str], stage1: Path, tmp_path: Path) -> None:
    runs = f"paths.runs={tmp_path / 'runs'}"
    train(compose([*given, runs, f"training.pretrained={stage1}"]))
    found = load_pretrained(checkpoint_path(stage1, 0))
    found.weights["heads.c.tokens.bias"] += 1
    save_pretrained(checkpoint_path(tmp_path / "changed", 0), found)
    with pytest.raises(UserError, match=r"made from other inputs.*\n.*pretrained was \w+, is \w+"):
        train(compose([*given, runs, f"training.pretrained={tmp_path / 'changed'}"]))


def test_subject_without_others_is_refused(given: list[str]) -> None:
    lonely = compose(given)
    lonely.data.subjects = ["subj01"]
    with pytest.raises(UserError, match=r"data scenes has no subject beside subj01; give training.pretrain=false"):
        others_of(lonely, 0)


# ---- what is out of sight ------------------------------------------------------------------------------------------


def test_targets_of_test_images_are_out_of_reach_of_both_stages(given: list[str]) -> None:
    cfg = compose([*given, "training.aux_target=g"])
    stores = {name: store_path(cfg, name) for name in ("c", "z")}
    first = Stage(cfg, others_of(cfg, 0), stores, 0, store_path(cfg, "g"))
    second = replace(stage_of(cfg, "c", "z"), teacher=store_path(cfg, "g"))
    for stage in (first, second):
        readers = [*stage.truths.values(), *stage.data().targets.values()]
        assert len(readers) == 5  # the teacher's among them
        for reader in readers:
            assert isinstance(reader, TargetStore)
            with pytest.raises(LeakError, match=f"first: image {N_TRAIN + 1}"):
                reader.rows(np.array([0, N_TRAIN + 1]))
        assert not np.intersect1d(stage.seen, TEST_IDS).size


def test_no_test_image_is_asked_for(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even refused: over both stages, alignment, validation and scoring."""
    asked: set[int] = set()
    rows = TargetStore._rows

    def noted(self: TargetStore, ids: NDArray[Any]) -> NDArray[np.intp]:
        asked.update(np.asarray(ids).ravel().tolist())
        return rows(self, ids)

    monkeypatch.setattr(TargetStore, "_rows", noted)
    train(compose([*given, f"paths.runs={tmp_path}", "network.share=all", "training.aux_target=g"]))
    assert asked == set(range(N_TRAIN))


def test_test_images_change_no_byte(given: list[str], tmp_path: Path) -> None:
    """Neither their voxels, of any subject, nor their targets."""
    more = ["network.share=all", "training.aux_target=g", "network.prior=true", "training.trials=random"]
    honest = compose([*given, *more, f"paths.runs={tmp_path / 'honest'}"])
    train(honest)
    for folder in ("data", "cache"):
        shutil.copytree(getattr(honest.paths, folder), tmp_path / folder)
    paths = [f"paths.{name}={tmp_path / name}" for name in ("data", "cache")]
    other = compose([*given, *more, *paths, f"paths.runs={tmp_path / 'other'}"])
    for name in other.data.subjects:
        with edited(subject_path(other, name)) as file:
            rows, voxels = np.isin(file["image_id"][()], TEST_IDS), file["voxels"][()]
            voxels[rows] = 1e3
            file["voxels"][...] = voxels
    for name in SHAPES:
        with edited(store_path(other, name)) as file:
            file["features"][N_TRAIN:] = -1e3
    train(other)
    for cfgs in ((honest, other), (pretrain_of(honest), pretrain_of(other))):
        files = [sorted((folder_of(cfg) / "checkpoint").iterdir()) for cfg in cfgs]
        assert [path.name for path in files[0]] == [path.name for path in files[1]]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


@pytest.fixture
def own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subjects whose images are divided differently, as where they see different ones."""

    def split(cfg: Config) -> Split:
        early = cfg.subject.sessions == 1
        folds = {
            "subj01": Fold(np.arange(20, 40), np.arange(0, 5 if early else 10), np.arange(50, 62)),
            "subj02": Fold(np.arange(0, 52), np.arange(52, 58), np.arange(58, 62)),
            "subj03": Fold(np.arange(8, 22), np.arange(22, 30), np.arange(30, 36)),
        }
        return Split("own", (folds[cfg.subject.name],), "")

    monkeypatch.setattr(pretraining, "split_of", split)


@pytest.mark.usefixtures("own_splits")
@pytest.mark.parametrize("sessions", [0, 1])
def test_held_out_images_of_the_subject_are_out_of_sight_of_the_others(given: list[str], sessions: int) -> None:
    """All its validation images are not trained on, nor are test images looked at.

    The sessions that fine-tuning may use change nothing: the first stage is one run whatever they are.
    """
    cfgs = [compose([*given, "training.stage=pretrain", f"subject.sessions={n}"]) for n in (0, sessions)]
    assert run_id("train", cfgs[0]) == run_id("train", cfgs[1])
    second, third = (fold for _, fold in others_of(cfgs[1], 0))
    assert second.train.tolist() == list(range(10, 50))
    assert second.val.tolist() == []
    assert second.test.tolist() == list(range(50, 62))
    assert third.train.tolist() == list(range(10, 22))
    assert third.val.tolist() == list(range(22, 30))
    assert third.test.tolist() == [*range(30, 36), *range(50, 62)]
