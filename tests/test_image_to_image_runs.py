"""Takagi & Nishimoto and Brain-Diffuser with the networks of Scenes: one image is the same however it comes about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import Config
from nd.config.application import compose, derive
from nd.config.components import component
from nd.data.prepared import stimuli_path, write_stimuli
from nd.generate.base import Reconstructions
from nd.generate.brain_diffuser import DualStart
from nd.generate.image_to_image import ImageToImage
from nd.generate.inputs import PredictedFeatures
from nd.generate.plan import Plan
from nd.generate.takagi import TwoPasses
from nd.reconstruct import reconstruct, reconstruct_together, sweeps
from nd.runs.folder import RunFolder

IDS, SIDE = [6, 7, 8, 9, 10], 64
SHAPES = {
    "takagi": {"z40": (4, 10, 10), "c": (24, 128)},
    "brain_diffuser": {"vdvae": (2440,), "clip_vision": (65, 128), "clip_text": (24, 128)},
}
FIRST = {"takagi": TwoPasses, "brain_diffuser": DualStart}
Call = Callable[[ImageToImage, Sequence[int], Mapping[str, Tensor]], list[Reconstructions]]
both = pytest.mark.parametrize("method", SHAPES)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """Return what composes a method, with predictions of five images that are the same in every folder of runs."""

    def make(method: str, *given: str) -> Config:
        cfg = compose([
            f"paths.root={tmp_path}", f"method={method}", "method.steps=3", "method.repeats=2", "data.n_train=6",
            "data.n_val=2", f"data.n_test={len(IDS)}", "trainer.accelerator=cpu", "trainer.batch_size=4",
            "trainer.progress=false", *given,
        ])  # fmt: skip
        folder, random = RunFolder.open(cfg, "predict"), np.random.default_rng(1)
        if not folder.done:
            with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as file:
                file["image_id"] = IDS
                for name, shape in SHAPES[method].items():
                    file[name] = 0.5 * random.standard_normal((len(IDS), *shape)).astype(np.float32)
        return cfg

    n = 6 + len(IDS)
    images = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)
    path = stimuli_path(compose([f"paths.root={tmp_path}"]))
    write_stimuli(path, images=images, captions=[[f"{i} is it"] for i in range(n)], image_id=np.arange(n))
    return make


def images_of(path: Path) -> NDArray[np.uint8]:
    with h5py.File(path / "images.h5") as file:
        found: NDArray[np.uint8] = file["images"][:]
    return found


@both
def test_batch_and_order_change_no_image(configured: Callable[..., Config], tmp_path: Path, method: str) -> None:
    cfg = configured(method)
    found = images_of(reconstruct(cfg))
    assert len(np.unique(found.reshape(2 * len(IDS), -1), axis=0)) == 2 * len(IDS)  # every image and repeat is its own
    larger = images_of(reconstruct(configured(method, "trainer.batch_size=10", f"paths.runs={tmp_path}/larger")))
    assert np.abs(found.astype(int) - larger).max() <= 1  # another plan, another rounding
    source = PredictedFeatures(RunFolder.open(cfg, "predict").path / "predictions.h5")
    generator = component("generator", method).build([cfg], torch.device("cpu"))
    generator.use(Plan(guided=1, plain=4, decode=4))

    def made(ids: Sequence[int]) -> NDArray[np.uint8]:
        features = {name: torch.from_numpy(source.rows(name, list(ids))) for name in SHAPES[method]}
        images: NDArray[np.uint8] = generator(ids, features)[0].images
        return images

    together = made(IDS)
    assert np.array_equal(made(IDS[::-1])[::-1], together)
    assert np.array_equal(made(IDS[2:3]), together[2:3])


@both
def test_killed_and_resumed_equals_undisturbed(
    configured: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = (reconstruct(configured(method)) / "images.h5").read_bytes()
    again = configured(method, f"paths.runs={tmp_path}/again")
    generate: Call = ImageToImage.__call__
    made: list[int] = []

    def dying(self: ImageToImage, ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        if made:
            raise KeyboardInterrupt
        made.extend(ids)
        return generate(self, ids, features)

    monkeypatch.setattr(ImageToImage, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(again)
    assert made == [6, 7]
    assert not RunFolder.open(again, "reconstruct").done
    monkeypatch.setattr(ImageToImage, "__call__", lambda s, ids, f: made.extend(ids) or generate(s, ids, f))
    assert (reconstruct(again) / "images.h5").read_bytes() == whole
    assert made == IDS


@pytest.mark.slow
@both
def test_two_processes_make_the_same_bytes(configured: Callable[..., Config], tmp_path: Path, method: str) -> None:
    one = reconstruct(configured(method))
    two = reconstruct(configured(method, f"paths.runs={tmp_path}/two", "trainer.devices=2"))
    assert (one / "images.h5").read_bytes() == (two / "images.h5").read_bytes()


@pytest.mark.parametrize(
    ("method", "points"),
    [
        ("takagi", ["strength=0.8", "strength=0.4"]),
        ("brain_diffuser", ["text_share=0.4", "text_share=0.9", "strength=0.4"]),
    ],
)
def test_points_of_a_sweep_share_the_first_stage_and_are_what_each_is_alone(
    configured: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, points: list[str]
) -> None:
    cfg = configured(method, "debug.limit_images=2")
    together = [derive(cfg, f"method.{point}") for point in points]
    assert [len(group) for group in sweeps(together)] == [len(points)]
    calls: list[list[int]] = []
    stage, first = FIRST[method], FIRST[method].__call__

    def counted(self: object, ids: Sequence[int], *rest: object) -> tuple[Tensor, Tensor]:
        calls.append(list(ids))
        return first(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "__call__", counted)
    shared = [images_of(path) for path in reconstruct_together(together)]
    assert calls == [IDS[:2]]
    configured(method, "debug.limit_images=2", f"paths.runs={tmp_path}/alone")
    alone = [images_of(reconstruct(derive(one, f"paths.runs={tmp_path}/alone"))) for one in together]
    assert all(np.array_equal(a, b) for a, b in zip(shared, alone, strict=True))
    assert len({one.tobytes() for one in shared}) == len(points)
