"""The simulated brain: local windows, intended noise, areas, schedule, and the same brain every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nd.config import Config, DataConfig
from nd.data.prepared import Subject, mean_betas, subject_path
from nd.scenes.attributes import attribute_matrix, attribute_names
from nd.scenes.brain import Brain, build_brain, subject_rng, windows
from nd.scenes.cortex import AREAS
from nd.scenes.draw import draw_scenes
from nd.scenes.filters import GRID, Bank, _energy, filter_bank, frequencies, opponent_colours, orientations
from nd.scenes.noise_ceilings import LEAST, NSD_SUBJECT, draw_ncsnr, measured
from nd.scenes.scene import sample_scene
from nd.scenes.world import make_schedule, write_experiment, zscore_sessions

EARLY = np.array([a.early for a in AREAS])


@pytest.fixture(scope="module")
def brain() -> Brain:
    return build_brain(7, "subj01", 600)


@pytest.fixture(scope="module")
def world() -> tuple[Bank, NDArray[np.float32]]:
    """Filter bank and attributes of 200 images."""
    scenes = [sample_scene(7, i) for i in range(200)]
    return filter_bank(draw_scenes(scenes)), attribute_matrix(scenes)


def grating(cycles: float, angle: float) -> NDArray[np.uint8]:
    """(1, 64, 64, 3): sinusoid that changes along ``angle``, 0 being from left to right."""
    c = (np.arange(64) + 0.5) / 64
    wave = np.sin(2 * np.pi * cycles * (np.cos(angle) * c[None, :] + np.sin(angle) * c[:, None]))
    return np.repeat((127.5 + 40 * wave)[None, ..., None], 3, axis=3).astype(np.uint8)


@pytest.mark.parametrize("k", range(len(frequencies())))
def test_each_energy_channel_prefers_its_own_grating(k: int) -> None:
    bank = filter_bank(grating(float(frequencies()[k]), float(orientations()[k])))
    assert bank.energy.mean((1, 2)).argmax() == k


def test_energy_equals_a_plain_convolution() -> None:
    """Against the Gabor written out in two dimensions, at one point, with grey outside the image."""
    image = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
    cycles, angle, sigma = 8.0, np.pi / 6, 0.56 / 8
    c = (np.arange(64) + 0.5) / 64
    points = (np.arange(2 * GRID) + 0.5) / (2 * GRID)
    total = 0.0
    for py in points[10:12]:  # the 2 x 2 points that cell (5, 7) averages
        for px in points[14:16]:
            y, x = c[:, None] - py, c[None, :] - px
            gabor = np.exp(
                -(x**2 + y**2) / (2 * sigma**2) + 2j * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle))
            )
            total += abs((image[0] * gabor).sum()) / (2 * np.pi * sigma**2 * 64**2)
    got = _energy(image, cycles, angle).reshape(GRID, GRID)[5, 7]
    assert got == pytest.approx(total / 4, rel=1e-4)


def test_a_grey_image_drives_nothing_and_colours_have_signs() -> None:
    colours = np.array([[0.5, 0.5, 0.5], [1, 1, 1], [1, 0, 0], [0, 0.6, 0], [0, 0, 1], [1, 1, 0]], np.float32)
    luminance, red_green, blue_yellow = opponent_colours(colours[:, None, None, :])[:, :, 0, 0]
    np.testing.assert_allclose([luminance[0], red_green[0], blue_yellow[0]], 0, atol=1e-3)
    np.testing.assert_allclose([red_green[1], blue_yellow[1]], 0, atol=2e-2)  # white has no hue
    assert luminance[1] > 0
    assert red_green[2] > 0 > red_green[3]
    assert blue_yellow[4] > 0 > blue_yellow[5]


def test_early_voxels_answer_to_their_place_alone(brain: Brain) -> None:
    """Map fields with small checkered patches: every early voxel answers most near its own centre."""
    centres = np.arange(2, 64, 4)
    images = np.full((len(centres) ** 2, 64, 64, 3), 128, np.uint8)
    patch = np.random.default_rng(1).integers(0, 256, (4, 4, 3))
    for n, (r, c) in enumerate((r, c) for r in centres for c in centres):
        images[n, r - 2 : r + 2, c - 2 : c + 2] = patch
    inside = np.abs(brain.cortex.field[:, :2]).max(1) < 0.42
    voxels = np.flatnonzero(EARLY[brain.cortex.area] & inside)
    exponent = np.array([a.exponent for a in AREAS])[brain.cortex.area[voxels]]
    drive_PV = brain.image_drive(filter_bank(images))[:, voxels] ** (1 / exponent)
    x, y = (centres / 64 - 0.5)[np.newaxis].repeat(16, 0).ravel(), (centres / 64 - 0.5).repeat(16)
    mass = drive_PV.sum(0)
    centre = np.stack([(x[:, None] * drive_PV).sum(0) / mass, (y[:, None] * drive_PV).sum(0) / mass], 1)
    field = brain.cortex.field[voxels]
    v1 = brain.cortex.area[voxels] == 0
    assert np.corrcoef(centre[v1, 0], field[v1, 0])[0, 1] > 0.97
    assert np.corrcoef(centre[v1, 1], field[v1, 1])[0, 1] > 0.97
    spread = np.sqrt((((x[:, None] - centre[:, 0]) ** 2 + (y[:, None] - centre[:, 1]) ** 2) * drive_PV).sum(0) / mass)
    by_area = [np.median(spread[brain.cortex.area[voxels] == k]) for k in range(4)]
    assert by_area == sorted(by_area)
    assert by_area[0] < 0.25 < 0.41  # .41 is the spread of a voxel that answers everywhere alike


def test_fields_cover_the_image_and_cross_over(brain: Brain) -> None:
    early = EARLY[brain.cortex.area]
    coverage = windows(brain.cortex.field[early]).sum(0)
    assert coverage.min() > 0.1 * coverage.mean()
    left = brain.cortex.ijk[:, 0] < np.median(brain.cortex.ijk[:, 0])
    assert (brain.cortex.field[left, 0] > 0).mean() > 0.98
    assert (brain.cortex.field[~left, 0] < 0).mean() > 0.98


def test_grid_holds_one_voxel_per_place_and_areas_are_clumps(brain: Brain) -> None:
    ijk = brain.cortex.ijk.astype(int)
    assert len(np.unique(ijk, axis=0)) == len(ijk)
    np.testing.assert_array_equal(ijk, ijk[np.lexsort(ijk.T[::-1])])
    near = (np.abs(ijk[:, None] - ijk[None]).sum(2) == 1) & True
    same = brain.cortex.area[:, None] == brain.cortex.area[None]
    assert same[near].mean() > 0.6 > 3 * same.mean()


def test_areas_cover_nsdgeneral(brain: Brain) -> None:
    rois = brain.cortex.rois()
    assert rois["nsdgeneral"].all()
    assert sum(rois[a.name].astype(int) for a in AREAS).tolist() == [1] * brain.n_voxels
    assert 0.5 < sum(rois[name].sum() for name in ("V1", "V2", "V3", "hV4")) / brain.n_voxels < 0.7


def test_content_voxels_follow_the_scene_and_early_voxels_do_not(brain: Brain, world: tuple[Bank, np.ndarray]) -> None:
    bank, attributes = world
    shuffled = attributes[np.random.default_rng(0).permutation(len(attributes))]
    before, after = brain.responses(bank, attributes), brain.responses(bank, shuffled)
    same = (before * after).mean(0)
    early = EARLY[brain.cortex.area]
    np.testing.assert_allclose(same[early], 1, atol=1e-4)
    assert same[~early].mean() < 0.6


def test_place_like_voxels_read_the_background_face_like_the_shape(
    brain: Brain, world: tuple[Bank, np.ndarray]
) -> None:
    bank, attributes = world
    responses = brain.responses(bank, attributes)
    rois, groups = brain.cortex.rois(), np.array([name.split(":")[0] for name in attribute_names()])

    def explained(roi: str, group: str) -> float:
        x = np.c_[np.ones(len(attributes)), attributes[:, groups == group]]
        y = responses[:, rois[roi]]
        return float(1 - (y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).var(0).mean())

    assert explained("place_like", "background") > explained("face_like", "background") + 0.1
    assert explained("face_like", "shape") > explained("place_like", "shape") + 0.1


def test_noise_ceiling_estimated_from_repeats_is_the_intended_one(world: tuple[Bank, np.ndarray]) -> None:
    """Signal-to-noise as NSD estimates it from the variance over repeats, on finished (z-scored) betas."""
    brain = build_brain(7, "subj01", 300)
    rng = subject_rng(7, "subj01", "test")
    plan = make_schedule(rng, 200, 6)
    session = np.arange(1200, dtype=np.int32) // 60  # many sessions, so that slow drifts average out
    betas = brain.trials(rng, brain.responses(*world), plan.image, session)
    betas = zscore_sessions(betas, session, np.ones(1200, bool))
    by_image = betas[np.argsort(plan.image, kind="stable")].reshape(200, 6, -1)
    noise = by_image.var(1, ddof=1).mean(0)
    signal = by_image.mean(1).var(0, ddof=1) - noise / 6
    estimated = np.sqrt(np.maximum(signal, 0) / noise)
    assert np.corrcoef(estimated, brain.ncsnr)[0, 1] > 0.97
    assert np.median(estimated / brain.ncsnr) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("subject", NSD_SUBJECT)
def test_noise_ceilings_have_the_quantiles_measured_in_nsd(subject: str) -> None:
    """Areas of one region: its quantiles. Areas of several: ranks in them add up, each weighing by its voxels."""
    table, n = measured(), 20_000
    for area, names in table["rois_of_area"].items():
        drawn = draw_ncsnr(np.random.default_rng(0), subject, np.full(n, area))
        regions = [table["subjects"][NSD_SUBJECT[subject]][name] for name in names]
        voxels = np.array([region["voxels"] for region in regions])
        for x in np.linspace(0.15, 0.9, 6):
            ranks = [np.interp(x, r["quantiles"], table["probabilities"], left=0, right=1) for r in regions]
            # Three standard errors of a share of n voxels, at most; a percent at either end has no quantile to go by.
            assert (drawn < x).mean() == pytest.approx(ranks @ voxels / voxels.sum(), abs=3 * 0.5 / np.sqrt(n) + 0.01)
        assert drawn.min() >= np.float32(LEAST)


def test_subjects_differ_as_nsd_s_do() -> None:
    medians = [np.median(build_brain(7, f"subj0{k}", 1500).ncsnr) for k in range(1, 5)]
    assert len(set(NSD_SUBJECT.values())) == 4
    assert medians[3] < min(medians[:3]) - 0.05  # NSD's subj07, the least of the four
    np.testing.assert_array_equal(
        draw_ncsnr(np.random.default_rng(1), "anybody", np.array(["V1"])),
        draw_ncsnr(np.random.default_rng(1), "subj01", np.array(["V1"])),
    )


def test_the_table_of_noise_ceilings_is_what_was_measured(nsd_quantiles_file: Path) -> None:
    source = json.loads(nsd_quantiles_file.read_text(encoding="utf-8"))
    assert measured()["probabilities"] == source["probabilities"]
    for subject, regions in measured()["subjects"].items():
        assert regions == {name: source["subjects"][subject][name] for name in regions}


def test_trial_noise_is_shared_by_neighbours(brain: Brain) -> None:
    rng = np.random.default_rng(0)
    noise = brain._noise(rng, np.repeat(np.arange(16), 50))
    assert noise.var(0).mean() == pytest.approx(1, abs=0.05)
    r = np.corrcoef(noise.T)
    distance = np.sqrt(((brain.cortex.ijk[:, None].astype(float) - brain.cortex.ijk[None]) ** 2).sum(2))
    off = ~np.eye(len(r), dtype=bool)
    assert r[off & (distance < 2)].mean() > 0.25
    assert abs(r[distance > 0.7 * distance.max()].mean()) < 0.1


def test_the_mean_gain_of_the_sessions_is_one(brain: Brain) -> None:
    """Else the noise ceiling would be that of another signal-to-noise ratio than the voxels' own."""
    quiet = replace(brain, ncsnr=np.full(brain.n_voxels, 1e6, np.float32))
    off_and_on = np.repeat(np.array([[0], [1]], np.float32), brain.n_voxels, axis=1)
    image, session = np.tile([0, 1], 9), np.repeat(np.arange(9), 2)
    betas = quiet.trials(np.random.default_rng(0), off_and_on, image, session)
    gain = (betas[1::2] - betas[::2]).mean(1)  # the offset of a session is in both
    assert gain.mean() == pytest.approx(1, abs=1e-4)
    assert 0.03 < gain.std() < 0.2


def test_the_same_brain_every_time_and_another_for_another_subject_or_seed() -> None:
    a, b = build_brain(7, "subj01", 200), build_brain(7, "subj01", 200)
    for name in ("weights", "mixture", "ncsnr"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.cortex.ijk, b.cortex.ijk)
    others = [build_brain(7, "subj02", 200), build_brain(8, "subj01", 200)]
    assert all(o.n_voxels != a.n_voxels or not np.array_equal(o.ncsnr, a.ncsnr) for o in others)


def test_subjects_vary_in_size_by_ten_percent() -> None:
    counts = [build_brain(7, f"subj0{k}", 1500).n_voxels for k in range(1, 5)]
    assert len(set(counts)) == 4
    assert all(1340 < n < 1660 for n in counts)


@pytest.mark.parametrize(("n_images", "n_repeats"), [(3, 3), (5, 4), (300, 3), (10, 1)])
def test_schedule(n_images: int, n_repeats: int) -> None:
    plan = make_schedule(np.random.default_rng(0), n_images, n_repeats)
    np.testing.assert_array_equal(np.bincount(plan.image), [n_repeats] * n_images)
    assert (plan.image[1:] != plan.image[:-1]).all()
    assert (np.diff(plan.session) >= 0).all()
    assert np.ptp(np.bincount(plan.session)) <= 1
    assert plan.session[-1] + 1 == max(2, n_images * n_repeats // 300)
    for image in range(n_images):
        assert plan.repeat[plan.image == image].tolist() == list(range(n_repeats))


def test_session_scaling_uses_the_rows_it_may() -> None:
    rng = np.random.default_rng(0)
    betas, session = rng.normal(3, 2, (60, 4)).astype(np.float32), np.repeat([0, 1, 2], 20)
    fit = rng.random(60) < 0.7
    out = zscore_sessions(betas, session, fit)
    for s in range(3):
        np.testing.assert_allclose(out[(session == s) & fit].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(out[(session == s) & fit].std(0), 1, rtol=1e-4)
    changed = np.where(fit[:, None], betas, betas + 100).astype(np.float32)
    np.testing.assert_array_equal(zscore_sessions(changed, session, fit)[fit], out[fit])


def test_prepared_subject_is_the_simulated_one(small_world: Config) -> None:
    data = small_world.data
    scenes = [sample_scene(data.world_seed, i) for i in range(72)]
    bank, attributes = filter_bank(draw_scenes(scenes)), attribute_matrix(scenes)
    responses = []
    for name in data.subjects:
        brain, subject = build_brain(data.world_seed, name, data.n_voxels), Subject(subject_path(small_world, name))
        np.testing.assert_array_equal(subject.ncsnr, brain.ncsnr)
        clean = brain.responses(bank, attributes)
        r = (mean_betas(subject, np.arange(72)) * clean).mean(0)
        assert r[brain.ncsnr > 0.6].mean() > r[brain.ncsnr < 0.25].mean() + 0.2
        # Covariance with betas of variance 1 of which ncsnr^2 / (ncsnr^2 + 1) is signal; one session's slow drift adds
        # to what they are divided by.
        assert r.mean() == pytest.approx((brain.ncsnr / np.sqrt(brain.ncsnr**2 + 1)).mean(), rel=0.1)
        responses.append(subject.n_voxels)
    assert responses[0] != responses[1]


def test_writing_twice_gives_the_same_voxels(small_world: Config) -> None:
    data: DataConfig = small_world.data
    scenes = [sample_scene(data.world_seed, i) for i in range(72)]
    brain = build_brain(data.world_seed, "subj02", data.n_voxels)
    clean = brain.responses(filter_bank(draw_scenes(scenes)), attribute_matrix(scenes))
    path = subject_path(small_world, "subj02")
    again = path.parent.parent / "again.h5"
    write_experiment(again, brain, clean, data, "x", np.arange(data.n_train, dtype=np.int32))
    rows = np.arange(144)
    np.testing.assert_array_equal(Subject(again).voxels(rows), Subject(path).voxels(rows))


def test_images_can_be_decoded_from_the_voxels() -> None:
    """Ridge from voxels to 8 x 8 grey images: well above the shuffled control, well below perfect, better with more."""
    n = 600
    scenes = [sample_scene(7, i) for i in range(n + 60)]
    images = draw_scenes(scenes)
    brain = build_brain(7, "subj01", 400)
    responses = brain.responses(filter_bank(images), attribute_matrix(scenes))
    rng = np.random.default_rng(0)
    noisy = responses + rng.normal(size=responses.shape) / (brain.ncsnr * np.sqrt(3))
    pixels = images.mean(3).reshape(n + 60, 8, 8, 8, 8).mean((2, 4)).reshape(n + 60, -1)

    def score(rows: NDArray[np.integer]) -> float:
        y = pixels[: len(rows)] - pixels[: len(rows)].mean(0)
        x, test = noisy[rows], noisy[n:]
        weights = np.linalg.solve(x @ x.T + 1000 * np.eye(len(rows)), y)
        predicted = test @ (x.T @ weights)
        return float(np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, pixels[n:].T, strict=True)]))

    assert 0.25 < score(np.arange(n)) < 0.7
    assert score(np.arange(200)) < score(np.arange(n)) - 0.05
    # Means over 64 correlated pixels; one correlation over 60 images has a deviation of .13.
    assert abs(score(rng.permutation(n))) < 0.2
