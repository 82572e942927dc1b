"""ROI analysis: published lengths, and a simulated brain whose areas have known preferences, through the verb."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_config import mapper_settings
from helpers_linear import noisy_brain, one_fold
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import compose, derive
from nd.data.prepared import data_folder, open_subject, stimuli_path, subject_path, write_stimuli, write_subject
from nd.errors import UserError
from nd.extract import extract
from nd.mappers.ridge import Ridge
from nd.mappers.statistics import TargetStatistics
from nd.mappers.voxel_patterns import (
    PUBLISHED,
    Contributions,
    contributions,
    cosine,
    decoded,
    profile,
    shares,
    voxel_maps,
)
from nd.roi import roi
from nd.train import train

N_TRAIN, N_TEST, SIDE, N_EACH = 80, 4, 16, 6
SEEDS = range(4)
AREAS = ("upper", "lower", "colour", "light", "object", "layout")


def templates() -> dict[str, NDArray[np.float64]]:
    """What each area speaks of: upper or lower field, colour or light, an object in the middle or the layout around."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    grey, field = np.ones(3), np.ones((SIDE, SIDE, 1))
    disc = (np.hypot(rows, columns) < 0.25)[..., None] * np.sign(columns + 1e-9)[..., None]
    return {
        "upper": (rows < 0)[..., None] * np.sin(40 * columns)[..., None] * grey,
        "lower": (rows > 0)[..., None] * np.sin(40 * columns)[..., None] * grey,
        "colour": field * np.array([1, -1, 0]),
        "light": field * grey,
        "object": disc * np.array([1, 1, -2]),
        "layout": rows[..., None] * np.array([1, 1, -2]),
    }


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Images are sums of the templates; six voxels of each area follow one template's weight, with as much noise.

    Six further ones follow nothing. A second subject has noise of its own, and his voxels in another order.
    """
    cfg = compose([
        f"paths.root={tmp_path_factory.mktemp('roi')}", "method=ridge_pixels", f"data.n_train={N_TRAIN}",
        "data.n_val=10", f"data.n_test={N_TEST}", f"data.image_size={SIDE}", "data.n_repeats=1",
        "data.subjects=[subj01,subj02]", "trainer.accelerator=cpu",
    ])  # fmt: skip
    random, n = np.random.default_rng(0), N_TRAIN + N_TEST
    weights = random.standard_normal((n, len(AREAS)))
    units = np.stack([one / np.linalg.norm(one) for one in templates().values()])
    images = 127.5 + 250 * np.einsum("na,ahwc->nhwc", weights, units)
    data_folder(cfg).mkdir(parents=True)
    ids = np.arange(n)
    write_stimuli(stimuli_path(cfg), images=images.clip(0, 255).astype(np.uint8), captions=[["a"]] * n, image_id=ids)
    followed = np.repeat(np.pad(weights, ((0, 0), (0, 1))), N_EACH, axis=1)
    owner = np.repeat(np.arange(len(AREAS) + 1), N_EACH)
    for subject in cfg.data.subjects:
        voxels = (followed + random.standard_normal(followed.shape)).astype(np.float32)
        write_subject(
            subject_path(cfg, subject), voxels=voxels, image_id=ids, session=np.zeros(n, np.int32),
            repeat=np.zeros(n, np.int32), trial=ids, attributes={}, ijk=np.zeros((voxels.shape[1], 3), np.int16),
            rois={name: owner == k for k, name in enumerate((*AREAS, "noise", "empty"))},
        )  # fmt: skip
        followed, owner = followed[:, ::-1], owner[::-1]
    extract(derive(cfg, "target=pixels"))
    return cfg


def preferences(cfg: Config) -> NDArray[np.float64]:
    """Cosine of what each ROI adds to the image, against the ROIs' mean, with each template: (ROI, template)."""
    train(cfg.with_target("pixels"))
    with h5py.File(roi(derive(cfg, f"rois=[{','.join(AREAS)}]")).with_suffix(".h5")) as file:
        assert [name.decode() for name in file["roi"]] == list(AREAS)
        images = file["images"][:, 0].astype(float)
    change, template = images - images.mean(0), np.stack(list(templates().values()))
    change, template = (one.reshape(len(AREAS), -1) for one in (change, template))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (change, template)]
    return np.asarray(unit[0] @ unit[1].T)


def test_images_of_rois_move_as_the_areas_prefer_and_those_of_a_shuffled_mapper_do_not(cfg: Config) -> None:
    known = preferences(cfg)
    own = np.diag(known)
    assert own.min() > 0.6
    others = known - np.diag(np.inf * np.ones(len(AREAS)))
    assert np.all(others.max(1) < 0.5 * own)
    page = next(Path(cfg.paths.results).glob("roi-*.html")).read_text(encoding="utf-8")
    assert "simulated fMRI" in page
    assert page.count("data:image/png;base64") == len(AREAS)
    assert "6 voxels" in page
    shuffled = [np.diag(preferences(derive(cfg, "control=shuffled_labels", f"seed={seed}"))) for seed in SEEDS]
    means = np.array([one.mean() for one in shuffled])
    # By chance an ROI's image leans to its own template no more than away from it.
    assert abs(means.mean()) < 0.3
    assert own.mean() - means.max() > 0.4


def test_what_cannot_be_shown_is_said(cfg: Config) -> None:
    train(cfg.with_target("pixels"))
    for given, said in (
        ("rois=[uper]", r"unknown ROI of subj01.h5 'uper'. Did you mean 'upper'\? Allowed: all, colour, empty"),
        ("rois=[empty]", r"ROI 'empty' of subj01.h5 holds no voxel"),
        ("features=oracle", r"features=oracle decodes nothing from voxels"),
        ("method=mean_image", r"method=mean_image .*decodes nothing from voxels"),
        ("subject.roi=upper", r"has not been run. Run: nd train"),
    ):
        with pytest.raises(UserError, match=said):
            roi(derive(cfg, given))
    only = derive(cfg, "subject.roi=upper")
    train(only.with_target("pixels"))
    with pytest.raises(UserError, match=r"of lower no mapper of method=ridge_pixels reads a voxel \(they read upper\)"):
        roi(derive(only, "rois=[upper,lower]"))
    with h5py.File(roi(derive(cfg, "rois=[upper+lower,all]")).with_suffix(".h5")) as file:
        assert file["n_voxels"][:].tolist() == [12, 42]


def test_the_second_page_says_which_voxels_are_used(cfg: Config) -> None:
    train(cfg.with_target("pixels"))
    first = roi(derive(cfg, "rois=[upper,object,noise]"))
    second = first.with_name(first.name.replace("roi-", "voxels-"))
    assert "trained on this subject alone" in second.read_text(encoding="utf-8")
    train(derive(cfg, "subject=subj02").with_target("pixels"))
    assert roi(derive(cfg, "rois=[upper,object,noise]")) == first
    with h5py.File(second.with_suffix(".h5")) as file:
        assert [name.decode() for name in file["roi"]] == ["upper", "object", "noise"]
        map_V, bars = file["map/pixels"][:], file["bars/pixels"][:]
        (alike,) = file["cosine/subj01-subj02"][:]
    assert map_V.mean() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(bars[:, 0], [map_V[k * N_EACH : (k + 1) * N_EACH].mean() for k in (0, 4, 6)], rtol=1e-5)
    assert bars[2, 2] < min(bars[0, 1], bars[1, 1])  # voxels that follow nothing: below the others' intervals
    assert alike > 0.8
    page = second.read_text(encoding="utf-8")
    assert f"{bars[0, 0]:.2f} [{bars[0, 1]:.2f}, {bars[0, 2]:.2f}]" in page
    assert f"<td>{alike:.2f}</td>" in page


def test_maps_are_the_weights_of_scaled_voxels_in_spreads_of_the_columns() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((3, 10)).astype(np.float32)
    std = np.array([2, 0, 1, 1, 5, 1, 1, 1, 3, 1], np.float32)  # one column is constant
    mapper = Plain(weights, np.ones(10, np.float32))
    found = voxel_maps(mapper, 3, std, [("a", 0, 4), ("b", 4, 10)])
    scaled = np.where(std > 0, weights / np.maximum(std, 1e-9), 0)
    wanted = [np.sqrt((scaled[:, :4] ** 2).sum(1) / 3), np.sqrt((scaled[:, 4:] ** 2).mean(1))]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    mapper.kept = np.arange(10) % 2 == 0  # columns that are not predicted do not count
    found = voxel_maps(mapper, 3, std, [("b", 4, 10)])
    np.testing.assert_allclose(found[0], np.sqrt((scaled[:, 4:10:2] ** 2).mean(1)), rtol=1e-4)


def test_maps_of_a_mapper_that_weighs_voxels_are_of_their_own_spread() -> None:
    """The weight that a voxel has is part of what it adds, not of how far it is driven."""
    voxels, targets = noisy_brain(80, 12, 4, seed=1)
    mapper = Ridge(mapper_settings(alphas=[10.0], voxel_power=1.0))
    mapper.fit(one_fold(voxels, targets, 60))
    steps = np.diag(voxels.std(0))
    added = mapper.predict(mapper.scaler.mean + steps.astype(np.float32)) - mapper.predict(mapper.scaler.mean[None])
    std = targets.std(0)
    found = voxel_maps(mapper, 12, std, [("all", 0, 4)])
    np.testing.assert_allclose(found[0], np.sqrt(((added / std) ** 2).mean(1)), rtol=1e-4, atol=1e-6)
    assert found[0].max() > 3 * np.median(found[0])  # some voxels count, and noise does not
    state = {name: values for name, values in mapper.state().items() if name != "voxel_spread"}
    with pytest.raises(UserError, match=r"weighs voxels \(mapper.voxel_power\) .* Remove its run folder"):
        voxel_maps(Ridge.restore(mapper.config, state, {}), 12, std, [("all", 0, 4)])


def test_profiles_without_common_ground_have_cosines_around_zero() -> None:
    random = np.random.default_rng(0)
    drawn = [profile(shares(random.random(400).astype(np.float32)), np.eye(40, dtype=bool).repeat(10, 1)) for _ in "ab"]
    assert cosine(drawn[0], drawn[0]) == 1
    assert abs(cosine(*drawn)) < 0.4
    assert float(drawn[0] @ drawn[1] / np.linalg.norm(drawn[0]) / np.linalg.norm(drawn[1])) > 0.9  # what the 1 would do
    assert np.isnan(cosine(np.array([np.nan, 2]), np.array([2, np.nan])))


def test_early_visual_cortex_is_its_areas_where_no_atlas_names_it(cfg: Config, tmp_path: Path) -> None:
    masks = {name: np.arange(5) == k for k, name in enumerate(("V1", "V2", "hV4"))}
    for number, rois in enumerate((masks, {**masks, "early": np.arange(5) == 4})):
        path = tmp_path / f"subj0{number + 1}.h5"
        write_subject(
            path, voxels=np.zeros((2, 5), np.float32), image_id=np.arange(2), session=np.zeros(2, np.int32),
            repeat=np.zeros(2, np.int32), trial=np.arange(2), attributes={}, ijk=np.zeros((5, 3), np.int16), rois=rois,
        )  # fmt: skip
        subject = type(open_subject(cfg))(path, "early")
        assert subject.n_voxels == (3, 1)[number]


class Plain:
    """A linear mapper on scaled voxels."""

    kept: NDArray[np.bool_] | None = None

    def __init__(self, weights_VP: NDArray[np.float32], bias_P: NDArray[np.float32]) -> None:
        self.weights, self.bias = weights_VP, bias_P

    class scaler:  # noqa: N801 - stands for an instance
        mean, scale = np.array([5, -2, 9], np.float32), np.array([2, 3, 0.5], np.float32)

    voxel_spread = scaler.scale

    def predict(self, voxels: NDArray[np.float32], image_ids: object = None) -> NDArray[np.float32]:
        return (voxels - self.scaler.mean) / self.scaler.scale @ self.weights + self.bias


def test_lengths_are_the_published_ones() -> None:
    random = np.random.default_rng(0)
    masks = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    for name, norm in (("clip_text", 9.0), ("clip_vision", 15.0), ("vdvae", None)):
        size = int(np.prod(PUBLISHED[name]))
        weights, bias = (random.standard_normal(s).astype(np.float32) for s in ((3, size), (size,)))
        training = TargetStatistics(np.full(size, 2, np.float32), np.full(size, 3, np.float32))
        found = contributions(Plain(weights, bias), masks)  # type: ignore[arg-type]
        ones = masks.astype(np.float32) @ weights
        np.testing.assert_allclose(found.change, ones, atol=2e-5)
        got = decoded(name, PUBLISHED[name], found, training)
        if norm:
            wanted = norm * ones / np.linalg.norm(ones, axis=1, keepdims=True) + bias
        else:
            p = 50 * ones / np.linalg.norm(ones, axis=1, keepdims=True) + bias
            p = (p - p.mean(0)) / p.std(0) * 3 + 2
            wanted = 80 * p / np.linalg.norm(p, axis=1, keepdims=True)
        np.testing.assert_allclose(got, wanted, atol=2e-3)
    with pytest.raises(UserError, match="takes two or more"):
        decoded("vdvae", PUBLISHED["vdvae"], Contributions(bias, ones[:1]), training)


def test_other_targets_change_by_as_much_as_training_images_differ() -> None:
    found = Contributions(np.ones(4, np.float32), np.array([[3, 4, 0, 0], [0, 0, 0, 0]], np.float32))
    got = decoded("z", (4,), found, TargetStatistics(np.zeros(4, np.float32), np.full(4, 2, np.float32)))
    np.testing.assert_allclose(got, [[1 + 4 * 0.6, 1 + 4 * 0.8, 1, 1], [1, 1, 1, 1]], rtol=1e-5)
