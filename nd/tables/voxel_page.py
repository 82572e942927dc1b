"""The second page of `nd roi`: which voxels each target, and each layer of g, is decoded from.

M maps, V voxels, K ROIs, S subjects.
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
from nd.metrics.intervals import Interval

WIDTH, HIGH, LEFT = 360, 18, 110  # of a panel's bars, of one bar, of its name, in pixels
DIGITS = 2

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{ style | safe }}
.panels { display: flex; flex-wrap: wrap; gap: 18px; }</style></head>
<body><main>
<h1>{{ title }}</h1>
<p class="soft">How much the voxels of an ROI are used to decode each target: the root mean square of a voxel's weights
over the columns of the target, weights in spreads of the column per spread of the voxel, over the mean of all voxels
(1, the line). Bars: mean over the ROI's voxels, with its 95 % interval over these voxels. A weight says what a decoder
uses, not what an area codes: voxels that say the same share their weights, and noise that two have in common may give
one a weight that only cancels the other's.</p>
<section class="panels">
{% for label, bars in panels %}
<figure><figcaption><b>{{ label }}</b></figcaption>
<svg width="{{ left + width + 60 }}" height="{{ (bars | length) * high + 4 }}" role="img"
 aria-label="{{ label }}: use of each ROI" font-size="12" font-family="sans-serif">
{% for bar in bars %}
<text x="{{ left - 6 }}" y="{{ loop.index0 * high + 13 }}" text-anchor="end">{{ bar.name }}</text>
{% if bar.text %}
<rect x="{{ left }}" y="{{ loop.index0 * high + 3 }}" width="{{ bar.mean }}" height="{{ high - 6 }}" fill="#1f6fb2"/>
<line x1="{{ left + bar.lo }}" x2="{{ left + bar.hi }}" y1="{{ loop.index0 * high + 9 }}"
 y2="{{ loop.index0 * high + 9 }}" stroke="#2b2f36" stroke-width="1.5"/>
<text x="{{ left + bar.hi + 5 }}" y="{{ loop.index0 * high + 13 }}">{{ bar.text }}</text>
{% else %}
<text x="{{ left + 4 }}" y="{{ loop.index0 * high + 13 }}" fill="#626a76">not read</text>
{% endif %}
{% endfor %}
<line x1="{{ left + one[loop.index0] }}" x2="{{ left + one[loop.index0] }}" y1="0" y2="{{ (bars | length) * high }}"
 stroke="#b5423c" stroke-dasharray="3 3"/>
</svg></figure>
{% endfor %}
</section>
<section><h2>The same in other subjects</h2>
{% if pairs %}
<p class="soft">Cosine of the ROIs' means, as deviations from 1, of two subjects: 1 where both decode from the same
ROIs, about 0 where they have nothing in common.</p>
<table class="plain"><tr><th></th>{% for label, _ in panels %}<th>{{ label }}</th>{% endfor %}</tr>
{% for pair, values in pairs %}
<tr><th>{{ pair }}</th>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% else %}
<p class="soft">The method is trained on this subject alone.</p>
{% endif %}
</section>
<p class="soft">Made by <code>{{ command }}</code></p>
</main></body></html>
"""


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
    """Write the page, and the same as <name>.h5 beside it: map/<label> (V,), bars/<label> (K, 3), roi (K,).

    Args:
        use: what was found.
        path: of the page.
        cfg: names method, subject and data.
        command: what makes it again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path.with_suffix(".h5")) as temporary, h5py.File(temporary, "w") as file:
        file["roi"] = np.array(use.names, dtype=h5py.string_dtype())
        for label, bars in use.bars.items():
            file[f"map/{label}"] = use.maps[label]
            numbers = [(bar.mean, bar.lo, bar.hi) if bar else (np.nan,) * 3 for bar in bars]
            file[f"bars/{label}"] = np.asarray(numbers, np.float32)
        for (a, b), cosines in use.cosines.items():
            file[f"cosine/{a}-{b}"] = np.asarray(list(cosines.values()), np.float32)  # in the order of map, as written
        file.attrs.update({"method": cfg.method.name, "subject": cfg.subject.name, "simulated": cfg.data.simulated})
        file.attrs["maps"] = list(use.maps)
    measured = "simulated" if cfg.data.simulated else "measured"
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(PAGE)
    ends = {label: max((bar.hi for bar in bars if bar), default=1.0) for label, bars in use.bars.items()}
    text = template.render(
        title=f"Voxels used for {cfg.subject.name} ({cfg.data.name}, {measured} fMRI) by {cfg.method.name}",
        style=(Path(__file__).parent / "report.css").read_text(encoding="utf-8"),
        panels=[(label, _bars(use.names, bars, ends[label])) for label, bars in use.bars.items()],
        one=[round(WIDTH / max(ends[label], 1.0), 1) for label in use.bars],
        pairs=[(f"{a}, {b}", [f"{c:.{DIGITS}f}" for c in found.values()]) for (a, b), found in use.cosines.items()],
        command=command, width=WIDTH, high=HIGH, left=LEFT,
    )  # fmt: skip
    write_text(path, text)


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
