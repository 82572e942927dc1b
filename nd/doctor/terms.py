"""Which terms come before a download, and how the files are fetched then."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from nd.config import Config
from nd.data.mindeye2 import tree as mindeye2
from nd.data.nsd import facts, tree
from nd.doctor.tree import Tree

BUCKET = "s3://natural-scenes-dataset"
RELEASE, CAPTIONS_RELEASE = "pscotti/mindeyev2", "pscotti/naturalscenesdataset"
UNBROKEN = "\xa0"  # a blank at which lines are not broken
N_FOLDERS = 4  # more of them are fetched with a pattern
SIMULATED = "images and brains are drawn by nd itself (Apache-2.0): no terms, and nothing measured"
DIGITS69 = (
    "measured fMRI, public with the DGMM code; cite van Gerven, de Lange & Heskes (2010), Neural Computation 22; nd"
    " ships no part of it"
)
OWN = (
    "your own data: what the participants agreed to, and the licences of the images, hold for everything made from"
    " them; prepared files, images.h5 and reports hold images"
)
NSD = (
    f"1. Sign the NSD Data Access Agreement before anything is fetched: {facts.TERMS_URL}.",
    "2. The images, and the captions (annotations of 2017), are COCO's, with terms of their own: https://cocodataset.org.",
    "3. Pass on neither the data nor what shows the images: prepared files, target stores, images.h5, reports.",
)
MINDEYE2 = "The MindEye2 release is made of NSD's data and images, so NSD's terms hold."


def terms(cfg: Config) -> list[str]:
    """What holds for the data of a configuration."""
    if cfg.data.simulated:
        return [SIMULATED]
    held = {"digits69": [DIGITS69], "own": [OWN], "nsd": [*NSD], "mindeye2": [MINDEYE2, *NSD]}
    return held.get(cfg.data.source, [SIMULATED])


def fetching(cfg: Config, raw: Tree) -> Iterator[str]:
    """How to fetch what is missing of a release. Lines that begin with blanks are commands."""
    lacking = {file.entry.path for file in raw.of("missing", "wrong", "absent")}
    if raw.simulated or not lacking:
        return
    root = str(raw.root or "<root>")
    yield from (_fetch_nsd if cfg.data.source == "nsd" else _fetch_mindeye2)(cfg, root, lacking)
    yield _sessions(cfg)


def _fetch_nsd(cfg: Config, root: str, lacking: set[str]) -> Iterator[str]:
    folder = tree.betas_folder(cfg.subject.name, cfg.data.betas)
    if lacking - set(tree.COCO_CAPTIONS):
        yield "With the AWS client, after the agreement; one file, <path> being its folder and name above:"
        yield f"    aws s3 cp {BUCKET}/<path> {root}/<path>"
    if any(path.startswith(folder) for path in lacking):
        yield "All betas (NIfTI is the smaller form; .hdf5 serves as well):"
        yield f"    FOLDER={folder}"
        yield f'    aws s3 sync {BUCKET}/$FOLDER {root}/$FOLDER --exclude "*" --include "betas_session*.nii.gz"'
    if lacking & set(tree.COCO_CAPTIONS):
        yield (
            f"Captions: unpack annotations_trainval2017.zip of https://cocodataset.org (Download) in {root}; with"
            " captions in another place or form, give data.captions."
        )


def _fetch_mindeye2(cfg: Config, root: str, lacking: set[str]) -> Iterator[str]:
    yield "With the Hugging Face client, after the agreement (older clients: huggingface-cli download):"
    single = [path for path in sorted(lacking) if not path.startswith("wds/") and path != mindeye2.CAPTIONS]
    folders = sorted({f"{path.rpartition('/')[0]}/*" for path in lacking if path.startswith("wds/")})
    if len(folders) > N_FOLDERS:
        folders = [f"wds/*/{mindeye2.TRAIN}/*", f"wds/*/{mindeye2.NEW_TEST}/*"]
    if single or folders:
        quoted = [*single, *(f'"{path}"' for path in folders)]
        wanted = " ".join(f"--include{UNBROKEN}{path}" for path in quoted)
        lines = textwrap.wrap(wanted, 100, break_on_hyphens=False, break_long_words=False)
        lines = [line.replace(UNBROKEN, " ") for line in lines]
        yield f"    hf download {RELEASE} --repo-type dataset --local-dir {root} \\"
        yield from (f"      {line} \\" for line in lines[:-1])
        yield f"      {lines[-1]}"
    if len(cfg.data.subjects) > 1:
        yield f"data.subjects=[{cfg.subject.name}] needs no tars of other subjects, and only the images that it saw."
    if mindeye2.CAPTIONS in lacking:
        yield f"    hf download {CAPTIONS_RELEASE} {mindeye2.CAPTIONS} --repo-type dataset --local-dir {root}"


def _sessions(cfg: Config) -> str:
    by_count: dict[int, list[str]] = {}
    for name, person in facts.PEOPLE.items():
        by_count.setdefault(person.sessions, []).append(name)
    counts = "; ".join(f"{n}: {', '.join(names)}" for n, names in sorted(by_count.items(), reverse=True))
    return (
        f"Sessions of each subject: {counts}. The last three of each were held out at first; all have been public "
        "since August 2023 (NSD Data Manual), so an older download may lack them."
    )
