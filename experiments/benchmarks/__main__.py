"""Run the benchmarks, each as a process of its own, and gather what they find in one table.

    make bench                                      all of them
    make bench ARGS="--only ridge sampler"          some
    make bench ARGS=--quick                         sizes that show that each works; the figures mean nothing
    make bench ARGS=--cuda                          what is measured on a GPU, in one call
    make bench ARGS="--show results/bench.csv"      the table of an earlier run
    make bench ARGS=--quote                         puts the last run's rows and table into the docs

Writes results/bench.csv (long: one row for each thing measured, with its spread, versions and machine), what every
benchmark printed to results/bench/<name>.log, and prints a table. With --only the rows of the others stay. A benchmark
that fails is named, the others go on, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from nd.files import read_json, write_text

HERE = Path(__file__).parent
MEASURED, DOCS = HERE / "measured.csv", HERE.parents[1] / "docs" / "guide" / "benchmarks.md"
BEGIN, END = "<!-- BENCH -->", "<!-- /BENCH -->"
ON_CPU = (  # in this order
    "command_line", "sampler", "sweep", "ridge", "fastl2lir_solver", "extraction", "image_to_image", "minddiffuser",
    "image_flops", "sampling_memory", "recurrence", "evaluation", "data_feed", "nsd_prepare", "network", "scaling",
    "waiting", "demo",
)  # fmt: skip
ON_GPU = ("sampler", "sampling_memory", "image_to_image", "minddiffuser", "extraction", "network", "fastl2lir_solver")
THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS")]
FIELDS = (
    "benchmark", "case", "ours", "ours_min", "ours_max", "unit", "clock", "better", "turns", "peer", "theirs",
    "theirs_min", "theirs_max", "ratio", "ratio_min", "ratio_max", "note", "size", "device", "load", "machine",
    "versions",
)  # fmt: skip
HEAD = ("benchmark", "case", "ours", "unit", "peer", "theirs", "times better")


def main(given: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit code."""
    asked = parsed(given)
    if asked.show or asked.quote:
        return show(Path(asked.show)) if asked.show else quote(Path(asked.results) / "bench.csv")
    names = chosen(asked)
    folder = Path(asked.results)
    (folder / "bench").mkdir(parents=True, exist_ok=True)
    begun, failed = time.monotonic(), list[str]()
    rows = kept(folder / "bench.csv", names, asked)
    for k, name in enumerate(names, 1):
        print(f"[{k}/{len(names)}] {name} ...", end=" ", flush=True)
        found = one(name, asked, folder / "bench")
        print(said(found), flush=True)
        rows = in_order([*rows, *found.get("rows", [])])
        failed += [] if "rows" in found else [name]
        write(folder / "bench.csv", rows)  # what is known so far, should the next one be interrupted
    print(f"\n{table(rows)}\n")
    took = f"{len(names) - len(failed)} of {len(names)} benchmarks in {time.monotonic() - begun:.0f} s"
    print(f"{took}: {len(rows)} rows in {folder / 'bench.csv'}, what each printed in {folder / 'bench'}")
    for name in failed:
        print(f"FAILED: {name}, see {folder / 'bench' / name}.log", file=sys.stderr)
    return 1 if failed else 0


def show(path: Path) -> int:
    """Print the table of an earlier run; returns the exit code."""
    print(table(read(path)))
    return 0


def quote(path: Path) -> int:
    """Keep the rows of a run as those that the docs quote, and put their table into the docs; returns the exit code."""
    rows = read(path)
    if any(row["size"] == "quick" for row in rows):
        raise SystemExit(f"{path} holds quick sizes, whose figures mean nothing. Run `make bench` without --quick")
    write(MEASURED, rows)
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    write_text(DOCS, f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")
    print(f"wrote {MEASURED.name} and {DOCS.name}. Then: python experiments/benchmarks/scaling.py")
    return 0


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ON_CPU, help=", ".join(ON_CPU))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    parser.add_argument("--cuda", action="store_true", help="what is measured on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="", help="--cuda --device cpu rehearses --cuda")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="time on the clock, N threads of PyTorch")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds that one benchmark may take")
    parser.add_argument("--results", default="results", help="the folder that is written to")
    parser.add_argument("--show", metavar="CSV", help="print the table of an earlier run, and do nothing else")
    parser.add_argument("--quote", action="store_true", help="put the table of the last run into the docs")
    return parser.parse_args(given)


def chosen(asked: argparse.Namespace) -> list[str]:
    """Return the benchmarks that are run, in their order."""
    known = ON_GPU if asked.cuda else ON_CPU
    if asked.cuda and (others := set(asked.only or ()) - set(known)):
        raise SystemExit(
            f"--cuda: {', '.join(sorted(others))} measure nothing on a GPU. Those that do: {', '.join(known)}"
        )
    return [name for name in known if name in (asked.only or known)]


def one(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a benchmark in a process of its own; returns what it wrote, or the last words of one that failed."""
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    out.unlink(missing_ok=True)
    flags = ["--quick"] * asked.quick + ["--cuda"] * asked.cuda + ["--device", asked.device] * bool(asked.device)
    threads = str(asked.threads or 1)
    command = [sys.executable, str(HERE / "rows.py"), name, *flags, "--threads", str(asked.threads), "--out", str(out)]
    environment = (
        dict.fromkeys(THREADS, threads) | os.environ | {"PYTHONPATH": with_package(os.environ.get("PYTHONPATH", ""))}
    )
    with open(log, "w", encoding="utf-8") as handle:
        try:
            done = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, env=environment,
                                  timeout=asked.timeout, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than --timeout {asked.timeout} s"}
    if done.returncode or not out.is_file():
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"ended with {done.returncode} and said nothing"}
    return dict(read_json(out))


def with_package(path: str) -> str:
    """Return PYTHONPATH with the checkout in front, so that this ``nd`` is measured."""
    return os.pathsep.join([str(HERE.parents[1]), *([path] if path else [])])


def said(found: dict[str, Any]) -> str:
    """Say in a line how a benchmark went."""
    if "rows" in found:
        return f"{len(found['rows'])} rows in {found['seconds']:.0f} s"
    return f"FAILED: {found['failed']}"


# ---- the CSV and the table -------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the long CSV; nothing where there is no row."""
    if rows:
        with open(path, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: short(value) for key, value in row.items()} for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Read what ``write`` wrote; figures are numbers again."""
    if not path.is_file():
        raise SystemExit(f"{path} is not there: `make bench` writes it")
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def kept(path: Path, names: Sequence[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of an earlier run of the same size and device whose benchmarks are not run now."""
    size, device = "quick" if asked.quick else "full", asked.device or ("cuda" if asked.cuda else "cpu")
    rows = read(path) if path.is_file() else []
    return [row for row in rows if row["benchmark"] not in names and (row["size"], row["device"]) == (size, device)]


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the order of the benchmarks; those of one stay as they are."""
    return sorted(rows, key=lambda row: ON_CPU.index(row["benchmark"]))


def short(value: Any) -> Any:
    """Return figures with four digits: more are noise."""
    return f"{value:.4g}" if isinstance(value, float) else value


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table as Markdown: medians, with least and most over the turns in brackets."""
    rows = list(rows)
    if not rows:
        return "nothing was measured"
    body = [
        [row["benchmark"], row["case"], between(row, "ours"), unit(row), row["peer"], between(row, "theirs"),
         between(row, "ratio")]
        for row in rows
    ]  # fmt: skip
    return str(tabulate(body, HEAD, tablefmt="pipe", disable_numparse=True)) + "\n\n" + where(rows)


def between(row: dict[str, Any], name: str) -> str:
    """Return a figure with its spread, where it has one.

    >>> between({"ours": 2.0, "ours_min": 1.5, "ours_max": 2.25}, "ours")
    '2 [1.5, 2.25]'
    """
    if row[name] == "":
        return ""
    middle, low, high = (f"{float(row[key]):.3g}" for key in (name, f"{name}_min", f"{name}_max"))
    return middle if low == high else f"{middle} [{low}, {high}]"


def unit(row: dict[str, Any]) -> str:
    """Return the unit, and of which time."""
    return f"{row['unit']}, {row['clock']}" if "s" in row["unit"].split("/") + row["unit"].split() else row["unit"]


def where(rows: Sequence[dict[str, Any]]) -> str:
    """Say on what it was measured, and what may not be believed."""
    loads = [float(row["load"]) for row in rows]
    quick = "QUICK SIZES: these figures mean nothing. " if any(row["size"] == "quick" for row in rows) else ""
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    known = "; ".join(dict.fromkeys(row["versions"] for row in rows))
    return (
        f"{quick}Medians over the turns, [least, most]. {machines}; {min(loads):g} to {max(loads):g} "
        f"processes wanted a core meanwhile, the one measured among them. {known}."
    )


if __name__ == "__main__":
    sys.exit(main())
