"""The reconstruct verb: run folder, resume, oracle features, floors, and messages."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_backbone import tiny_backbone
from numpy.typing import NDArray
from torch import Tensor

from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import stimuli_path, write_stimuli
from nd.errors import UserError
from nd.generate.base import Reconstructions
from nd.generate.denoiser import Denoiser
from nd.generate.guided_diffusion import GuidedDiffusion
from nd.generate.parts import Parts
from nd.generate.plan import Plan
from nd.reconstruct import main, reconstruct
from nd.runs.folder import RunFolder

N_TRAIN, N_TEST, SIZE = 8, 5, 16
SHAPES = {"z": (4, 4, 4), "c": (8, 16), "g": (6, 17, 16)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone(folder)
    return folder


@pytest.fixture
def cfg(backbone: Path, tmp_path: Path) -> Config:
    """Stimuli and a finished predict run for a tiny backbone: 3 sampled steps, 1 guided, 2 images at a time."""
    cfg = compose(
        [
            f"paths.root={tmp_path}",
            f"backbone.weights={backbone}",
            f"backbone.image_tower={backbone}/image_tower",
            f"backbone.image_size={SIZE}",
            f"backbone.tower_size={SIZE}",
            f"data.image_size={SIZE}",
            f"data.n_train={N_TRAIN}",
            "data.n_val=2",
            f"data.n_test={N_TEST}",
            "method.steps=4",
            "method.repeats=2",
            "guidance.kappa=0.5",
            "guidance.eta=0.4",
            "guidance.normalise=true",
            "trainer.accelerator=cpu",
            "trainer.batch_size=4",
            "trainer.progress=false",
        ]
    )
    n = N_TRAIN + N_TEST
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)
    write_stimuli(stimuli_path(cfg), images=images, captions=[[f"{i} is it"] for i in range(n)], image_id=np.arange(n))
    write_predictions(cfg, {name: random.standard_normal((N_TEST, *shape)) for name, shape in SHAPES.items()})
    return cfg


def write_predictions(cfg: Config, values: Mapping[str, NDArray[np.float64]]) -> None:
    folder = RunFolder.open(cfg, "predict")
    with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as file:
        file["image_id"] = np.arange(N_TRAIN, N_TRAIN + N_TEST)
        for name, rows in values.items():
            file[name] = rows.astype(np.float32)


def copied(cfg: Config, tmp_path: Path) -> Config:
    """The same configuration with other run folders, and the same predictions there."""
    again = derive(cfg, f"paths.runs={tmp_path}/other")
    if not RunFolder.open(again, "predict").done:
        with h5py.File(RunFolder.open(cfg, "predict").path / "predictions.h5") as file:
            write_predictions(again, {name: file[name][:] for name in SHAPES})
    return again


def test_run_folder_holds_images_and_a_second_run_does_nothing(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    path = reconstruct(cfg)
    assert f"wrote 5 images at {path / 'images.h5'}" in capsys.readouterr().out
    with h5py.File(path / "images.h5") as file:
        assert file["images"].shape == (N_TEST, 2, SIZE, SIZE, 3)
        assert file["image_id"][:].tolist() == [8, 9, 10, 11, 12]
        assert dict(file.attrs) == {
            "oracle": False, "seed": 42, "part": "test", "generator": "guided_diffusion", "control": "none",
            "simulated": True, "transductive": False,
        }  # fmt: skip
    assert RunFolder.open(cfg, "reconstruct").done
    assert not (path / "parts").exists()
    written = (path / "images.h5").stat().st_mtime_ns
    assert reconstruct(cfg) == path
    assert (path / "images.h5").stat().st_mtime_ns == written


def test_killed_run_goes_on_and_gives_the_same_bytes(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (reconstruct(cfg) / "images.h5").read_bytes()
    again = copied(cfg, tmp_path)
    generate, made = GuidedDiffusion.__call__, []

    def dying(self: GuidedDiffusion, ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        if made:
            raise KeyboardInterrupt
        made.extend(ids)
        return generate(self, ids, features)

    monkeypatch.setattr(GuidedDiffusion, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):  # Lightning turns it into exit(1) and ignores further ones
        reconstruct(again)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    folder = RunFolder.open(again, "reconstruct")
    assert not folder.done
    assert Parts(folder.path / "parts").finished() == {8, 9}
    monkeypatch.setattr(GuidedDiffusion, "__call__", lambda s, ids, f: made.extend(ids) or generate(s, ids, f))
    assert (reconstruct(again) / "images.h5").read_bytes() == whole
    assert made == [8, 9, 10, 11, 12]


def test_a_resumed_run_keeps_its_plan_whatever_memory_is_free(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (reconstruct(cfg) / "images.h5").read_bytes()
    again = copied(cfg, tmp_path)
    folder = RunFolder.open(again, "reconstruct")
    generate, used = GuidedDiffusion.__call__, list[Plan]()

    def noting(self: GuidedDiffusion, ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        used.append(self.sampler.plan)
        if len(used) == 2:
            raise UserError("enough")
        return generate(self, ids, features)

    monkeypatch.setattr(GuidedDiffusion, "__call__", noting)
    with pytest.raises(UserError, match="enough"):
        reconstruct(again)
    monkeypatch.setattr(GuidedDiffusion, "plan_for", lambda *_: Plan(1, 1, 1, checkpoint=True))  # memory has shrunk
    assert (reconstruct(again) / "images.h5").read_bytes() == whole
    assert set(used) == {Plan(2, 2, 2)}  # two batches of 2 images x 2 repeats and one of 2 samples
    assert folder.manifest["execution"] == {"plan": asdict(Plan(2, 2, 2))}


def test_a_run_that_finished_nothing_may_take_a_smaller_plan(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.open(cfg, "reconstruct")
    with suppress(KeyboardInterrupt), folder.writing(cfg):
        Parts(folder.path / "parts").record(Plan(20, 40, 20))
        raise KeyboardInterrupt
    monkeypatch.setattr(GuidedDiffusion, "plan_for", lambda *_: Plan(1, 1, 1))
    reconstruct(cfg)
    assert folder.manifest["execution"] == {"plan": asdict(Plan(1, 1, 1))}


def test_one_image_costs_one_image(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, conditional = list[int](), Denoiser.conditional

    def counted(self: Denoiser, z: Tensor, *given: Any) -> Tensor:
        sizes.append(len(z))
        return conditional(self, z, *given)

    monkeypatch.setattr(Denoiser, "conditional", counted)
    reconstruct(derive(cfg, "debug.limit_images=1", "method.repeats=1"))
    assert sizes == [1, 1, 2, 2]  # a guided step in two passes, then two steps with both conditions in one


def test_the_bar_moves_within_the_first_batch(cfg: Config, capfd: pytest.CaptureFixture[str]) -> None:
    reconstruct(derive(cfg, "trainer.batch_size=80", "trainer.progress=true"))  # all five images at once
    shown = re.findall(r" (\d(?:\.\d+)?)/5 \[\S+<(\S+), +(\S+?)(?:image/s|s/image)\]", capfd.readouterr().err)
    within = [float(done) for done, left, rate in shown if "?" not in left + rate]
    assert len({n for n in within if 0 < n < 5}) >= 3
    assert within == sorted(within)


def test_oracle_run_is_marked_and_reads_no_predictions(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from nd.extract import extract

    oracle = derive(cfg, "features=oracle", "method.steps=2", "debug.limit_images=2")
    with pytest.raises(UserError, match="nd extract target=z"):
        reconstruct(oracle)
    for target in SHAPES:
        extract(derive(oracle, f"target={target}"))
    monkeypatch.setattr("nd.reconstruct.found", lambda *_: pytest.fail("an oracle run needs no predictions"))
    with h5py.File(reconstruct(oracle) / "images.h5") as file:
        assert bool(file.attrs["oracle"])
        assert file["image_id"][:].tolist() == [8, 9]


def test_floor_needs_neither_predictions_nor_backbone(cfg: Config, tmp_path: Path) -> None:
    floor = derive(cfg, "method=mean_image")
    RunFolder.open(cfg, "predict").path.rename(tmp_path / "gone")
    with h5py.File(reconstruct(floor) / "images.h5") as file:
        assert file["images"].shape == (N_TEST, 1, SIZE, SIZE, 3)
        assert len(np.unique(file["images"][:, 0], axis=0)) == 1


def test_missing_predictions_name_the_command_and_write_nothing(cfg: Config, tmp_path: Path) -> None:
    other = derive(cfg, "subject=subj02")
    with pytest.raises(UserError, match=r"nd predict .*subject=subj02"):
        reconstruct(other)
    assert not RunFolder.open(other, "reconstruct").path.exists()


def test_latents_that_explode_give_one_clear_message(cfg: Config) -> None:
    wild = derive(cfg, "guidance.kappa=1e38", "guidance.normalise=false")
    with pytest.raises(UserError, match=r"5 of 5 images .* image 8, repeat 0: .* at step [12] of 3 .*kappa=1e\+38"):
        reconstruct(wild)
    assert not RunFolder.open(wild, "reconstruct").path.exists()


def test_a_sweep_over_guidance_says_what_it_samples_and_how_far_it_is(
    cfg: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """What jobs have in common is made before Hydra sets up logging for the first of them."""
    with pytest.raises(SystemExit) as left:
        main([*cfg.overrides, "trainer.progress=true", "-m", "guidance.kappa=0.3,0.5,0.6"])
    assert left.value.code == 0
    said = capfd.readouterr()
    lines = said.err.replace("\r", "\n").splitlines()
    assert lines.count("sampling 3 points of guidance together") == 1
    bars = [k for k, line in enumerate(lines) if line.startswith("reconstruct:") and "5/5" in line]
    assert lines.index("sampling 3 points of guidance together") < min(bars)
    assert said.out.count("is finished; nothing to do\n") == 3


def test_a_log_file_in_a_job_s_folder_is_not_opened_before_there_is_a_job(cfg: Config) -> None:
    shared = [text for text in cfg.overrides if not text.startswith("method.")]
    with pytest.raises(SystemExit) as left:
        main([*shared, "method=mean_image", "hydra/job_logging=default", "-m", "seed=1,2"])
    assert left.value.code == 0


def test_a_wrong_option_of_hydra_is_refused_before_anything_is_sampled(
    cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*cfg.overrides, "hydra.verbos=true", "-m", "guidance.kappa=0.3,0.5"])
    assert left.value.code == 2
    assert "nd reconstruct: Could not override 'hydra.verbos'" in capsys.readouterr().err
    assert not RunFolder.open(cfg, "reconstruct").path.parent.exists()
