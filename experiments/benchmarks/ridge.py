"""Ridge regression with its penalties chosen by cross-validation, against himalaya and scikit-learn; and its memory.

    command   python experiments/benchmarks/ridge.py
    time      4 minutes on 2 CPU cores
    figures   2,000 x 4,000 -> 20,000: ours 15 to 17 s; himalaya's KernelRidgeCV 18 to 21 s (torch), 28 to 32 s (numpy),
              its RidgeCV 40 to 51 s (run with --few 20000); scikit-learn 191 to 299 s; predictions at 88% of the rate
              of plain products
    command   python experiments/benchmarks/ridge.py --part memory --threads 1
    time      12 minutes on one CPU core
    figures   8,859 x 15,724 -> 91,168: fit 653 s and 3.8 GB in all, voxels (0.6 GB) included, targets mapped
    disk      9 GB in a temporary folder (targets, coefficients, checkpoint)

Data are simulated: voxels are a noisy linear image of a few hundred latent variables, of which targets are another with
more or less noise each, so that the penalties that suit them differ. The images of each fold are z-scored by
themselves: then whatever is fitted on is z-scored, as this package does and himalaya, which scales nothing, needs.

himalaya's KernelRidgeCV ends with dual coefficients; this package's fit ends with weights, and has by then also scored
the held-out predictions. scikit-learn's time is that of a few penalties times their number: its work is the same for
each. The contenders take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_feed import forget, resident_mib, watched, write_store
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from numpy.typing import NDArray
from rows import MEASURED, Asked, Row, in_turns
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV

from nd.files import write_json
from nd.mappers.arrays import Scratch, scratch_folder
from nd.mappers.base import FoldData, Group
from nd.mappers.checkpoint import Origin, checkpoint_path, load, save
from nd.mappers.components import RidgeSettings
from nd.mappers.crossvalidation import Images, cross_validation
from nd.mappers.ridge import Ridge
from nd.targets.store import TargetStore

ALPHAS = RidgeSettings().alphas
OURS, OURS_GLOBAL = "nd, a penalty per column", "nd, one penalty"
THEIRS, SKLEARN = "himalaya KernelRidgeCV, numpy", "scikit-learn GridSearchCV(Ridge)"
N_LATENT = 400
MIB = 1 << 20


@dataclass(frozen=True)
class World:
    """Simulated voxels (N, V) and targets (N, P) float32, which image is in which fold, and new voxels."""

    voxels: NDArray[np.float32]
    targets: NDArray[np.float32]
    fold: NDArray[np.intp]
    new_voxels: NDArray[np.float32]

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """As `nd.mappers.base.Columns` has it."""
        return self.targets[ids, start:stop]

    @property
    def size(self) -> int:
        """P."""
        return self.targets.shape[1]

    def splits(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Images fitted on and held out, fold by fold."""
        return [(np.flatnonzero(self.fold != k), np.flatnonzero(self.fold == k)) for k in range(self.fold.max() + 1)]

    def data(self) -> FoldData:
        """All images, the last of them as validation images."""
        ids = np.arange(len(self.voxels), dtype=np.int32)
        n_train = len(ids) * 9 // 10
        parts = (*np.split(self.voxels, [n_train]), *np.split(ids, [n_train]))
        return FoldData(*parts, self, (Group("all", 0, self.size),))


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table; returns the figures."""
    sizes = parsed(given)
    torch.set_num_threads(sizes.threads)
    print(f"{platform.processor() or platform.machine()}, {sizes.threads} threads")
    figures = compare(sizes) if sizes.part == "speed" else memory(sizes)
    if sizes.out:
        write_json(Path(sizes.out), {"sizes": vars(sizes), "machine": platform.platform(), **figures})
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of a fit against every other way to the same, of its predictions' rate, and of its memory."""
    small = ["--images", "100", "--voxels", "60", "--columns", "50", "--few", "50", "--nsd", "1000", "60", "50"]
    sizes = parsed([*(small if asked.quick else ["--columns", "5000", "--nsd", "2000", "4000", "20000"])])
    made, turns = world(sizes), asked.pick(1, 3)
    case = f"ridge, {sizes.images} x {sizes.voxels} -> {sizes.columns}, {len(ALPHAS)} penalties, {sizes.folds} folds"
    ours = partial(nd_fit, made, per_column=True)
    rows = [turned(asked, turns, case, ours, name, partial(himalaya_fit, made, kind, "numpy"))
            for name, kind in (("himalaya KernelRidgeCV", KernelRidgeCV), ("himalaya RidgeCV", RidgeCV))]  # fmt: skip
    theirs = partial(sklearn_fit, made, ALPHAS[len(ALPHAS) // 2 :][:1])
    row = turned(asked, 1, f"{case}, one for all columns", partial(nd_fit, made, per_column=False), SKLEARN, theirs)
    factor = (len(ALPHAS) * sizes.folds + 1) / (sizes.folds + 1)  # its work is the same for each penalty
    rows.append(
        replace(row, theirs=[factor * s for s in row.theirs], note="timed with one penalty, times their number")
    )
    predictions, plain = rates(made, sizes)
    products = {"peer": "torch.mm of their sizes", "theirs": [plain.cpu]}
    rows.append(Row(case=f"{case}: held-out predictions", unit="s", ours=[predictions.cpu], **products))
    found = memory(sizes)
    size = " x ".join(str(n) for n in sizes.nsd[:2]) + f" -> {sizes.nsd[2]}"
    return [*rows, Row(case=f"ridge, {size}, targets mapped: memory", unit="MiB", ours=[found["fit"]["rss_anon_mib"]],
                       peer="voxels and targets", theirs=[found["inputs_mib"]], clock=MEASURED)]  # fmt: skip


def turned(asked: Asked, turns: int, case: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any]) -> Row:
    """Return the row of two ways that take turns."""
    mine, others = in_turns(turns, asked.seconds, ours, theirs, warm=False)
    print(f"{peer}: {others}, ours {mine}", flush=True)
    return Row(case=case, unit="s", ours=mine, peer=peer, theirs=others, clock=asked.clock)


def parsed(given: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("speed", "memory"), default="speed")
    parser.add_argument("--images", type=int, default=2000, help="a multiple of --folds")
    parser.add_argument("--voxels", type=int, default=4000)
    parser.add_argument("--columns", type=int, default=20_000)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2, help="how often most are timed; the least counts")
    parser.add_argument("--few", type=int, default=200, help="columns for himalaya's RidgeCV, which takes longest")
    parser.add_argument("--grid", type=int, default=1, help="penalties that scikit-learn is timed with")
    parser.add_argument("--nsd", type=int, nargs=3, default=(8859, 15_724, 91_168), help="images, voxels, columns")
    parser.add_argument("--nsd-folds", type=int, default=0, help="0: 900 validation images")
    parser.add_argument("--threads", type=int, default=2, help="set OMP_NUM_THREADS likewise")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    return parser.parse_args(given)


# ---- speed ---------------------------------------------------------------------------------------------------------


def world(sizes: argparse.Namespace, n_new: int = 200) -> World:
    """Latent variables with a power-law spectrum, voxels and targets that follow them."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    latents = normal(sizes.images + n_new, N_LATENT) * np.arange(1, N_LATENT + 1, dtype=np.float32) ** -0.5
    signal, clean = latents @ normal(N_LATENT, sizes.voxels), latents @ normal(N_LATENT, sizes.columns)
    voxels = signal / signal.std() + normal(*signal.shape)
    strength = np.exp(rng.uniform(np.log(0.02), np.log(20), sizes.columns)).astype(np.float32)
    targets = (clean / clean.std(0) * strength + normal(*clean.shape)) / (strength + 1)
    fold = np.arange(sizes.images) % sizes.folds
    for k in range(sizes.folds):
        part = voxels[: sizes.images][fold == k].astype(np.float64)
        voxels[: sizes.images][fold == k] = (part - part.mean(0)) / part.std(0)
    return World(voxels[: sizes.images], targets[: sizes.images], fold, voxels[sizes.images :])


def compare(sizes: argparse.Namespace) -> dict[str, Any]:
    """Times, agreement of the choices, rate of the products."""
    made = world(sizes)
    few = World(made.voxels, made.targets[:, : sizes.few], made.fold, made.new_voxels)
    grid = ALPHAS[len(ALPHAS) // 2 :][: sizes.grid]
    contenders = {
        OURS: partial(nd_fit, made, per_column=True),
        THEIRS: partial(himalaya_fit, made, KernelRidgeCV, "numpy"),
        "himalaya KernelRidgeCV, torch": partial(himalaya_fit, made, KernelRidgeCV, "torch"),
        OURS_GLOBAL: partial(nd_fit, made, per_column=False),
    }
    once = {
        f"himalaya RidgeCV, numpy, only {sizes.few} columns": partial(himalaya_fit, few, RidgeCV, "numpy"),
        f"himalaya RidgeCV, torch, only {sizes.few} columns": partial(himalaya_fit, few, RidgeCV, "torch"),
        SKLEARN: partial(sklearn_fit, made, grid),
    }
    found: dict[str, Any] = {}
    times = {name: timed(found, name, fit) for name, fit in (contenders | once).items()}
    for _ in range(1, sizes.turns):
        times |= {name: times[name].least(timed(found, name, fit)) for name, fit in contenders.items()}
    times[SKLEARN] = times[SKLEARN].times((len(ALPHAS) * sizes.folds + 1) / (len(grid) * sizes.folds + 1))
    predictions, plain = rates(made, sizes)
    figures = {**times, "predictions": predictions, "plain product": plain}
    agreed = agreement(found, made)
    show(figures, agreed)
    return {name: vars(took) for name, took in figures.items()} | agreed


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and seconds that processors were at work for this process."""

    wall: float
    cpu: float

    def least(self, other: Took) -> Took:
        """The smaller of each."""
        return Took(min(self.wall, other.wall), min(self.cpu, other.cpu))

    def plus(self, other: Took) -> Took:
        """The sum of each."""
        return Took(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> Took:
        """A multiple of each."""
        return Took(self.wall * factor, self.cpu * factor)


def clocked(work: Callable[..., Any], *given: Any) -> tuple[Took, Any]:
    """What some work took, and gave."""
    begun = time.perf_counter(), time.process_time()
    result = work(*given)
    return Took(time.perf_counter() - begun[0], time.process_time() - begun[1]), result


def timed(found: dict[str, Any], name: str, fit: Callable[[], Any]) -> Took:
    """What a fit took, whose result is kept."""
    took, found[name] = clocked(fit)
    print(f"  {name}: {took.wall:.1f} s by the clock, {took.cpu:.1f} s of processors", flush=True)
    return took


def nd_fit(made: World, per_column: bool) -> Ridge:
    """This package: without intercept as himalaya, with one as scikit-learn has by default."""
    config = RidgeSettings(folds=int(made.fold.max()) + 1, alpha_per="column" if per_column else "group")
    mapper = Ridge(RidgeSettings(**{**vars(config), "intercept": not per_column}))
    mapper.fit(made.data())
    return mapper


def himalaya_fit(made: World, kind: type[Any], backend: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Chosen penalties, and predictions of the new images."""
    arrays = set_backend(backend)
    voxels, targets, new, alphas = (
        arrays.asarray(np.asarray(values, np.float32))
        for values in (made.voxels, made.targets, made.new_voxels, ALPHAS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(alphas=alphas, cv=made.splits()).fit(voxels, targets)
    return arrays.to_numpy(model.best_alphas_), arrays.to_numpy(model.predict(new))


def sklearn_fit(made: World, alphas: list[float]) -> Any:
    """The search over some penalties, refitted."""
    search = GridSearchCV(SklearnRidge(), {"alpha": alphas}, cv=made.splits(), scoring="neg_mean_squared_error")
    return search.fit(made.voxels, made.targets)


def rates(made: World, sizes: argparse.Namespace) -> tuple[Took, Took]:
    """What held-out predictions take, all that belongs to them included, and what plain products of their sizes take.

    They take turns, block by block.
    """
    config = RidgeSettings(folds=sizes.folds, alpha_per="column", intercept=False)
    data = made.data()
    images = Images(np.arange(sizes.images, dtype=np.int32), made.voxels.copy())
    held_out = cross_validation(config, data, images, torch.device("cpu"), Scratch())
    left = [trial.hat.left.flatten(0, 1) for trial in held_out.trials]
    blocks = held_out.blocks(data.groups[0])
    predictions, plain, width = Took(0, 0), Took(0, 0), 0
    while width < made.size:
        took, held = clocked(next, blocks)
        predictions = predictions.plus(took).plus(clocked(held.squared_error)[0])
        n_columns = held.truths[0].shape[1]
        width += n_columns
        for one in left:
            right, out = torch.randn(one.shape[1], n_columns), torch.empty(len(one), n_columns)
            plain = plain.plus(clocked(partial(torch.mm, one, right, out=out))[0])
    return predictions, plain


def agreement(found: dict[str, Any], made: World) -> dict[str, Any]:
    """How alike the choices and the predictions of new images are."""
    mine, (alphas, predicted) = found[OURS], found[THEIRS]
    same = np.isclose(mine.state()["alpha"], alphas, rtol=1e-3)
    difference = np.abs(mine.predict(made.new_voxels) - predicted)[:, same].max() / np.abs(predicted).max()
    counts = mine.details()["groups"][0]["columns_per_alpha"]
    return {"same choice": float(same.mean()), "difference": float(difference), "columns per alpha": counts}


def show(figures: dict[str, Took], agreed: dict[str, Any]) -> None:
    """The table."""
    print(f"{'':64}{'clock':>8}{'processors':>12}")
    for name, took in figures.items():
        mine = figures[OURS_GLOBAL if name == SKLEARN else OURS]
        compared = "himalaya" in name or name == SKLEARN
        note = f"{took.wall / mine.wall:.2f} and {took.cpu / mine.cpu:.2f} times ours" if compared else ""
        print(f"{name:64}{took.wall:>6.1f} s{took.cpu:>10.1f} s  {note}")
    ours, plain = figures["predictions"], figures["plain product"]
    print(
        f"rate of predictions: {plain.wall / ours.wall:.0%} and {plain.cpu / ours.cpu:.0%} of plain products (torch.mm)"
    )
    print(f"columns per penalty: {agreed['columns per alpha']}")
    print(
        f"same penalty as himalaya for {agreed['same choice']:.2%} of the columns; predictions of new images differ by"
        f" {agreed['difference']:.1e} of the largest at most"
    )


# ---- memory --------------------------------------------------------------------------------------------------------


def memory(sizes: argparse.Namespace) -> dict[str, Any]:
    """Time, and memory of the process itself, of a fit at the size of NSD, of saving, loading and predicting."""
    n_images, n_voxels, n_columns = sizes.nsd
    config = RidgeSettings(folds=sizes.nsd_folds)
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        path = write_store(Path(folder), "noise", (n_columns,), n_images)
        forget(path)
        voxels = np.random.default_rng(0).standard_normal((n_images, n_voxels), dtype=np.float32)
        ids = np.arange(n_images, dtype=np.int32)
        parts = [part for values in (voxels, ids) for part in np.split(values, [n_images - 900])]
        data = FoldData(*parts, TargetStore(path, allowed_ids=ids), (Group("all", 0, n_columns),))
        inputs = (voxels.nbytes + path.stat().st_size) / MIB
        print(
            f"voxels and targets {inputs:.0f} MiB; in memory so far {resident_mib('RssAnon'):.0f} MiB, voxels included"
        )
        figures = {"inputs_mib": inputs, **steps(config, data, Path(folder), voxels[:982])}
    print(f"VmHWM {resident_mib('VmHWM'):.0f} MiB, with pages of mapped files")
    return figures


def steps(config: RidgeSettings, data: FoldData, folder: Path, new_voxels: NDArray[np.float32]) -> dict[str, Any]:
    """Seconds of each step, and the most that RssAnon rose in it."""
    origin = Origin(subject="s", roi="r", n_voxels=new_voxels.shape[1], mask_hash="", split_hash="", fold=0,
                    target="noise", target_fingerprint="")  # fmt: skip
    path, loaded = checkpoint_path(folder, 0), []
    with scratch_folder(folder) as scratch:
        mapper = Ridge(config)
        figures = {"fit": measured("fit", partial(mapper.fit, data, scratch))}
        figures["save"] = measured("save", partial(save, path, mapper, config, origin, (data.targets.size,)))
    del mapper
    figures["load"] = measured("load", lambda: loaded.append(load(path, origin, "nd train")))
    figures["predict"] = measured("predict", lambda: loaded.append(loaded[0].predict(new_voxels)))
    print(f"checkpoint {path.stat().st_size / MIB:.0f} MiB")
    return figures


def measured(name: str, step: Callable[[], Any]) -> dict[str, float]:
    """Time and memory of one step, printed."""
    with watched() as risen:
        begun, before = time.perf_counter(), resident_mib("RssAnon")
        step()
        seconds, rise = time.perf_counter() - begun, risen()
    print(f"{name:12}{seconds:>9.1f} s   RssAnon at most {before + rise:.0f} MiB, a rise of {rise:.0f} MiB", flush=True)
    return {"seconds": seconds, "rss_anon_mib": before + rise, "rise_mib": rise}


if __name__ == "__main__":
    main()
