"""The data group: which data set, how it is cut, scaled and read."""

from __future__ import annotations

from dataclasses import dataclass

from nd.config.fields import opt


@dataclass(kw_only=True)
class DataConfig:
    """Which data set, how it is cut, and where its raw files lie."""

    name: str = opt("scenes", "name of the data set: its prepared files lie in <paths.data>/<name>")
    source: str = opt(
        "scenes",
        "where the data come from: made here, or read by the reader of that name",
        identity=False,
        choices=("scenes", "digits69", "nsd", "mindeye2", "own"),
    )
    subjects: list[str] = opt(["subj01", "subj02", "subj03", "subj04"], "subjects of the data set", identity=False)
    split: str = opt(
        "scenes",
        "named frozen split",
        choices=(
            "scenes",
            "scenes-clusters",
            "digits69-cv10",
            "digits69-given",
            "nsd982",
            "nsd1000",
            "nsd_partial",
            "own",
        ),
    )
    n_val: int = opt(100, "validation images, cut from the training images by image")
    simulated: bool = opt(True, "voxels come from a simulated brain; every table says so", identity=False)
    variant: str = opt(
        "nd",
        "nd: nothing is fitted on test trials; released: scaling that published code fits on them may be chosen",
        choices=("nd", "released"),
    )
    test_scaling: str = opt(
        "train",
        "statistics that z-score the test voxels: those of training rows, or (variant=released) the test rows' own",
        choices=("train", "own"),
    )
    image_size: int = opt(64, "side of the square stimuli, pixels")
    same_images: str = opt(
        "refuse",
        "images that are trained on under one id and tested under another: refuse them, or allow (and say) them",
        choices=("refuse", "allow"),
    )
    # ---- digits69
    file: str = opt("", "digits69: digit69_28x28.mat", identity=False, path=True)
    # ---- nsd and mindeye2
    root: str = opt("", "nsd, mindeye2: folder of the downloaded files", identity=False)
    betas: str = opt(
        "betas_fithrf_GLMdenoise_RR",
        "nsd: version of the single-trial betas",
        choices=("betas_fithrf", "betas_fithrf_GLMdenoise_RR"),
    )
    mask: str = opt("nsdgeneral", "nsd: voxels kept, those above 0 in an ROI volume of this name or in a NIfTI file")
    scaling: str = opt(
        "session_train",
        "nsd: raw betas (percent signal change), or z-scored per session and voxel by all trials (variant=released) or"
        " by those that show no test image",
        choices=("raw", "session", "session_train"),
    )
    constant_voxels: str = opt(
        "refuse", "nsd: voxels that never vary in a session: refuse, or set to 0", choices=("refuse", "zero")
    )
    sessions: int = opt(0, "nsd: first sessions that are prepared; 0: all that the subject has")
    in_place: bool = opt(
        True, "nsd, mindeye2: read images (mindeye2: betas too) where they lie; false copies them", identity=False
    )
    captions: str = opt(
        "", "nsd, mindeye2, own: captions by image, a file or a folder of COCO's", identity=False, path=True
    )
    # ---- own
    voxels: str = opt("", "own: responses (trials, voxels), .npy", identity=False, path=True)
    image_ids: str = opt("", "own: image of every trial, .npy or one number a line", identity=False, path=True)
    images: str = opt("", "own: folder of images named by image id, or .npy", identity=False, path=True)
    orientation: str = opt(
        "stored",
        "own: images that a tag of the camera turns: take the pixels as stored, or turn them by the tag",
        choices=("stored", "tag"),
    )
    session_ids: str = opt(
        "", "own: session of every trial, as image_ids; default: one session", identity=False, path=True
    )
    test_ids: str = opt(
        "", "own: test images, as image_ids; default: n_test images chosen by hash", identity=False, path=True
    )
    # ---- scenes
    n_train: int = opt(1000, "scenes: training images, validation included")
    n_test: int = opt(200, "scenes: test images; own: test images where test_ids names none")
    n_repeats: int = opt(3, "scenes: presentations of every image")
    n_voxels: int = opt(1500, "scenes: approximate voxels per subject")
    world_seed: int = opt(7, "scenes: seed of the images and of the simulated brains")

    @property
    def transductive(self) -> bool:
        """Whether statistics of test trials take part in scaling; everything made so is marked."""
        return self.test_scaling == "own" or (self.source == "nsd" and self.scaling == "session")
