"""ROI images on Scenes: areas of simulated voxels with a known preference move the image as they should.

Images, filters and scenes are those of the embedded world; the voxels of each area are all of one kind, of which it is
known what they prefer. Each seed is another subject, with voxels and noise of its own. Areas come in pairs, whose
contrast says by how much the first moves the image its own way and the second another.
"""

from __future__ import annotations

from collections.abc import Callable

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import data_folder, stimuli_path, subject_path, write_stimuli, write_subject
from nd.extract import extract
from nd.metrics.intervals import bootstrap_interval
from nd.roi import roi
from nd.scenes.brain import standardise, windows
from nd.scenes.draw import draw_scenes
from nd.scenes.filters import Bank, filter_bank
from nd.scenes.scene import Scene, sample_scene
from nd.train import train

N_TRAIN, N_VAL, N_TEST, SIDE, WORLD, N_EACH = 360, 40, 4, 32, 7, 10
SEEDS = range(4)
LIGHTER, REDDER, BLUER = 0, 1, 2  # of the opponent channels that see more of something
FIELD_SIZE = 0.15  # sigma of a receptive field, image sides
WARM = ("red", "orange", "yellow", "pink", "brown")
Float = NDArray[np.floating]


def fields(random: np.random.Generator, low: float, high: float) -> Float:
    """Receptive fields (V, 3) whose centres lie between two heights of the image, downwards from its middle."""
    places = [random.uniform(-0.4, 0.4, N_EACH), random.uniform(low, high, N_EACH), np.full(N_EACH, FIELD_SIZE)]
    return np.stack(places, axis=1).astype(np.float32)


def seen(bank: Bank, field_V3: Float, channel: int) -> Float:
    """Responses (N, V) of early voxels that see one opponent channel."""
    return np.sqrt(bank.opponent[channel] @ windows(field_V3).T)


def warm_objects(scenes: list[Scene]) -> Float:
    """(N,) how much warm rather than cold object there is near the middle."""

    def near(thing: object) -> float:
        x, y = thing.x - 0.5, thing.y - 0.5  # type: ignore[attr-defined]
        return float(np.exp(-(x**2 + y**2) / (2 * 0.15**2)))

    return np.array([sum(near(t) * (1 if t.colour in WARM else -1) for t in s.things) for s in scenes])


def warm_layout(scenes: list[Scene]) -> Float:
    """(N,) how warm the background is."""
    return np.array([np.mean([1.0 if colour in WARM else -1.0 for colour in s.colours]) for s in scenes])


def areas(random: np.random.Generator, bank: Bank, scenes: list[Scene]) -> dict[str, Float]:
    """Noise-free responses (N, V) of each area."""
    everywhere = fields(random, -0.4, 0.4)
    return {
        "upper": seen(bank, fields(random, -0.4, -0.15), LIGHTER),
        "lower": seen(bank, fields(random, 0.15, 0.4), LIGHTER),
        "colour": np.concatenate([seen(bank, everywhere[::2], REDDER), seen(bank, everywhere[1::2], BLUER)], axis=1),
        "achromatic": seen(bank, everywhere, LIGHTER),
        "object": np.repeat(warm_objects(scenes)[:, None], N_EACH, axis=1),
        "layout": np.repeat(warm_layout(scenes)[:, None], N_EACH, axis=1),
    }


# ---- what an image (H, W, 3) of changes shows -----------------------------------------------------------------------


def upwards(change: Float) -> float:
    """How much lighter the upper half becomes than the lower, over the size of the whole change."""
    grey = change.mean(2)
    return float((grey[: SIDE // 2].mean() - grey[SIDE // 2 :].mean()) / np.abs(change).mean())


def colourful(change: Float) -> float:
    """Share of the change that is no change of grey."""
    grey = change.mean(2, keepdims=True)
    return float(np.square(change - grey).sum() / np.square(change).sum())


def central(change: Float) -> float:
    """How much more than the border the middle turns warm, over the size of the whole change."""
    warmth, quarter = change[..., 0] - change[..., 2], SIDE // 4
    middle = warmth[quarter:-quarter, quarter:-quarter].mean()
    border = np.concatenate([warmth[:4].ravel(), warmth[-4:].ravel(), warmth[:, :4].ravel(), warmth[:, -4:].ravel()])
    return float((middle - border.mean()) / np.abs(change).mean())


PAIRS: dict[tuple[str, str], Callable[[Float], float]] = {
    ("upper", "lower"): upwards, ("colour", "achromatic"): colourful, ("object", "layout"): central,
}  # fmt: skip


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A prepared folder with one subject for each seed."""
    subjects = [f"subj0{seed + 1}" for seed in SEEDS]
    cfg = compose([
        f"paths.root={tmp_path_factory.mktemp('roi')}", "method=ridge_pixels", f"data.n_train={N_TRAIN + N_VAL}",
        f"data.n_val={N_VAL}", f"data.n_test={N_TEST}", f"data.image_size={SIDE}", "data.n_repeats=1",
        f"data.subjects=[{','.join(subjects)}]", "trainer.accelerator=cpu",
    ])  # fmt: skip
    ids = np.arange(N_TRAIN + N_VAL + N_TEST)
    scenes = [sample_scene(WORLD, int(i)) for i in ids]
    images = draw_scenes(scenes, SIDE)
    data_folder(cfg).mkdir(parents=True)
    write_stimuli(stimuli_path(cfg), images=images, captions=[["a"]] * len(ids), image_id=ids)
    bank = filter_bank(images)
    for seed, subject in enumerate(subjects):
        random = np.random.default_rng(seed)
        clean = areas(random, bank, scenes)
        voxels = standardise(np.concatenate(list(clean.values()), axis=1))
        voxels = voxels + random.standard_normal(voxels.shape)  # as much noise as signal
        owner = np.repeat(np.arange(len(clean)), N_EACH)
        write_subject(
            subject_path(cfg, subject), voxels=voxels.astype(np.float32), image_id=ids,
            session=np.zeros(len(ids), np.int32), repeat=np.zeros(len(ids), np.int32), trial=ids, attributes={},
            ijk=np.zeros((len(owner), 3), np.int16), rois={name: owner == k for k, name in enumerate(clean)},
        )  # fmt: skip
    extract(derive(cfg, "target=pixels"))
    return cfg


def contrasts(cfg: Config, *given: str) -> NDArray[np.float64]:
    """Contrast of each pair of areas in each subject: (subject, pair)."""
    found = []
    for subject in cfg.data.subjects:
        own = derive(cfg, f"subject={subject}", *given)
        train(own.with_target("pixels"))
        with h5py.File(roi(own).with_suffix(".h5")) as file:
            names, images = [name.decode() for name in file["roi"]], file["images"][:, 0].astype(float)
        change = dict(zip(names, images - images.mean(0), strict=True))
        found.append([measure(change[a]) - measure(change[b]) for (a, b), measure in PAIRS.items()])
    return np.array(found)


def test_images_of_rois_move_as_the_areas_prefer_and_those_of_a_shuffled_mapper_do_not(cfg: Config) -> None:
    known, shuffled = contrasts(cfg), contrasts(cfg, "control=shuffled_labels")
    print(np.round(known, 2), np.round(shuffled, 2))
    for k, pair in enumerate(PAIRS):
        own = bootstrap_interval(known[:, k], method="expanded")
        assert own.lo > 0, pair
        assert known[:, k].min() > 0, pair
        other = bootstrap_interval(shuffled[:, k], method="expanded")
        assert other.lo < 0 < other.hi, pair
        assert abs(other.mean) < own.mean / 2, pair
