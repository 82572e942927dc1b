"""What samplers recorded on their way, where ``trainer.previews`` named a folder: images after steps, and losses.

Both are of the first batch of a run (`nd.generate.guided_diffusion.Previews`, `nd.generate.minddiffuser.generator`). A
folder that several runs wrote into says nothing of any of them and is left out.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from nd.errors import UserError
from nd.runs.folder import RunFolder
from nd.tables.curve_charts import loss_chart
from nd.tables.line_chart import LineChart
from nd.tables.pages import data_uri
from nd.tables.rows import TableRow
from nd.tables.table import Table

log = logging.getLogger(__name__)

STEP = re.compile(r"image-(\d+)-step-(\d+)\.png")
MOST_IMAGES = 12  # of the steps, evenly spaced with the first and the last
MOST_LOSSES = 8  # images whose losses are drawn


@dataclass(frozen=True)
class Way:
    """How one row came to its images.

    Attributes:
        label: of the row.
        image_id: of the stimulus.
        steps: number of the step or iteration, and the image after it as a URI; repeats side by side.
        losses: None where nothing was optimised.
    """

    label: str
    image_id: int | None = None
    steps: list[tuple[int, str]] = field(default_factory=list)
    losses: LineChart | None = None


def ways_of(table: Table) -> list[Way]:
    """Return what is recorded for the rows of a table, each run once.

    Raises:
        UserError: losses that cannot be read.
    """
    rows: dict[Path, dict[str, TableRow]] = defaultdict(dict)
    for row in table.rows:
        run = RunFolder.open(row.entry.cfg, "reconstruct")
        previews = run.manifest.get("config", {}).get("trainer", {}).get("previews", "")
        if previews and Path(previews).is_dir():
            rows[Path(previews).resolve()].setdefault(run.run_id, row)
    ways = []
    for folder, runs in rows.items():
        if len(runs) > 1:
            names = ", ".join(row.entry.label for row in runs.values())
            log.warning(
                "%s holds previews of several rows (%s): none is shown. Give each its own folder.", folder, names
            )
            continue
        (row,) = runs.values()
        way = way_in(folder, row.entry.label if len(table.subjects) > 1 else row.label)
        ways += [way] if way.steps or way.losses else []
    return ways


def way_in(folder: Path, label: str) -> Way:
    """Return what the folder ``trainer.previews`` of a row holds: the steps of its first image, and losses.

    Raises:
        UserError: losses that cannot be read.
    """
    found: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted(folder.glob("image-*-step-*.png")):
        if match := STEP.fullmatch(path.name):
            found[int(match[1])].append((int(match[2]), path))
    image_id = min(found, default=None)
    steps = sorted(found[image_id]) if image_id is not None else []
    images = [(step, data_uri(path.read_bytes(), "png")) for step, path in evenly(steps)]
    losses = folder / "losses.csv"
    chart = loss_chart(f"{label}: loss of each image", read_losses(losses)) if losses.is_file() else None
    return Way(label, image_id, images, chart)


def evenly(steps: list[tuple[int, Path]], most: int = MOST_IMAGES) -> list[tuple[int, Path]]:
    """Return at most ``most`` of the steps, evenly spaced, the first and the last among them.

    >>> [step for step, _ in evenly([(k, Path()) for k in range(9)], 3)]
    [0, 4, 8]
    """
    if len(steps) <= most:
        return steps
    return [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)]


def read_losses(path: Path) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """Return the losses of a file by image id and repeat, (iteration, loss) each; of the first few images.

    Raises:
        UserError: it is no file of losses.
    """
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            for line in csv.DictReader(handle):
                place = int(line["image_id"]), int(line["repeat"])
                found[place].append((float(line["iteration"]), float(line["loss"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no losses ({error!r}). Remove it, or run again with trainer.previews.") from None
    shown = list(dict.fromkeys(image_id for image_id, _ in found))[:MOST_LOSSES]
    return {place: points for place, points in found.items() if place[0] in shown}
