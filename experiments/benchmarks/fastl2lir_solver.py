"""How much faster the best voxels of every column are chosen and solved for than by the fastl2lir package.

    command   python experiments/benchmarks/fastl2lir_solver.py
    time      1 minute on 2 free CPU cores
    memory    1 GB; what a fit adds is printed
    disk      next to nothing, in a temporary folder

Voxels and targets are simulated: a few targets are mixed into every voxel. Both solvers get the same z-scores. The
products of all voxels with each other and with the targets are left to every solver of these equations; the time of
these alone bounds what any could gain. The package then solves column by column on one core and we on all of them (or
on a GPU, --device cuda), so what is gained grows with the cores. On a busy machine compare with --threads 1. Best of
several runs each, in turn.

The package (0.11) assigns solutions of one column as numbers, which NumPy 2.4 refuses: they are handed to it as such.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastl2lir
import numpy as np
import torch
from data_feed import watched
from numpy.typing import NDArray
from rows import MEASURED, Asked, Row
from threadpoolctl import threadpool_limits

from nd.files import write_json
from nd.mappers.base import FoldData, Group
from nd.mappers.components import FastL2LiRSettings
from nd.mappers.fastl2lir import FastL2LiR
from nd.mappers.normal_equations import Solution, select_and_solve
from nd.mappers.ridge_solver import gram

PENALTY = 0.15
SOLVE = np.linalg.solve


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Solve with both, compare, print a table; returns the figures."""
    sizes = parsed(given)
    torch.set_num_threads(sizes.threads)
    threadpool_limits(sizes.threads, "blas")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {sizes.device}")
    rows = [timed(sizes, *shape) for shape in ((1000, 2000, 500, 100), *LARGER[: sizes.larger])]
    show_times(rows)
    memory = [added_memory(sizes, n_columns) for n_columns in (sizes.columns, 8 * sizes.columns)]
    show_memory(memory)
    figures = {"machine": platform.platform(), "sizes": vars(sizes), "times": rows, "memory": memory}
    if sizes.out:
        write_json(Path(sizes.out), figures)
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of one problem for each number of chosen voxels, and of the memory of a fit."""
    given = ["--device", asked.device, "--threads", "1", "--runs", str(asked.pick(1, 5)), "--larger", "0"]
    sizes = parsed([*given, "--columns", str(asked.pick(100, 1000))])
    threadpool_limits(1, "blas")
    problems = ((100, 200, 20, 10),) if asked.quick else ((1000, 2000, 500, 100), LARGER[0])
    rows = []
    for problem in problems:
        found = timed(sizes, *problem)
        images, voxels, columns, chosen = problem
        case = f"{images} x {voxels} -> {columns} columns, {chosen} voxels chosen"
        turns = found["turns"]
        rows.append(Row(case=case, unit="s", ours=turns["ours_s"], peer="fastl2lir", theirs=turns["package_s"],
                        clock=asked.clock, note=f"coefficients differ by {found['apart']:.0e} at most"))  # fmt: skip
    memory = added_memory(sizes, sizes.columns)
    case = f"a fit of {memory['columns']} columns of 1,000 x 2,000: memory added"
    return [*rows, Row(case=case, unit="MiB", ours=[memory["added_mib"]], clock=MEASURED)]


LARGER = ((2000, 4000, 300, 450), (2000, 4000, 60, 1500))  # images, voxels, columns, chosen voxels


def parsed(given: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="of our solver; the package has the CPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both solvers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--larger", type=int, default=len(LARGER), help="problems beside the first")
    parser.add_argument("--columns", type=int, default=4000, help="of the smaller fit whose memory is measured")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--out", default="", help="JSON file for the figures")
    return parser.parse_args(given)


# ---- time ------------------------------------------------------------------------------------------------------------


def simulated(n_images: int, n_voxels: int, n_columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Z-scored voxels that each follow a few of the targets, and the z-scored targets."""
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((n_images, n_columns))
    mixing = rng.standard_normal((n_columns, n_voxels)) * (rng.random((n_columns, n_voxels)) < 3 / n_columns)
    voxels = targets @ mixing + 2 * rng.standard_normal((n_images, n_voxels))
    z_scores = ((values - values.mean(0)) / values.std(0) for values in (voxels, targets))
    return tuple(values.astype(np.float32) for values in z_scores)  # type: ignore[return-value]


def timed(sizes: argparse.Namespace, n_images: int, n_voxels: int, n_columns: int, n_feat: int) -> dict[str, Any]:
    """Seconds of the package, of ours, and of the products alone; and how far the solutions are apart."""
    voxels, targets = simulated(n_images, n_voxels, n_columns)
    x, y = (torch.from_numpy(values).to(sizes.device) for values in (voxels, targets))
    solvers = {
        "package_s": lambda: package_fit(voxels, targets, n_feat),
        "ours_s": lambda: finished(select_and_solve(x, y, n_feat, PENALTY)),
        "products_s": lambda: finished((gram(x.T), y.double().T @ x.double())),
    }
    figures: dict[str, Any] = {"images": n_images, "voxels": n_voxels, "columns": n_columns, "n_feat": n_feat}
    results: dict[str, Any] = {}
    turns: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(sizes.runs):
        for name, solve in solvers.items():
            seconds, results[name] = seconds_of(solve, sizes.device)
            turns[name].append(seconds)
    least = {name: min(times) for name, times in turns.items()}
    return figures | least | {"turns": turns, "apart": apart(results["ours_s"], results["package_s"])}


def package_fit(voxels: NDArray[np.float32], targets: NDArray[np.float32], n_feat: int) -> NDArray[np.float64]:
    """Coefficients (voxels, columns) of the package."""
    model = fastl2lir.FastL2LiR()
    np.linalg.solve = lambda a, b: SOLVE(a, b).ravel() if b.shape[1] == 1 else SOLVE(a, b)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastl2lir.fastl2lir.tqdm = lambda steps: steps  # its progress bar costs time on a terminal
        model.fit(voxels, targets, alpha=PENALTY, n_feat=n_feat)
    np.linalg.solve = SOLVE
    return np.asarray(model.W)


def finished(result: Any) -> Any:
    """A result, once the device has it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def seconds_of(solve: Callable[[], Any], device: str = "cuda") -> tuple[float, Any]:
    """Seconds of a call, and what it returned: of this process's processors, or on the clock where a GPU works."""
    now = time.perf_counter if device == "cuda" else time.process_time
    begun = now()
    result = solve()
    return now() - begun, result


def apart(ours: Solution, package: NDArray[np.float64]) -> float:
    """Largest difference of the coefficients over the largest of them."""
    assert ours.voxels is not None, "the problems choose voxels"
    whole = np.zeros_like(package)
    np.put_along_axis(whole, ours.voxels.cpu().numpy().T, ours.weights.cpu().numpy().T, axis=0)
    return float(np.abs(whole - package).max() / np.abs(package).max())


def show_times(rows: list[dict[str, Any]]) -> None:
    """The table of the solvers."""
    print(f"{'images x voxels -> columns, chosen':40}{'package':>10}{'ours':>10}{'ratio':>8}{'products':>10}  apart")
    for row in rows:
        problem = f"{row['images']} x {row['voxels']} -> {row['columns']}, {row['n_feat']}"
        package, ours, alone = (f"{row[name]:.3f} s" for name in ("package_s", "ours_s", "products_s"))
        ratio = row["package_s"] / row["ours_s"]
        print(f"{problem:40}{package:>10}{ours:>10}{ratio:>7.1f}x{alone:>10}  {row['apart']:.0e}")


# ---- memory ----------------------------------------------------------------------------------------------------------


class Noise:
    """Targets that are made when they are read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        return np.random.default_rng(start).standard_normal((len(ids), stop - start), dtype=np.float32)


def added_memory(sizes: argparse.Namespace, n_columns: int) -> dict[str, Any]:
    """Seconds of a whole fit with validation and refit, and what it adds to memory, coefficients in a file."""
    rng = np.random.default_rng(0)
    train, val = (rng.standard_normal((n, 2000), dtype=np.float32) for n in (900, 100))
    ids = np.arange(1000, dtype=np.int32)
    data = FoldData(train, val, ids[:900], ids[900:], Noise(n_columns), (Group("all", 0, n_columns),))
    mapper = FastL2LiR(FastL2LiRSettings(n_feat=100, penalty=PENALTY), torch.device(sizes.device))
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder, watched() as risen:
        seconds, _ = seconds_of(lambda: mapper.fit(data, Path(folder)))
        coefficients = sum(mapper.state()[name].nbytes for name in ("voxels", "coefficients"))
        return {"columns": n_columns, "fit_s": seconds, "added_mib": risen(), "coefficients_mib": coefficients / 2**20}


def show_memory(rows: list[dict[str, Any]]) -> None:
    """The table of whole fits."""
    for row in rows:
        print(
            f"fit of {row['columns']} columns of 1,000 images x 2,000 voxels, 100 chosen: {row['fit_s']:.1f} s, memory"
            f" +{row['added_mib']:.0f} MiB at most (coefficients {row['coefficients_mib']:.0f} MiB)"
        )


if __name__ == "__main__":
    main()
