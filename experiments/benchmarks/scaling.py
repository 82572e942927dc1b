"""How cost grows with images, repeats, steps, guidance, voxels and targets: this package's model of it, and measured.

    command   make bench ARGS="--only scaling"                    measures on one CPU core, 2 minutes
              python experiments/benchmarks/scaling.py            writes docs/guide/scaling.md from measured.csv

Sampling has a model of its cost (`nd.generate.components.sample_cost`, by which `nd sweep` says what runs will take): a
figure is how many times the base job's time a changed job takes, beside what the model says. Ridge has none; its row
says how time grows. Networks are those of Scenes, inputs are random: only sizes matter here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ridge import nd_fit, parsed, world
from rows import CPU_TIME, Asked, Row, in_turns
from sweep import inputs

from nd.backbone.loading import load_backbone
from nd.config import Config
from nd.config.application import compose
from nd.files import write_text
from nd.generate.components import sample_cost
from nd.generate.plan import Plan
from nd.generate.sampler import GuidedSampler
from nd.tables.specs import load_spec

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "guide" / "scaling.md"
RIDGE = {"images": 400, "voxels": 800, "columns": 2000}
SUSTAINED = {"one H200": 100.0, "eight H200": 800.0, "a card of 24 GB": 40.0}  # TFLOP/s, assumed: none was at hand
RECKONED_AT = 100.0  # TFLOP/s, at which the specs and docs/guide/tables.md say their hours
UNSEEN = 1.15  # on top of memory that was counted, as in nd/generate/plan.py


def measure(asked: Asked) -> list[Row]:
    """Return the rows of sampling beside its model, and of ridge."""
    return [*sampling(asked), *ridge(asked)]


# ---- sampling --------------------------------------------------------------------------------------------------------


def jobs(cfg: Config, n: int) -> Iterator[tuple[str, Config, int]]:
    """Yield a base job and others that differ in one thing: name, configuration, images."""
    method, guidance = cfg.method, cfg.guidance
    yield "base", cfg, n
    yield "twice the images", cfg, 2 * n
    yield "twice the repeats", replace(cfg, method=replace(method, repeats=2 * method.repeats)), n
    yield "twice the steps", replace(cfg, method=replace(method, steps=2 * method.steps)), n
    yield "twice the guided steps", replace(cfg, guidance=replace(guidance, eta=2 * guidance.eta)), n
    yield "no guidance", replace(cfg, guidance=replace(guidance, kappa=0.0)), n


def sampling(asked: Asked) -> list[Row]:
    """Return how many times the base job's time every other one takes, beside the model."""
    given = ["experiment=scenes", "method.repeats=1", "guidance.eta=0.2", f"method.steps={asked.pick(8, 20)}"]
    cfg = compose(given)
    backbone, found = load_backbone(cfg.backbone, "cpu"), list(jobs(cfg, asked.pick(1, 2)))
    works = [work(backbone, job, n) for _, job, n in found]
    times = in_turns(asked.pick(1, 3), asked.seconds, *works, warm=False)
    costs = [n * job.method.n_repeats * sample_cost(job.method, job.guidance) for _, job, n in found]
    return [
        Row(case=f"sampling: {name}", unit="times the base job", ours=multiples(own, times[0]),
            peer="cost model", theirs=[cost / costs[0]])
        for (name, *_), own, cost in list(zip(found, times, costs, strict=True))[1:]
    ]  # fmt: skip


def work(backbone: Any, cfg: Config, n: int) -> Any:
    """Return what samples n images of a configuration."""
    given, sampler = inputs(backbone, cfg, n), GuidedSampler(backbone, cfg)
    n_samples = n * cfg.method.n_repeats
    sampler.use(Plan(guided=n_samples, plain=n_samples, decode=n_samples))
    return lambda: sampler.sample(*given)


# ---- ridge -----------------------------------------------------------------------------------------------------------


def ridge(asked: Asked) -> list[Row]:
    """Return how many times the base fit's time one of twice the images, voxels or columns takes."""
    torch.set_num_threads(1)
    sizes = {name: value // asked.pick(10, 1) for name, value in RIDGE.items()}
    grown = [sizes, *({**sizes, name: 2 * value} for name, value in sizes.items())]
    works = [fit(**each) for each in grown]
    base, *others = in_turns(asked.pick(1, 3), asked.seconds, *works, warm=not asked.quick)
    case = "ridge, {images} x {voxels} -> {columns}".format(**sizes)
    rows = [Row(case=case, unit="s", ours=base, clock=CPU_TIME)]
    return rows + [
        Row(case=f"{case}: twice the {name}", unit="times the base job", ours=multiples(own, base))
        for name, own in zip(sizes, others, strict=True)
    ]  # fmt: skip


def multiples(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return times as multiples of the base job's, turn by turn."""
    return [a / b for a, b in zip(times, base, strict=True)]


def fit(images: int, voxels: int, columns: int) -> Any:
    """Return what fits ridge at some sizes, a penalty per column."""
    given = ["--images", str(images), "--voxels", str(voxels), "--columns", str(columns)]
    made = world(parsed(given))
    return lambda: nd_fit(made, per_column=True)


# ---- the page --------------------------------------------------------------------------------------------------------

TABLES = ("main", "ablation_guidance", "ablation_components", "consistency", "one_hour", "minddiffuser_table2",
          "brain_diffuser_ablation", "retrieval")  # fmt: skip
COST = re.compile(r"#\s+cost\s+([\d.]+) GPU hours( a subject)?")


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page made of measured rows and of what the specs reckon."""
    own = [row for row in rows if row["benchmark"] == "scaling"]
    text = (HERE / "scaling.md").read_text(encoding="utf-8")
    parts = {
        "SAMPLING": sampling_table(own),
        "RIDGE": ridge_table(own),
        "TABLES": hours_table(),
        "MEMORY": memory(rows),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


def sampling_table(rows: list[dict[str, Any]]) -> str:
    """Return the model beside the measurement."""
    lines = ["| sampling | the model | measured |", "| --- | ---: | ---: |"]
    for row in rows:
        if row["peer"]:
            name = row["case"].partition(": ")[2]
            lines.append(f"| {name} | {float(row['theirs']):.2f} | {measured(row)} |")
    return "\n".join(lines)


def ridge_table(rows: list[dict[str, Any]]) -> str:
    """Return how ridge's time grows."""
    lines = ["| ridge | measured |", "| --- | ---: |"]
    for row in rows:
        if row["case"].startswith("ridge"):
            unit = " s of one core" if row["unit"] == "s" else ""
            lines.append(f"| {row['case'].partition(': ')[2] or row['case']} | {measured(row)}{unit} |")
    return "\n".join(lines)


def measured(row: dict[str, Any]) -> str:
    """Return a median with its spread."""
    return "{ours:.2f} [{ours_min:.2f}, {ours_max:.2f}]".format(
        **{k: float(row[k]) for k in ("ours", "ours_min", "ours_max")}
    )


def hours_table() -> str:
    """Return the hours of every table on NSD, and of all of them, on each kind of machine."""
    lines = [f"| table | {' | '.join(SUSTAINED)} |", f"| --- |{' ---: |' * len(SUSTAINED)}"]
    hours = {name: hours_of(name) for name in TABLES}
    for name, one in [*hours.items(), ("all of them", sum(hours.values()))]:
        cells = (f"{one * RECKONED_AT / rate:,.0f} h" for rate in SUSTAINED.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def hours_of(name: str) -> float:
    """Return the GPU hours that the head of a spec reckons, for all of its subjects."""
    found = COST.search((HERE.parent / f"{name}.yaml").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"experiments/{name}.yaml says no 'cost ... GPU hours' in its head")
    return float(found[1]) * (max(1, len(load_spec(name).subjects)) if found[2] else 1)


def memory(rows: list[dict[str, Any]]) -> str:
    """Return how many guided samples a card of 24 GB holds at once, by what was counted; a link where it was not."""
    sizes = {row["case"]: float(row["ours"]) for row in rows if row["benchmark"] == "sampling_memory"}
    if not sizes:
        return "as the table in [Sampling](sampling.md) says"
    weights, each = sizes["weights, bfloat16"], sizes["a guided sample at 512 px, kept, bfloat16"]
    n = int((24 - weights) / UNSEEN / each)
    return f"{n} guided samples at once in bfloat16 (weights {weights:.1f} GB, {each:.1f} GB each, 15 % to spare)"


def main(given: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default=str(HERE / "measured.csv"), help="what make bench wrote")
    asked = parser.parse_args(given)
    write_text(PAGE, page(read_rows(Path(asked.csv))))
    print(f"wrote {PAGE}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV."""
    import csv

    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


if __name__ == "__main__":
    sys.exit(main())
