"""ROI images on Scenes by Brain-Diffuser: areas of simulated voxels with a known preference move the image as expected.

Images, filters, attributes, noise and networks are those of the embedded world; only which voxels an ROI holds is made
up: all of one kind, of which it is known what drives them. Each seed is another subject with voxels, noise and a
shuffle of his own. ROIs come in pairs, and of a pair the images' difference says which of both is which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import data_folder, stimuli_path, subject_path
from nd.extract import extract
from nd.roi import roi
from nd.scenes.attributes import attribute_names
from nd.scenes.brain import Brain, standardise, windows
from nd.scenes.cortex import Cortex
from nd.scenes.noise_ceilings import draw_ncsnr
from nd.scenes.world import World, write_experiment
from nd.train import train

Float = NDArray[np.floating]
N_TRAIN, N_VAL, N_TEST, N_EACH, N_SEEDS = 210, 30, 2, 16, 6
LEAST = 0.5**N_SEEDS  # chance of contrasts that all have the sign that is expected: 1 of 64
LIGHTER, REDDER = 0, 1  # of the opponent channels, those that see more of something
FIELD_SIZE, EXPONENT = 0.15, 0.5  # sigma of a receptive field, image sides; compression as in V1 and V2
WARM, COLD = {"yellow", "orange", "desert"}, {"blue", "turquoise", "purple", "sea", "night"}  # as red as green


# ---- areas of one kind each -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Areas(Cortex):
    """A cortex of the areas below; `area` counts them."""

    def rois(self) -> dict[str, NDArray[np.bool_]]:
        """Return the mask (V,) of every area, and that of all."""
        masks = {name: self.area == k for k, name in enumerate(AREAS)}
        return {**masks, "nsdgeneral": np.ones(len(self.area), bool)}


def seen(world: World, random: np.random.Generator, channel: int, low: float, high: float) -> Float:
    """Return responses (N, V) to an opponent channel in fields between two heights, downwards from the middle."""
    places = [random.uniform(-0.4, 0.4, N_EACH), random.uniform(low, high, N_EACH), np.full(N_EACH, FIELD_SIZE)]
    window_VP = windows(np.stack(places, axis=1).astype(np.float32))
    found: Float = (world.drive[0].opponent[channel] @ window_VP.T) ** EXPONENT
    return found


def warmth(world: World, group: str) -> Float:
    """Return responses (N, V) that grow with warm things of a group and shrink with cold ones."""
    words = [name.partition(":") for name in attribute_names()]
    signs = [(what in WARM) - (what in COLD) if of == group else 0 for of, _, what in words]
    return np.repeat(world.drive[1] @ np.array(signs)[:, None], N_EACH, axis=1)


AREAS: dict[str, Callable[[World, np.random.Generator], Float]] = {
    "upper": lambda world, random: seen(world, random, LIGHTER, -0.4, -0.15),
    "lower": lambda world, random: seen(world, random, LIGHTER, 0.15, 0.4),
    "colour": lambda world, random: seen(world, random, REDDER, -0.4, 0.4),
    "achromatic": lambda world, random: seen(world, random, LIGHTER, -0.4, 0.4),
    "object": lambda world, random: warmth(world, "colour"),
    "layout": lambda world, random: warmth(world, "background"),
}


def brain(seed: int) -> Brain:
    """Return one subject: as many voxels of each area, as noisy as V1's in NSD."""
    random, owner = np.random.default_rng(seed), np.repeat(np.arange(len(AREAS)), N_EACH)
    ijk = np.stack([owner, np.tile(np.arange(N_EACH), len(AREAS)), 0 * owner], axis=1).astype(np.int16)
    ncsnr = draw_ncsnr(random, "subj01", np.full(len(owner), "V1"))
    none = np.zeros((len(owner), 0), np.float32)
    return Brain(f"subj{seed + 1:02d}", Areas(ijk, owner, none), none, none, ncsnr, seed)


# ---- what the difference of two ROIs' images (H, W, 3) shows ---------------------------------------------------------


def upwards(difference: Float) -> float:
    """By how much lighter the upper half is than the lower."""
    grey = difference.mean(2)
    return float(np.subtract(*(half.mean() for half in np.split(grey, 2))))


def redder(difference: Float) -> float:
    """By how much more red there is than green."""
    return float((difference[..., 0] - difference[..., 1]).mean())


def central(difference: Float) -> float:
    """By how much warmer the middle is than what is around it."""
    warm, quarter = difference[..., 0] - difference[..., 2], len(difference) // 4
    inside = np.pad(np.ones((2 * quarter, 2 * quarter), bool), quarter)
    return float(warm[inside].mean() - warm[~inside].mean())


PAIRS = {("upper", "lower"): upwards, ("colour", "achromatic"): redder, ("object", "layout"): central}


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return a prepared folder with one subject for each seed, and the targets of all images."""
    people = [brain(seed) for seed in range(N_SEEDS)]
    cfg = compose([
        f"paths.root={tmp_path_factory.mktemp('roi')}", "method=brain_diffuser", f"data.n_train={N_TRAIN + N_VAL}",
        f"data.n_val={N_VAL}", f"data.n_test={N_TEST}", f"data.subjects=[{','.join(one.name for one in people)}]",
        "method.steps=4", "trainer.accelerator=cpu", "trainer.progress=false",
        f"rois=[{','.join(AREAS)}]",
    ])  # fmt: skip
    world = World(cfg.data)
    data_folder(cfg).mkdir(parents=True)
    world.write_stimuli(stimuli_path(cfg))
    for seed, one in enumerate(people):
        random = np.random.default_rng([seed, 1])
        clean = standardise(np.concatenate([responses(world, random) for responses in AREAS.values()], axis=1))
        write_experiment(subject_path(cfg, one.name), one, clean, cfg.data, world.stimuli_hash, world.seen_ids)
    extract(derive(cfg, "target=all"))
    return cfg


def contrasts(cfg: Config, seed: int, *given: str) -> list[float]:
    """Return what each pair of ROIs differs by in one subject."""
    name = brain(seed).name  # alone: nothing is said here of what subjects have in common
    own = derive(cfg, f"subject.name={name}", f"data.subjects=[{name}]", f"seed={seed}", *given)
    for target in own.method.targets:
        train(own.with_target(target))
    with h5py.File(roi(own).with_suffix(".h5")) as file:
        names, images = [name.decode() for name in file["roi"]], file["images"][:].mean(1)
    of = dict(zip(names, images, strict=True))
    return [measure(of[a] - of[b]) for (a, b), measure in PAIRS.items()]


def chance(values_S: Float) -> float:
    """Return how often the mean is as large were it by lot, in each subject, which of a pair is which."""
    signs = np.array(list(product((1, -1), repeat=len(values_S))))
    return float(np.mean(signs @ values_S >= values_S.sum() - 1e-9))


def test_images_of_rois_move_as_the_areas_prefer_and_those_of_a_shuffled_mapper_do_not(cfg: Config) -> None:
    known, shuffled = (
        np.array([contrasts(cfg, seed, f"control={control}") for seed in range(N_SEEDS)])
        for control in ("none", "shuffled_labels")
    )
    for k, pair in enumerate(PAIRS):
        assert chance(known[:, k]) == LEAST, (pair, known[:, k])
        assert LEAST < chance(shuffled[:, k]) < 1, (pair, shuffled[:, k])  # neither this way nor the other in all
        assert known[:, k].min() > shuffled[:, k].max(), (pair, known[:, k], shuffled[:, k])  # 1 of 924 by lot
        assert abs(shuffled[:, k].mean()) < known[:, k].mean() / 2, pair
