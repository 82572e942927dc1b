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
from nd.files import atomic_path, write_text
from nd.runs.identity import generator_of
from nd.tables.gallery import data_uri, png

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="soft">Each row: images of a pattern that is one in the voxels of an ROI and zero in all others, in units of a
voxel's own spread over training images. What it adds to the prediction of no response was brought to one length for
all ROIs, so that images show what an ROI speaks of and not how loudly; the numbers say how loudly. All start from the
same noise, and each column from another.</p>
<table class="gallery">
{% for name, count, images, lengths in rows %}
<tr><th>{{ name }}<br><span class="soft">{{ count }} voxels</span></th>
{% for image in images %}<td><img alt="{{ name }}" src="{{ image }}"></td>{% endfor %}
<td class="soft">{% for target, length in lengths %}{{ target }} {{ length }}<br>{% endfor %}</td></tr>
{% endfor %}
</table>
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
    write_text(path, template.render(title=title, style=style, rows=list(_rows(shown)), command=command))


def _rows(shown: RoiImages) -> list[tuple[str, int, list[str], list[tuple[str, str]]]]:
    rows = []
    for k, name in enumerate(shown.names):
        images = [data_uri(png(image), "png") for image in shown.images[k]]
        shares = {t: values[k] / max(float(values.max()), 1e-30) for t, values in shown.lengths.items()}
        rows.append((name, shown.n_voxels[k], images, [(t, f"{share:.2f}") for t, share in shares.items()]))
    return rows
