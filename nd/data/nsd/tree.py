"""Where the files of NSD lie below its root, which of them are read, and how large they are.

Paths are those of the NSD bucket, so a tree fetched with ``aws s3 sync`` fits as it is. Sizes are of NSD's own files,
rounded; they are there to plan a download and to notice a broken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nd.data.nsd.facts import IMAGE_SIDE, N_IMAGES, PEOPLE, TRIALS_PER_SESSION, person
from nd.errors import UserError
from nd.files import located

STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
STIMULI_KEY = "imgBrick"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIM_INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
COCO_CAPTIONS = ("annotations/captions_train2017.json", "annotations/captions_val2017.json")
# Label tables: ROI volumes of one subject, and atlases that are the same for all of them.
ROI_VOLUMES = (
    "nsdgeneral",
    "prf-visualrois",
    "prf-eccrois",
    "floc-bodies",
    "floc-faces",
    "floc-places",
    "floc-words",
    "streams",
    "Kastner2015",
)
IMAGE_BYTES = N_IMAGES * IMAGE_SIDE * IMAGE_SIDE * 3
SIMULATED_MARK = "SIMULATED.txt"  # lies at the root of a tree that was made from a simulated subject


@dataclass(frozen=True)
class Expected:
    """One file of the tree: path below the root, what it is for, and whether it must be there.

    ``n_bytes``: about how large the released file is (0: small), for planning; ``least``: bytes below which it cannot
    be whole (0: unknown); ``choices``: other paths that serve as well.
    """

    path: str
    what: str
    n_bytes: int = 0
    least: int = 0
    needed: bool = True
    choices: tuple[str, ...] = ()

    def found(self, root: Path) -> Path | None:
        """The file that is there: of several forms the first."""
        return next((root / one for one in (self.path, *self.choices) if (root / one).is_file()), None)


def roi_path(subject: str, volume: str) -> str:
    """An ROI volume of the 1.8-mm preparation."""
    return f"nsddata/ppdata/{subject}/func1pt8mm/roi/{volume}.nii.gz"


def own_mask(mask: str) -> bool:
    """Whether ``data.mask`` is a file of one's own and no volume of the tree."""
    return mask.endswith((".nii", ".nii.gz"))


def label_paths(subject: str, volume: str) -> tuple[str, str]:
    """Where the names of a volume's labels may stand: with the subject, or with the template brain."""
    return tuple(f"nsddata/freesurfer/{one}/label/{volume}.mgz.ctab" for one in (subject, "fsaverage"))  # type: ignore[return-value]


def betas_folder(subject: str, version: str) -> str:
    """Folder of one subject's single-trial betas."""
    return f"nsddata_betas/ppdata/{subject}/func1pt8mm/{version}"


def session_paths(subject: str, version: str, session: int) -> tuple[str, str]:
    """The two forms of the betas of a session (from 1 on)."""
    stem = f"{betas_folder(subject, version)}/betas_session{session:02d}"
    return f"{stem}.nii.gz", f"{stem}.hdf5"


def simulated(root: Path) -> bool:
    """Whether a tree was made from a simulated subject."""
    return (root / SIMULATED_MARK).is_file()


def check_simulated(root: Path, said: bool) -> None:
    """Whether data are called simulated must agree with their tree; a UserError says how to mend it."""
    if simulated(root) == said:
        return
    if simulated(root):
        raise UserError(
            f"{root} was made from a simulated subject ({SIMULATED_MARK} says so), but data.simulated=false. "
            "Set data.simulated=true: every table must say it."
        )
    raise UserError(f"data.simulated=true, but {root} has no {SIMULATED_MARK}: measured data are not called simulated.")


def check_root(root: str, source: str) -> Path:
    """The folder of a tree. Raises UserError where none was given or it is not there."""
    if not root:
        raise UserError(
            f"data={source} needs data.root=<folder of the downloaded files>. `nd doctor data={source}` lists what "
            "belongs there, how large it is and which terms come first."
        )
    folder = located(root)
    if not folder.is_dir():
        raise UserError(
            f"data.root={root} is not a folder. Give the folder that holds the downloaded files; "
            f"`nd doctor data={source} data.root=<folder>` says what is missing."
        )
    return folder


def expected(subject: str, version: str, n_sessions: int = 0) -> list[Expected]:
    """Every file that preparing one subject reads, in the order in which one fetches them."""
    known = person(subject)
    voxels = known.grid[0] * known.grid[1] * known.grid[2]
    files = [
        Expected(DESIGN, "order of the trials"),
        Expected(STIM_INFO, "COCO ids of the images"),
        Expected(STIMULI, "the 73,000 images", IMAGE_BYTES, IMAGE_BYTES),
        *(Expected(path, "captions of the images (COCO 2017 annotations)") for path in COCO_CAPTIONS),
    ]
    for volume in ROI_VOLUMES:
        needed = volume == "nsdgeneral"
        files.append(Expected(roi_path(subject, volume), "mask" if needed else "ROIs", needed=needed))
        if not needed:
            first, other = label_paths(subject, volume)
            files.append(Expected(first, "names of ROIs", needed=False, choices=(other,)))
    files.append(Expected(f"{betas_folder(subject, version)}/ncsnr.nii.gz", "noise ceilings", needed=False))
    for session in range(1, (n_sessions or known.sessions) + 1):
        nifti, hdf5 = session_paths(subject, version, session)
        # The size of the HDF5 form, int16 of every voxel of the volume; the NIfTI form is compressed and smaller.
        files.append(Expected(nifti, "single-trial betas", 2 * voxels * TRIALS_PER_SESSION, choices=(hdf5,)))
    return files


SUBJECTS = tuple(PEOPLE)
