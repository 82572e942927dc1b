"""The two pages of `nd roi`, each with a file of the same: images of ROIs, and which voxels targets are decoded from.

K ROIs, R repeats, H W image; M maps, V voxels, S subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.files import atomic_path, sha256_json, write_text
from nd.h5_values import read_whole
from nd.hdf5 import open_h5
from nd.metrics.intervals import Interval
from nd.runs.identity import generator_of, run_id, run_name
from nd.tables.pages import data_uri, png, template

WIDTH, HIGH, LEFT = 360, 18, 110  # of a panel's bars, of one bar, of its name, in pixels
DIGITS = 2


@dataclass(frozen=True)
class RoiImages:
    """What was made of each ROI.

    Attributes:
        names: K ROIs.
        n_voxels: of each, in the prepared file.
        images: (K, R, H, W, 3) uint8.
        lengths: by target, (K,) length of what the ROI's pattern changes.
    """

    names: Sequence[str]
    n_voxels: Sequence[int]
    images: NDArray[np.uint8]
    lengths: Mapping[str, NDArray[np.float32]]


def write_page(shown: RoiImages, path: Path, cfg: Config, command: str) -> None:
    """Write the page, and the same as <name>.h5 beside it; ``command`` makes them again."""
    held: dict[str, Any] = {
        "images": shown.images, "n_voxels": np.asarray(shown.n_voxels),
        "roi": np.array(shown.names, dtype=h5py.string_dtype()),
        **{f"change/{target}": lengths for target, lengths in shown.lengths.items()},
    }  # fmt: skip
    note = generator_of(cfg).note
    title = f"ROIs of {_of(cfg)}" + (f" ({note})" if note else "")
    _write(path, cfg, held, {}, "roi.html.j2", title=title, rows=roi_rows(shown), command=command)


def _of(cfg: Config) -> str:
    measured = "simulated" if cfg.data.simulated else "measured"
    return f"{cfg.subject.name} ({cfg.data.name}, {measured} fMRI) by {cfg.method.name}"


def _write(path: Path, cfg: Config, held: Mapping[str, Any], facts: Mapping[str, Any], page: str, **shown: Any) -> None:
    """Write a page by its template, and beside it what it shows: datasets and attributes of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path.with_suffix(".h5")) as temporary, h5py.File(temporary, "w") as file:
        for name, values in held.items():
            file[name] = values
        own = {"method": cfg.method.name, "subject": cfg.subject.name, "simulated": cfg.data.simulated}
        file.attrs.update(own | dict(facts))
    write_text(path, template(page).render(**shown))


def roi_rows(shown: RoiImages) -> list[tuple[str, int, list[str], list[tuple[str, str]]]]:
    """Return what a page shows of each ROI: name, voxels, images as URIs, and the share of change by target."""
    rows = []
    for k, name in enumerate(shown.names):
        images = [data_uri(png(image), "png") for image in shown.images[k]]
        shares = {t: values[k] / max(float(values.max()), 1e-30) for t, values in shown.lengths.items()}
        rows.append((name, shown.n_voxels[k], images, [(t, f"{share:.2f}") for t, share in shares.items()]))
    return rows


def page_path(cfg: Config, names: Sequence[str]) -> Path:
    """Return where the page of some ROIs goes: pages of other settings or ROIs stay as they are."""
    unique = sha256_json([run_id("reconstruct", cfg), list(names)])
    return Path(cfg.paths.results) / f"roi-{run_name('reconstruct', cfg)}-{unique}.html"


def written_for(cfg: Config) -> list[RoiImages]:
    """Return what `nd roi` has written for a configuration, whatever ROIs; files of other settings are passed by."""
    stem = f"roi-{run_name('reconstruct', cfg)}-"
    found = [(path, read_images(path)) for path in sorted(Path(cfg.paths.results).glob(f"{stem}*.h5"))]
    return [shown for path, shown in found if path.stem == page_path(cfg, shown.names).stem]


def read_images(path: Path) -> RoiImages:
    """Return what a file beside a page holds. Raises UserError where it lacks something."""
    with open_h5(path) as file:
        missing = [name for name in ("images", "roi", "n_voxels", "change") if name not in file]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}. Remove it and run `nd roi` again.")
        names = [str(name) for name in read_whole(file, "roi", "O", (None,))]
        lengths = {target: read_whole(file, f"change/{target}", "f") for target in file["change"]}
        return RoiImages(names, read_whole(file, "n_voxels", "iu").tolist(), read_whole(file, "images", "u"), lengths)


# ---- voxels


@dataclass(frozen=True)
class VoxelUse:
    """Which voxels a method's decoders use.

    Attributes:
        names: K ROIs.
        maps: by label (of a target or a layer), the share (V,) of each voxel that its mapper reads; 1 is the mean.
        bars: by label, of each ROI its mean share over voxels and interval; None: the mapper reads none of its voxels.
        cosines: by pair of subjects, of each label the cosine of their ROIs' means.
    """

    names: Sequence[str]
    maps: Mapping[str, NDArray[np.float32]]
    bars: Mapping[str, Sequence[Interval | None]]
    cosines: Mapping[tuple[str, str], Mapping[str, float]]


def write_voxel_page(use: VoxelUse, path: Path, cfg: Config, command: str) -> None:
    """Write the page, and the same as <name>.h5 beside it: map/<label> (V,), bars/<label> (K, 3), roi (K,)."""
    held: dict[str, Any] = {"roi": np.array(use.names, dtype=h5py.string_dtype())}
    for label, bars in use.bars.items():
        numbers = [(bar.mean, bar.lo, bar.hi) if bar else (np.nan,) * 3 for bar in bars]
        held |= {f"map/{label}": use.maps[label], f"bars/{label}": np.asarray(numbers, np.float32)}
    for (a, b), cosines in use.cosines.items():
        held[f"cosine/{a}-{b}"] = np.asarray(list(cosines.values()), np.float32)  # in the order of map, as written
    ends = {label: max((bar.hi for bar in bars if bar), default=1.0) for label, bars in use.bars.items()}
    _write(
        path, cfg, held, {"maps": list(use.maps)}, "voxels.html.j2",
        title=f"Voxels used for {_of(cfg)}",
        panels=[(label, _bars(use.names, bars, ends[label])) for label, bars in use.bars.items()],
        one=[round(WIDTH / max(ends[label], 1.0), 1) for label in use.bars],
        pairs=[(f"{a}, {b}", [f"{c:.{DIGITS}f}" for c in found.values()]) for (a, b), found in use.cosines.items()],
        command=command, width=WIDTH, high=HIGH, left=LEFT,
    )  # fmt: skip


def _bars(names: Sequence[str], bars: Sequence[Interval | None], end: float) -> list[dict[str, str | float]]:
    """Return lengths in pixels, and the numbers as text; no text where there is nothing to show."""
    scale = WIDTH / max(end, 1.0)
    drawn: list[dict[str, str | float]] = []
    for name, bar in zip(names, bars, strict=True):
        lengths = {"mean": bar.mean, "lo": bar.lo, "hi": bar.hi} if bar else {}
        shown = {key: round(max(0.0, value) * scale, 1) for key, value in lengths.items()}
        text = f"{bar.mean:.{DIGITS}f} [{bar.lo:.{DIGITS}f}, {bar.hi:.{DIGITS}f}]" if bar else ""
        drawn.append({"name": name, "text": text, **shown})
    return drawn
