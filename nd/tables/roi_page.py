"""The page and the file of `nd roi`: images of ROIs, and how much each changes each target.

K ROIs, R repeats, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from nd.config import Config
from nd.errors import UserError
from nd.files import atomic_path, sha256_json, write_text
from nd.hdf5 import open_h5
from nd.runs.identity import generator_of, run_id, run_name
from nd.tables.gallery import data_uri, png

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{ style | safe }}</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="soft">Each row: images of a pattern that is one in the voxels of an ROI and zero in all others, in units of a
voxel's own spread over training images. What it adds to the prediction of no response was brought to one length for
all ROIs, so that images show what an ROI speaks of and not how loudly; the numbers say how loudly. All start from the
same noise, and each column from another.</p>
<div class="scroll" tabindex="0" role="region" aria-label="images of ROIs"><table class="gallery">
{% for name, count, images, lengths in rows %}
<tr><th scope="row">{{ name }}<br><span class="soft">{{ count }} voxels</span></th>
{% for image in images %}<td><img alt="{{ name }}, repeat {{ loop.index }}" src="{{ image }}"></td>{% endfor %}
<td class="soft">{% for target, length in lengths %}{{ target }} {{ length }}<br>{% endfor %}</td></tr>
{% endfor %}
</table></div>
<p class="soft">Length of the change of each target, over that of the longest one shown. Made by
<code>{{ command }}</code></p>
</main></body></html>
"""


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
    """Write the page, and the same as <name>.h5 beside it.

    Args:
        shown: what was made.
        path: of the page.
        cfg: names method, subject and data.
        command: what makes them again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path.with_suffix(".h5")) as temporary, h5py.File(temporary, "w") as file:
        file["images"], file["n_voxels"] = shown.images, np.asarray(shown.n_voxels)
        file["roi"] = np.array(shown.names, dtype=h5py.string_dtype())
        for target, lengths in shown.lengths.items():
            file[f"change/{target}"] = lengths
        file.attrs.update({"method": cfg.method.name, "subject": cfg.subject.name, "simulated": cfg.data.simulated})
    measured = "simulated" if cfg.data.simulated else "measured"
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(PAGE)
    note = generator_of(cfg).note
    title = f"ROIs of {cfg.subject.name} ({cfg.data.name}, {measured} fMRI) by {cfg.method.name}"
    title += f" ({note})" if note else ""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    write_text(path, template.render(title=title, style=style, rows=roi_rows(shown), command=command))


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
        names = [name.decode() for name in file["roi"][()]]
        lengths = {target: values[()] for target, values in file["change"].items()}
        return RoiImages(names, file["n_voxels"][()].tolist(), file["images"][()], lengths)
