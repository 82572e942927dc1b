"""digits69: upright images, labels, and files of another kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_config import data_settings
from helpers_digits import made_up
from numpy.typing import NDArray
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from nd.data.digits69 import KEYS, LABELS, pieces_of, read_digits69
from nd.data.prepared import Stimuli, Subject
from nd.errors import UserError


@pytest.fixture
def made_up_file(tmp_path: Path) -> Path:
    savemat(tmp_path / "digits.mat", made_up())
    return tmp_path / "digits.mat"


def test_pixels_are_read_column_by_column(made_up_file: Path) -> None:
    image = read_digits69(made_up_file).images[17]
    np.testing.assert_array_equal(image, np.arange(28)[:, None, None] * np.ones((1, 28, 3)))


def test_voxels_keep_their_trials(made_up_file: Path) -> None:
    content = made_up()
    voxels = np.concatenate([content["fmriTrn"], content["fmriTest"]]).astype(np.float32)
    np.testing.assert_array_equal(read_digits69(made_up_file).voxels, voxels)


def test_matrices_that_matlab_holds_as_sparse_ones(made_up_file: Path, tmp_path: Path) -> None:
    """Pixels of drawings are mostly 0, so people who edit them may well save them so."""
    content = made_up()
    sparse = {key: csc_matrix(content[key].astype(float)) for key in ("stimTrn", "fmriTrn")}
    savemat(tmp_path / "sparse.mat", content | sparse)
    found, wanted = read_digits69(tmp_path / "sparse.mat"), read_digits69(made_up_file)
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(found.voxels, wanted.voxels)


def test_prepared_files(made_up_file: Path, tmp_path: Path) -> None:
    data = data_settings(name="digits69", source="digits69", subjects=["subj01"], image_size=28, file=str(made_up_file))
    for piece in pieces_of(data):
        piece.write(tmp_path / piece.name)
    subject, stimuli = Subject(tmp_path / "subj01.h5"), Stimuli(tmp_path / "stimuli.h5")
    np.testing.assert_array_equal(subject.image_id, np.arange(100))
    np.testing.assert_array_equal(stimuli.labels(stimuli.image_id), LABELS)
    assert subject.attributes["stimuli_hash"] == stimuli.hash
    assert all("six" in text for text in stimuli.captions(np.array([0]))[0])
    assert all("nine" in text for text in stimuli.captions(np.array([99]))[0])


def wider_below(image: NDArray[np.uint8]) -> bool:
    """Say whether the lower half of the written shape is wider than its upper half."""
    written = image > 128
    rows = np.flatnonzero(written.any(1))
    middle = (rows[0] + rows[-1] + 1) // 2
    lower, upper = (np.ptp(np.flatnonzero(half.any(0))) for half in (written[middle:], written[:middle]))
    return bool(lower > upper)


def test_real_digits_are_upright(digits69_file: Path) -> None:
    """The loop of a six is below, that of a nine above; both shares are .5 for transposed images."""
    content = read_digits69(digits69_file)
    wider = np.array([wider_below(image) for image in content.images[..., 0]])
    assert wider[content.labels == 6].mean() > 0.8
    assert wider[content.labels == 9].mean() < 0.2


def test_real_file_agrees_with_scipy(digits69_file: Path) -> None:
    raw, content = loadmat(digits69_file), read_digits69(digits69_file)
    assert content.voxels.shape == (100, 3092)
    np.testing.assert_array_equal(content.voxels[90:], raw["fmriTest"].astype(np.float32))
    np.testing.assert_array_equal(content.images[91, :, :, 1], raw["stimTest"][1].reshape(28, 28).T)
    assert (content.labels == 6).sum() == (content.labels == 9).sum() == 50


def test_no_file_given_names_the_public_source() -> None:
    with pytest.raises(UserError, match=r"needs data.file=.*DGMM.*van Gerven"):
        read_digits69("")
    with pytest.raises(UserError, match=r"data.file=/nope does not exist.*DGMM"):
        read_digits69("/nope")


@pytest.mark.parametrize("content", [b"", b"not a mat file at all, just some text that is long enough" * 10])
def test_a_file_that_is_not_a_mat_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(UserError, match="is not a readable MATLAB 5 file"):
        read_digits69(tmp_path / "x.mat")


def test_a_truncated_mat_file(made_up_file: Path) -> None:
    made_up_file.write_bytes(made_up_file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"is not a readable MATLAB 5 file|it lacks"):
        read_digits69(made_up_file)


def test_a_mat_file_of_another_kind(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"betas": np.zeros(3)})
    with pytest.raises(UserError, match="is another kind of file: it lacks fmriTrn, fmriTest"):
        read_digits69(tmp_path / "x.mat")


@pytest.mark.parametrize("key", KEYS)
def test_arrays_of_other_shapes(tmp_path: Path, key: str) -> None:
    content = made_up()
    savemat(tmp_path / "x.mat", content | {key: content[key][:-1]})
    with pytest.raises(UserError, match=rf"{key} has shape"):
        read_digits69(tmp_path / "x.mat")


def test_other_labels(tmp_path: Path) -> None:
    content = made_up()
    savemat(tmp_path / "x.mat", content | {"labelTrn": content["labelTrn"][::-1]})
    with pytest.raises(UserError, match="the labels are not those of digits69"):
        read_digits69(tmp_path / "x.mat")


def test_settings_that_digits69_does_not_have() -> None:
    with pytest.raises(UserError, match=r"one subject and images of 28 pixels; got .*image_size=64"):
        pieces_of(data_settings(name="digits69", source="digits69", subjects=["subj01"]))
