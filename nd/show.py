"""`nd show RUN`: one run, what differs from the defaults, its scores and files; or its images as PNG.

RUN is a folder, an id, a name, or an unambiguous beginning of one. `image=12` writes the stimulus with that id beside
its reconstructions into one PNG: `out=png` into paths.results, `out=<file>.png` elsewhere. Without `image=`,
`out=<folder>` writes every reconstruction as `<image id>.png`, with several repeats `<image id>_<repeat>.png`, which
`nd evaluate images=<folder>` reads.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tabulate import tabulate

from nd.config.help import shown
from nd.config.words import Words, verb_of_words
from nd.data.stimuli import Stimuli
from nd.doctor.need import byte_text
from nd.errors import UserError
from nd.evaluation.reconstructions import read_images
from nd.evaluation.scores import read_per_image, score_table
from nd.evaluation.summary import read_summary
from nd.files import atomic_path
from nd.interface.finished_run import read_run
from nd.runs.catalogue import KnownRun, age, find_run
from nd.runs.inputs import changed_files

GAP = 4  # white pixels between images
SHOWN_SIDE = 256  # smaller images are enlarged to it, each pixel a square
TRACEBACK_LINES = 12
BOOKKEEPING = (".lock", "status")


def show(words: Words) -> int:
    """Print a run, or write its images; returns the exit code."""
    if len(words.bare) != 1:
        raise UserError(f"one run was wanted, {len(words.bare)} were given: nd show RUN. `nd ls` lists the runs.")
    run = find_run(words.bare[0], Path(words.paths.runs))
    image, out = words.options.get("image", ""), words.options.get("out", "")
    if not image and not out:
        print("\n".join(described(run)))
    elif image:
        print(f"wrote {write_image(run, _number(image), _place(run, image, out, Path(words.paths.results)))}")
    elif out == "png":
        raise UserError("out=png writes one image: which? image=<id>. All of them go into a folder: out=<folder>.")
    else:
        print(f"wrote {write_all(run, Path(out))} images into {out}")
    return 0


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"image={text}: the id of an image was wanted, a whole number.") from None


def _place(run: KnownRun, image: str, out: str, results: Path) -> Path:
    """Return where the PNG of one image goes."""
    if out in ("", "png"):
        return results / f"{run.path.name}-image-{image}.png"
    if not out.lower().endswith(".png"):
        raise UserError(f"out={out}: with image={image} one PNG is written: out=png, or out=<file>.png.")
    return Path(out)


# ---- said


def described(run: KnownRun) -> Iterator[str]:
    """Yield what there is to say of a run, line by line."""
    seconds = run.manifest.get("seconds")
    took = "" if seconds is None else f", took {seconds:.1f} s (attempts: {run.manifest.get('attempts', 1)})"
    yield str(run.path)
    yield f"{run.state}, {age(run.changed)} ago{took}, {byte_text(run.n_bytes)}"
    command = ["nd", run.verb, *run.manifest.get("overrides", [])]
    yield f"made by: {shlex.join(command)}"
    yield from _section("differs from the defaults", ([key, shown(value)] for key, value in run.identity.items()))
    yield from _section("made from", ([name, value] for name, value in run.manifest.get("inputs", {}).items()))
    if run.verb == "evaluate" and (run.path / "scores.json").is_file():
        yield f"\nscores\n{score_table(read_summary(run.path))}"
    yield from _section("files", _files(run.path))
    if run.folder.status == "failed":
        text = (run.path / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        yield from ["", "failed with", *(f"  {line}" for line in text[1:][-TRACEBACK_LINES:])]


def _section(title: str, lines: Iterator[list[str]]) -> Iterator[str]:
    table = list(lines)
    if table:
        yield f"\n{title}"
        yield from (f"  {line}" for line in tabulate(table, tablefmt="plain", disable_numparse=True).splitlines())


def _files(folder: Path) -> Iterator[list[str]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in BOOKKEEPING:
            yield [str(file.relative_to(folder)), byte_text(file.stat().st_size)]


# ---- images


def write_image(run: KnownRun, image_id: int, path: Path) -> Path:
    """Write a stimulus and its reconstructions side by side as a PNG.

    Args:
        run: finished; of reconstruct, or of evaluate.
        image_id: of the stimulus.
        path: of the PNG, made with its folder.

    Raises:
        UserError: no images, not this one, or stimuli that are not those of the run.
    """
    images, ids, _ = read_images(_images_file(run))
    rows = np.flatnonzero(ids == image_id)
    if not len(rows):
        near = ids[np.argsort(np.abs(ids - image_id), kind="stable")[:3]].tolist()
        raise UserError(f"image={image_id} is none of the {len(ids)} images of this run. The nearest ids: {near}.")
    stimulus = _stimuli(run).images(np.array([image_id]))[0]
    _save(side_by_side([stimulus, *images[int(rows[0])]]), path)
    for name, value in _scores_of(run, image_id).items():
        print(f"  {name:<28}{value:8.4f}")
    return path


def write_all(run: KnownRun, folder: Path) -> int:
    """Write every reconstruction of a run into a folder as PNG; returns how many.

    Args:
        run: finished; of reconstruct, or of evaluate.
        folder: made where it is missing; other files in it are a ``UserError``, which would be taken for images.
    """
    images, ids, _ = read_images(_images_file(run))
    repeats = images.shape[1]
    names = {f"{i}_{r}.png" if repeats > 1 else f"{i}.png" for i in ids for r in range(repeats)}
    others = {item.name for item in folder.iterdir() if item.name[0] != "."} - names if folder.is_dir() else set()
    if others:
        raise UserError(f"out={folder} holds other files ({min(others)}). Give an empty folder, or a new one.")
    for row, image_id in enumerate(ids):
        for repeat, image in enumerate(images[row]):
            _save(image, folder / (f"{image_id}_{repeat}.png" if repeats > 1 else f"{image_id}.png"))
    return len(names)


def side_by_side(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return images (H, W, 3) of any size in one row of one height, white between them.

    >>> side_by_side([np.zeros((2, 2, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]).shape
    (256, 516, 3)
    """
    side = max(SHOWN_SIDE, *(image.shape[0] for image in images))
    white = np.full((side, GAP, 3), 255, np.uint8)
    scaled = [Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST) for image in images]
    row = [part for image in scaled for part in (white, np.asarray(image))][1:]
    return np.concatenate(row, axis=1)


def _images_file(run: KnownRun) -> Path:
    """Return the file of a run's images, which an evaluate run has of the run it was made from."""
    if run.verb not in ("reconstruct", "evaluate"):
        raise UserError(f"{run.path.name} is a {run.verb} run, which has no images. `nd ls reconstruct` lists those.")
    return read_run(run.path).source("reconstruct").path / "images.h5"


def _stimuli(run: KnownRun) -> Stimuli:
    """Return the stimuli that a run read; others in their place are refused."""
    recorded = {name: facts for name, facts in run.manifest.get("files", {}).items() if Path(name).name == "stimuli.h5"}
    path = Path(next(iter(recorded), "")) if recorded else Path(run.config["paths"]["data"]) / "stimuli.h5"
    if path.is_file() and (changed := changed_files(recorded, [path])):
        raise UserError(f"the stimuli are not those of the run: {changed[0]}.")
    return Stimuli(path)


def _scores_of(run: KnownRun, image_id: int) -> dict[str, float]:
    """Return the scores of one image by metric; none where the run has no scores."""
    if not (run.path / "per_image.csv").is_file():
        return {}
    scores = read_per_image(run.path / "per_image.csv")
    rows = np.flatnonzero(scores.pop("image_id") == image_id)  # none, where a selection alone was scored
    return {name: float(values[rows[0]]) for name, values in scores.items() if len(rows)}


def _save(image: NDArray[np.uint8], path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


main = verb_of_words(show, ("image", "out"))

if __name__ == "__main__":
    main(None)
