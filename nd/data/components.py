"""The data sources that read files: measured data sets, the Natural Scenes Dataset in two forms, and one's own.

Each declares its fields of the group ``data``, the splits and protocols that fit it, and its rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nd.config.components import Source
from nd.config.fields import opt
from nd.config.rules import ALL, at_least
from nd.config.schema import DataConfig

if TYPE_CHECKING:
    from nd.config.schema import Config

NSD_SPLITS = ("nsd982", "nsd1000", "nsd_partial")
# Protocols defined on NSD's test images.
PUBLISHED = ("brain_diffuser", "mindeye1", "mindeye2", "minddiffuser", "minddiffuser_decoded")
DIGITS69_IMAGES = 90  # training images of a fold, validation included


@dataclass(kw_only=True)
class Digits69Data(DataConfig):
    """digits69: measured fMRI of one person looking at handwritten sixes and nines (van Gerven et al. 2010)."""

    source: str = opt("digits69", "where the data come from", identity=False)
    file: str = opt("", "digits69: digit69_28x28.mat", identity=False, path=True)


@dataclass(kw_only=True)
class ReleaseData(DataConfig):
    """Fields of data sets that are read where they were downloaded to."""

    root: str = opt("", "nsd, mindeye2: folder of the downloaded files", identity=False)
    constant_voxels: str = opt(
        "refuse", "nsd, mindeye2: voxels that never vary in a session: refuse, or set to 0", choices=("refuse", "zero")
    )
    in_place: bool = opt(
        True, "nsd, mindeye2: read images (mindeye2: betas too) where they lie; false copies them", identity=False
    )
    captions: str = opt(
        "", "nsd, mindeye2, own: captions by image, a file or a folder of COCO's", identity=False, path=True
    )


@dataclass(kw_only=True)
class NsdData(ReleaseData):
    """nsd: the Natural Scenes Dataset as its authors publish it (Allen et al. 2022)."""

    source: str = opt("nsd", "where the data come from", identity=False)
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
    sessions: int = opt(0, "nsd: first sessions that are prepared; 0: all that the subject has")

    @property
    def transductive(self) -> bool:
        """Whether statistics of test trials take part in scaling; everything made so is marked."""
        return self.test_scaling == "own" or self.scaling == "session"


@dataclass(kw_only=True)
class MindEye2Data(ReleaseData):
    """mindeye2: the Natural Scenes Dataset in the form of the MindEye2 release."""

    source: str = opt("mindeye2", "where the data come from", identity=False)


@dataclass(kw_only=True)
class OwnData(DataConfig):
    """own: your responses, the image of every trial, and the images."""

    source: str = opt("own", "where the data come from", identity=False)
    voxels: str = opt("", "own: responses (trials, voxels), .npy", identity=False, path=True)
    image_ids: str = opt("", "own: image of every trial, .npy or one number a line", identity=False, path=True)
    images: str = opt("", "own: folder of images named by image id, or .npy", identity=False, path=True)
    session_ids: str = opt(
        "", "own: session of every trial, as image_ids; default: one session", identity=False, path=True
    )
    test_ids: str = opt(
        "", "own: test images, as image_ids; default: n_test images chosen by hash", identity=False, path=True
    )
    n_test: int = opt(200, "scenes: test images; own: test images where test_ids names none")
    captions: str = opt(
        "", "nsd, mindeye2, own: captions by image, a file or a folder of COCO's", identity=False, path=True
    )
    volume: str = opt(
        "", "own: NIfTI mask, above 0 at the voxels, which in C order are the columns", identity=False, path=True
    )
    roi_volumes: str = opt(
        "", "own: folder of NIfTI masks on the grid of data.volume, one for every ROI", identity=False, path=True
    )
    rois: str = opt(
        "", "own: folder of masks (voxels,), <name>.npy for every ROI, true inside it", identity=False, path=True
    )
    orientation: str = opt(
        "stored",
        "own: images that a tag of the camera turns: take the pixels as stored, or turn them by the tag",
        choices=("stored", "tag"),
    )


def _digits69_rules(cfg: Config) -> Iterator[str]:
    if cfg.data.n_val > DIGITS69_IMAGES - 2:
        yield too_many_for_validation(cfg, DIGITS69_IMAGES)
    for name, own in (cfg.decodings if cfg.features == "predicted" else {}).items():
        if own.roi != ALL:
            field = f"method.targets.{name}.roi" if "roi" in (cfg.method.targets.get(name) or {}) else "subject.roi"
            yield (
                f"{field}: {own.roi} was asked for, but the file of digits69 says of no voxel where it lies. Decode"
                f" from all of them: {field}=all."
            )


def _digits69_file(cfg: Config, verb: str) -> Iterator[str]:
    prepared = Path(cfg.paths.data) / cfg.data.name
    if verb in ("prepare", "run") and not cfg.data.file and not prepared.is_dir():
        from nd.data.digits69 import SOURCE  # imports scipy, which every other command line can do without

        yield (
            f"data.file: digits69 is not prepared under {prepared} and no file was given. {SOURCE}. Pass it as"
            " data.file=<path>/digit69_28x28.mat."
        )


def _nsd_rules(cfg: Config) -> Iterator[str]:
    data = cfg.data
    assert isinstance(data, NsdData)
    if data.sessions < 0:
        yield f"data.sessions: {data.sessions} was given, wanted 1 or more, or 0 for all."
    if data.variant != "released" and data.scaling == "session":
        yield (
            "data.scaling: session fits statistics on test trials, as published code does. Ask for it with"
            " data.variant=released, which marks every result, or leave it out."
        )


def _own_rules(cfg: Config) -> Iterator[str]:
    if cfg.data.roi_volumes and not cfg.data.volume:
        yield "data.roi_volumes: ROIs lie on the grid of data.volume=<mask.nii.gz>, which was not given."
    yield from at_least(2, data=cfg.data, names=("n_test",), key="data")


def too_many_for_validation(cfg: Config, n_train: int) -> str:
    """Say that too little is left to train on."""
    return (
        f"data.n_val: {cfg.data.n_val} validation images leave fewer than 2 of {n_train} training images; give fewer."
    )


COMPONENTS = (
    Source(
        name="digits69",
        settings=Digits69Data,
        splits=("digits69-cv10", "digits69-given"),
        protocols=("digits69",),
        pieces=lambda cfg: import_module("nd.data.digits69").pieces_of(cfg.data),
        rules=_digits69_rules,
        verb_rules=_digits69_file,
    ),
    Source(
        name="nsd",
        settings=NsdData,
        splits=NSD_SPLITS,
        protocols=("nd", *PUBLISHED),
        by_subject=True,
        pieces=lambda cfg: import_module("nd.data.nsd.prepare").pieces_of(cfg),
        rules=_nsd_rules,
    ),
    Source(
        name="mindeye2",
        settings=MindEye2Data,
        splits=NSD_SPLITS,
        protocols=("nd", *PUBLISHED),
        by_subject=True,
        pieces=lambda cfg: import_module("nd.data.mindeye2.prepare").pieces_of(cfg),
    ),
    Source(
        name="own",
        settings=OwnData,
        splits=("own",),
        protocols=("nd",),
        by_subject=True,
        pieces=lambda cfg: import_module("nd.data.own").pieces_of(cfg),
        rules=_own_rules,
    ),
)
