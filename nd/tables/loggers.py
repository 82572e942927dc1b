"""Results shown elsewhere, only when asked for: ``logger=wandb`` (offline unless told otherwise), tensorboard, csv.

Tables never read these: run folders are the record, and this is a view of them. What goes wrong here is a warning.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.data.prepared import Stimuli, stimuli_path
from nd.errors import UserError
from nd.evaluation.reconstructions import Stored, read_images, scored_run
from nd.evaluation.scores import PerImage, evenly_ranked, read_per_image
from nd.evaluation.summary import read_summary
from nd.files import sha256_json, write_text
from nd.launch import is_rank_zero
from nd.locks import locked
from nd.runs.folder import RunFolder
from nd.runs.groups import Member, announce, group_of, members_of, name_of, names_apart, sweep_name
from nd.tables import wandb_runs
from nd.tables.specs import load_spec
from nd.tables.wandb_media import Pairs, caption, files_artifact, grid, pair, per_image_table, ranked_by
from nd.terminal import plain_cell

if TYPE_CHECKING:
    from nd.tables.sweep import SweepTable
    from nd.tables.table import Table

log = logging.getLogger(__name__)

CSV_NAME = "scores-log.csv"
FIELDS = ("run", "name", "metric", "value")
WHOLE = ("simulated", "n_images", "n_repeats", "oracle", "control", "transductive")  # of scores.json, for the summary
Images = tuple[Stored | NDArray[Any], NDArray[np.int32]]  # (N, R, H, W, 3) and their ids (N,)


def is_on(cfg: Config) -> bool:
    """Say whether anything is shown anywhere."""
    return cfg.logger.name != "none" and not (cfg.logger.name == "wandb" and wandb_runs.mode_of(cfg) == "disabled")


def check_logger(cfg: Config) -> None:
    """Make sure, before any work, that ``logger`` can show what it is asked to.

    Raises:
        UserError: a package is missing, or W&B has no such mode, or is online without a key to log in with.
    """
    if cfg.logger.name == "wandb":
        wandb_runs.check(cfg)
    if cfg.logger.name == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise UserError(
            'logger=tensorboard needs the tensorboard package: pip install "nd[tensorboard]". Or leave logger=none.'
        )


def _shown(cfg: Config, what: Path, show: Callable[[], None]) -> None:
    """Show something; where that fails, warn."""
    try:
        show()
    except Exception as error:  # wandb raises its own, and those of its network libraries
        log.warning(
            "logger=%s could not show %s (%s: %s). The results are kept there; the same command tries again",
            cfg.logger.name, what, type(error).__name__, error,
        )  # fmt: skip


# ---- groups


def announce_table(cfg: Config, rows: Sequence[Config]) -> None:
    """Leave the names of the runs of a table's rows where those find them; nothing unless the logger is on."""
    if is_on(cfg) and cfg.table and is_rank_zero(cfg.trainer):
        always = ("subject",) if len(load_spec(cfg.table).subjects) > 1 else ()
        announce(Path(cfg.paths.runs), group_of(cfg), names_apart(members_of(rows), always))


def announce_sweep(cfg: Config, members: Sequence[Member], name: str = "") -> str:
    """Leave the names of a sweep's runs where those find them, and return the group; empty unless the logger is on.

    Args:
        cfg: of a point.
        members: the runs.
        name: of the group where ``logger.group`` gives none; empty: one made of the runs' ids.
    """
    if not is_on(cfg) or not is_rank_zero(cfg.trainer):
        return ""
    group = cfg.logger.group or name or sweep_name(members)
    announce(Path(cfg.paths.runs), group, names_apart(members))
    return group


# ---- evaluate


def log_scores(cfg: Config, folder: RunFolder, images: Images | None = None, again: bool = False) -> None:
    """Show a finished evaluate run where ``logger`` says, once.

    Args:
        cfg: of the run.
        folder: of the run.
        images: those made elsewhere; None: of the reconstruct run.
        again: also where it has been shown before.
    """
    if not is_on(cfg) or not is_rank_zero(cfg.trainer):
        return
    if cfg.logger.name == "wandb" and wandb_runs.is_marked(cfg, folder) and not again:
        return
    show = {"wandb": _scores_to_wandb, "csv": _scores_to_csv, "tensorboard": _scores_to_tensorboard}[cfg.logger.name]
    _shown(cfg, folder.path, lambda: show(cfg, folder, images))


def means_of(folder: RunFolder) -> dict[str, float]:
    """Return the mean scores of an evaluate run, with those of retrieval."""
    summary = read_summary(folder.path)
    return {name: score["mean"] for name, score in (summary["metrics"] | summary.get("retrieval", {})).items()}


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """Return the scores of an evaluate run with the ends of their intervals, and what is to be known of them."""
    summary = read_summary(folder.path)
    scores = summary["metrics"] | summary.get("retrieval", {})
    ends = {f"{name}_{end}": score[end] for name, score in scores.items() for end in ("lo", "hi") if end in score}
    return {name: summary[name] for name in WHOLE if name in summary} | means_of(folder) | ends


def pairs_of(cfg: Config, folder: RunFolder, scores: PerImage, images: Images | None) -> Pairs | None:
    """Return stimuli beside reconstructions, as many as ``logger.images`` says; None where there are none to show."""
    ranked = ranked_by(scores)
    lower = read_summary(folder.path)["metrics"].get(ranked, {}).get("better") == "lower"
    chosen = evenly_ranked(-scores[ranked] if lower else scores[ranked], cfg.logger.images)
    if not len(chosen):
        return None
    ids = scores["image_id"][chosen].astype(np.int32)
    try:
        if images is None and cfg.images_hash:
            raise UserError("they were made elsewhere, and no copy is kept")
        made, made_ids = images or read_images(scored_run(cfg, folder).path / "images.h5")[:2]
        rows = {int(image_id): row for row, image_id in enumerate(made_ids)}
        stimuli = Stimuli(stimuli_path(cfg)).images(ids)
        return pair(ids.tolist(), stimuli, [np.asarray(made[rows[int(image_id)]]) for image_id in ids])
    except (UserError, KeyError) as error:
        log.warning("the scores of %s are shown without images: %s", folder.path, error)
        return None


def _scores_to_wandb(cfg: Config, folder: RunFolder, images: Images | None) -> None:
    wandb = wandb_runs.package()
    scores = read_per_image(folder.path / "per_image.csv")
    pairs = pairs_of(cfg, folder, scores, images)
    with wandb_runs.opened(cfg, wandb_runs.of_folder(cfg, folder)) as run:
        shown = {"per_image": per_image_table(wandb, scores, pairs)}
        if pairs is not None:
            shown["images"] = wandb.Image(grid(pairs), caption=caption(pairs, scores), file_type="png")
        run.log(shown)
        run.summary.update(summary_of(folder))
    wandb_runs.mark(cfg, folder)
    print(wandb_runs.where(cfg, run))


def _scores_to_csv(cfg: Config, folder: RunFolder, images: Images | None) -> None:
    """Append one line per score to ``<paths.results>/scores-log.csv``, unless it is there already."""
    path = Path(cfg.paths.results) / CSV_NAME
    with locked(path.with_name(f".{CSV_NAME}.lock"), str(path), wait=True):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        name = plain_cell(name_of(folder.verb, cfg))
        rows = [list(FIELDS), *([folder.run_id, name, *map(str, item)] for item in means_of(folder).items())]
        known = list(csv.reader(io.StringIO(before)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(row for row in rows if row not in known)
        write_text(path, before + text.getvalue())


def _scores_to_tensorboard(cfg: Config, folder: RunFolder, images: Images | None) -> None:
    from nd.tables.training_history import tensorboard

    scores = read_per_image(folder.path / "per_image.csv")
    pairs = pairs_of(cfg, folder, scores, images)
    logger = tensorboard(cfg, folder)
    logger.log_metrics({f"scores/{name}": value for name, value in means_of(folder).items()}, step=0)
    if pairs is not None:
        logger.experiment.add_image("images", grid(pairs), 0, dataformats="HWC")
    logger.finalize("success")
    print(f"TensorBoard: {logger.log_dir}")


# ---- training


def log_training(cfg: Config, folder: RunFolder, again: bool = False) -> None:
    """Show a finished training in W&B or TensorBoard, once: its curves, where it has any, and the scores it kept.

    Args:
        cfg: of the training.
        folder: of the training.
        again: also where it has been shown before.
    """
    if cfg.logger.name not in ("wandb", "tensorboard") or not is_on(cfg) or not is_rank_zero(cfg.trainer):
        return
    if cfg.logger.name == "wandb" and wandb_runs.is_marked(cfg, folder) and not again:
        return
    from nd.tables.training_history import replay  # loads Lightning

    _shown(cfg, folder.path, lambda: replay(cfg, folder))


# ---- tables and sweeps


def log_table(cfg: Config, table: Table, files: Sequence[Path]) -> None:
    """Show a table in W&B: its rows, and the files that were written of it as an artifact."""
    if cfg.logger.name != "wandb" or not is_on(cfg):
        return
    columns = ["row", "subject", "role", "run"]
    ends = [(column.metric, end) for column in table.columns for end in ("mean", "lo", "hi")]
    rows = [
        [row.row.label, row.subject, row.row.role, row.folder.run_id]
        + [getattr(row.run.scores.get(metric), end, None) for metric, end in ends]
        for row in table.rows
    ]
    names = [metric if end == "mean" else f"{metric}_{end}" for metric, end in ends]
    about = {"simulated": table.rows[0].run.simulated, "protocol": table.rows[0].run.protocol}
    run_id = f"table-{table.spec.name}-{sha256_json([row.folder.run_id for row in table.rows])}"
    shown = wandb_runs.Shown(run_id, table.title, "table", table.spec.name, ("table",), about)
    _shown(cfg, files[0], lambda: _table_to_wandb(cfg, shown, [*columns, *names], rows, files))


def log_sweep(cfg: Config, sweep: SweepTable, files: Sequence[Path]) -> None:
    """Show the table of a sweep in W&B with its plot, over two keys a heat map, and its files as an artifact."""
    if cfg.logger.name != "wandb" or not is_on(cfg):
        return
    metrics = sorted({metric for row in sweep.rows if row.run for metric in row.run.scores})
    rows = [
        [*map(row.values.get, sweep.keys), row.entry.label, row.folder.run_id]
        + [getattr(row.score(metric), "mean", None) for metric in metrics]
        for row in sweep.rows
    ]
    about: dict[str, Any] = {"keys": sweep.keys, "part": sweep.rows[0].entry.cfg.part}
    name = f"sweep of {' and '.join(sweep.keys)}"
    shown = wandb_runs.Shown(sweep.name, name, "sweep", cfg.logger.group or sweep.name, ("sweep",), about)
    _shown(cfg, files[0], lambda: _table_to_wandb(cfg, shown, [*sweep.keys, "row", "run", *metrics], rows, files))


def _table_to_wandb(
    cfg: Config, shown: wandb_runs.Shown, columns: list[str], rows: list[list[Any]], files: Sequence[Path]
) -> None:
    wandb = wandb_runs.package()
    plots = [path for path in files if path.suffix == ".png"]
    with wandb_runs.opened(cfg, shown) as run:
        run.log({shown.kind: wandb.Table(columns=columns, data=rows)})
        if plots:
            run.log({"map": wandb.Image(str(plots[0]), caption=shown.name)})
        run.log_artifact(files_artifact(wandb, shown.id, shown.kind, files))
    print(wandb_runs.where(cfg, run))
