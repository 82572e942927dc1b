"""What runs are likely to take, by what finished runs of their kind have taken on this machine.

Runs are of one kind where they differ in numbers alone; of those, the ones that change what sampling costs are allowed
for (steps, guided steps, repeats). Of a kind that was never run here nothing is said.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from nd.config import Config
from nd.config.check import build
from nd.config.known import FILLED_IN
from nd.generate.components import sample_cost
from nd.runs.catalogue import KnownRun
from nd.runs.chain import open_steps
from nd.sweeps.listing import SweepRun
from nd.sweeps.work import duration

Kind = tuple[Any, ...]


def kind_of(verb: str, cfg: Config) -> Kind:
    """Return what runs must share for the time of one to tell of the other's."""
    facts: dict[str, Kind] = {
        "train": (cfg.target.name, cfg.mapper.name, cfg.training.stage, cfg.subject.sessions),
        "predict": (cfg.mapper.name, *sorted(cfg.method.targets)),
        "reconstruct": (cfg.method.generator, cfg.debug.limit_images),
        "evaluate": (cfg.protocol.name, *cfg.protocol.measures, *cfg.protocol.brain, cfg.debug.limit_images),
    }
    return (verb, cfg.data.name, cfg.debug.name, cfg.part, cfg.backbone.name, *facts[verb])


def units(verb: str, cfg: Config) -> float:
    """Return how much work a run is beside others of its kind."""
    return cfg.method.n_repeats * sample_cost(cfg.method, cfg.guidance) if verb == "reconstruct" else 1.0


def rates(known: Iterable[KnownRun]) -> dict[Kind, float]:
    """Return the seconds for a unit of work, by kind: the median of the finished runs of this machine among some."""
    found: dict[Kind, list[float]] = {}
    for run in known:
        if run.state == "done" and run.manifest.get("device", {}).get("host") == socket.gethostname():
            cfg, _ = build({key: value for key, value in run.config.items() if key not in FILLED_IN})
            shared = run.manifest.get("execution", {}).get("together", 1)
            seconds = run.manifest["seconds"] / shared / units(run.verb, cfg)
            found.setdefault(kind_of(run.verb, cfg), []).append(seconds)
    return {kind: median(values) for kind, values in found.items()}


def costs(runs: Sequence[SweepRun], known: Iterable[KnownRun]) -> dict[str, float | None]:
    """Return the seconds that each run is likely to take, by its id; None where that is not known.

    What runs share is counted for the first of them.
    """
    measured, counted, found = rates(known), set[str](), dict[str, float | None]()
    for run in runs:
        open_ = open_steps(run.steps)
        own = [step for step in open_ if step.key not in counted]
        counted |= {step.key for step in own}
        rated = [(measured.get(kind_of(step.verb, step.cfg)), units(step.verb, step.cfg)) for step in own]
        known_rates = [rate * n for rate, n in rated if rate is not None]
        found[run.id] = sum(known_rates) if len(known_rates) == len(own) else None
    return found


def cost_texts(found: dict[str, float | None]) -> dict[str, str]:
    """Return costs in words, by run id.

    >>> cost_texts({"a": 90.0, "b": None, "c": 0.0})
    {'a': '1.5 min', 'b': 'unknown', 'c': ''}
    """
    return {name: "unknown" if cost is None else duration(cost) if cost else "" for name, cost in found.items()}


def total_cost(found: dict[str, float | None]) -> str:
    """Say what all runs are likely to take together."""
    known = [cost for cost in found.values() if cost is not None]
    unknown = len(found) - len(known)
    text = f"about {duration(sum(known))} on this machine, by finished runs of the same kinds" if sum(known) else ""
    more = f"of {unknown} runs none of their kind has finished here, so their cost is not known" if unknown else ""
    return "; ".join(part for part in (text, more) if part) or "nothing to do"
