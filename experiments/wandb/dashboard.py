"""The W&B dashboard of a project that `logger=wandb` fills, as code: scores, images, sweeps, training, tables.

    python experiments/wandb/dashboard.py entity=<you or your team> [project=nd]      # installs it
    python experiments/wandb/dashboard.py entity=<you> out=dashboard.json             # writes it, sends nothing

It is a saved view of the project's workspace: open the project on W&B, and choose it under the name below. Installing
it again makes another view and changes none. Needs `pip install "nd[dashboard]"`; installing needs a login.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nd.config.groups import LoggerConfig
from nd.errors import UserError, unknown
from nd.files import write_text
from nd.runs.catalogue import MAIN_SCORES
from nd.tables import wandb_runs
from nd.terminal import exit_with

NAME = "nd: scores, images, sweeps"
SCORES = MAIN_SCORES[:4]  # where a protocol has others, its panels stay empty; every score is in the tables
DECODING = ("correlation", "identification", "retrieval")  # validation scores of a mapper
OPTIONS = ("entity", "project", "out")


def packages() -> tuple[Any, Any]:
    """Return the modules that describe workspaces and panels; a ``UserError`` where they are missing."""
    wandb_runs.package()
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError('the dashboard needs the wandb-workspaces package: pip install "nd[dashboard]".') from None
    return workspaces, panels


def dashboard(entity: str, project: str) -> Any:
    """Return the dashboard, not yet sent.

    Args:
        entity: user or team that the project belongs to.
        project: as ``logger.project``.
    """
    ws, wr = packages()
    contents = {
        "Scores": scores_of(wr),
        "Images": images_of(wr),
        "Guidance": guidance_of(wr),
        "Training": training_of(wr),
        "Tables and sweeps": tables_of(wr),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in contents.items()],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            # Not grouped: W&B would show the mean over a group's runs in place of each.
            pinned_columns=["run:group", "run:jobType", *(f"summary:{name}" for name in SCORES)],
        ),
    )


def scores_of(wr: Any) -> list[Any]:
    """Return a bar for each run and main score, and what sets two runs apart."""
    bars = [wr.BarPlot(title=name, metrics=[name], max_bars_to_show=50) for name in SCORES]
    return [*bars, wr.RunComparer(diff_only="split")]


def images_of(wr: Any) -> list[Any]:
    """Return the grids of images, and every image with its scores."""
    grids = wr.MediaBrowser(title="from the best to the worst image", media_keys=["images"], num_columns=1)
    return [_wide(wr, grids), _wide(wr, wr.WeavePanelSummaryTable(table_name="per_image"))]


def guidance_of(wr: Any) -> list[Any]:
    """Return scores over kappa and eta: curves, all settings at once, and the maps of sweeps."""
    kappa, eta = wr.Config("guidance.kappa"), wr.Config("guidance.eta")
    curves = [
        wr.ScatterPlot(title=f"{name} over kappa", x=kappa, y=wr.SummaryMetric(name), z=eta, log_x=True)
        for name in SCORES
    ]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=kappa, log=True), wr.ParallelCoordinatesPlotColumn(metric=eta)]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in SCORES]
    together = wr.ParallelCoordinatesPlot(title="kappa, eta and scores", columns=columns)
    return [*curves, _wide(wr, together), _wide(wr, wr.MediaBrowser(title="maps of sweeps", media_keys=["map"]))]


def training_of(wr: Any) -> list[Any]:
    """Return losses and validation scores over the steps, of both stages and all folds."""
    titles = {"train/.*": "losses"} | {f"val/.*/{name}": f"{name} (validation images)" for name in DECODING}
    curves = [
        wr.LinePlot(title=title, metric_regex=f"(fold-[0-9]+/)?{regex}", x="step", log_y=title == "losses")
        for regex, title in titles.items()
    ]
    return [*curves, wr.LinePlot(title="learning rate", metric_regex="(fold-[0-9]+/)?lr", x="step")]


def tables_of(wr: Any) -> list[Any]:
    """Return the rows of tables (``nd table``) and the points of sweeps (``nd run -m``)."""
    return [_wide(wr, wr.WeavePanelSummaryTable(table_name=name)) for name in ("table", "sweep")]


def _wide(wr: Any, panel: Any) -> Any:
    panel.layout = wr.Layout(w=24, h=10)
    return panel


def main(argv: Sequence[str]) -> int:
    """Install the dashboard, or write it to a file; returns the exit code."""
    given = {key: value for key, equals, value in (word.partition("=") for word in argv) if equals}
    for word in argv:
        if word.partition("=")[0] not in OPTIONS or "=" not in word:
            raise unknown("option", word, [f"{name}=" for name in OPTIONS])
    if not given.get("entity"):
        raise UserError("whose project is it? Give entity=<user or team on W&B>.")
    made = dashboard(given["entity"], given.get("project", LoggerConfig().project))
    if "out" in given:
        spec = made._to_model().spec.model_dump(by_alias=True, exclude_none=True)
        write_text(Path(given["out"]), json.dumps(spec, indent=2) + "\n")
        print(f"wrote {given['out']}; nothing was sent")
        return 0
    try:
        made.save()
    except Exception as error:  # wandb raises its own, and those of its network libraries
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"W&B did not take the dashboard ({told}). Is the project there? `wandb login`?") from error
    print(f"installed {NAME!r}: {made.url}")
    return 0


if __name__ == "__main__":
    exit_with("dashboard", lambda: main(sys.argv[1:]))
