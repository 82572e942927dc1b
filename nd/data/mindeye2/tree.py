"""Where the files of the MindEye2 release lie below its root (the data set pscotti/mindeyev2 of the Hugging Face hub).

Column meanings of the behavioural arrays are those of the release's README.
"""

from __future__ import annotations

from pathlib import Path

from nd.data.nsd.facts import number, person
from nd.data.nsd.tree import Expected
from nd.errors import UserError

IMAGES = "coco_images_224_float16.hdf5"  # images (73000, 3, 224, 224) float16 in [0, 1]
IMAGES_KEY = "images"
CAPTIONS = "COCO_73k_annots_curated.npy"  # (73000, 5) text, '' where an image has fewer; pscotti/naturalscenesdataset
ROI_MASKS = "brain_region_masks.hdf5"  # <subject>/<ROI> (V,) over the columns of the betas; subj01, 02, 05, 07
BETAS_KEY = "betas"
IMAGE_BYTES = 73_000 * 3 * 224 * 224 * 2
TRAIN, OLD_TEST, NEW_TEST = "train", "test", "new_test"

# Columns of behav.npy (1, 17) float64; -1 stands for NaN.
IMAGE, SUBJECT, SESSION, RUN, TRIAL, GLOBAL_TRIAL, IS_SHARED = 0, 1, 2, 3, 4, 5, 16
N_COLUMNS = 17


def there(path: Path) -> bool:
    """Whether a file is there. UserError where a folder on the way to it may not be entered."""
    try:
        return path.is_file()
    except PermissionError:
        raise UserError(
            f"{path} cannot be looked at: permission denied. Check the owner and mode of its folders."
        ) from None


def betas_file(subject: str) -> str:
    """(750 * sessions, V) float32, z-scored per session and voxel; row = global trial."""
    return f"betas_all_subj{number(subject):02d}_fp32_renorm.hdf5"


def train_tar(subject: str, session: int) -> str:
    """Trials of a session (from 0 on) whose image is not shared."""
    return f"wds/{subject}/{TRAIN}/{session}.tar"


def test_tar(subject: str, which: str = NEW_TEST) -> str:  # noqa: PT028 - not a test
    """Trials with shared images."""
    return f"wds/{subject}/{which}/0.tar"


def expected(subject: str) -> list[Expected]:
    """Every file that preparing one subject reads."""
    known = person(subject)
    betas = 750 * known.sessions * known.voxels * 4
    return [
        Expected(betas_file(subject), "single-trial betas", betas, betas),
        Expected(IMAGES, "the 73,000 images at 224 px", IMAGE_BYTES, IMAGE_BYTES),
        Expected(CAPTIONS, "captions of the images"),
        Expected(ROI_MASKS, "ROIs", needed=False),
        *(Expected(train_tar(subject, k), "training trials") for k in range(known.sessions)),
        Expected(test_tar(subject), "test trials"),
    ]
