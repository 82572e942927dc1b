"""Whether the scores of one column come from networks with the same weights.

The protocol's hash covers the weights whose publisher states their digits. Of others it knows the name alone, and what
was found is recorded with the scores: two rows of one protocol can still have been judged by different networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nd.config import ProtocolConfig
from nd.errors import UserError
from nd.metrics.measures import BRAIN, MEASURES, METRICS, OWN_NETWORK, ROW, encoded_layers, measures_of
from nd.tables.scores import RunScores

NamedRun = tuple[str, RunScores]  # with the label of its row
OWN = {*measures_of(ProtocolConfig()), *(BRAIN + layer for layer in encoded_layers(ProtocolConfig()))}
OWN_PREFIX = "consistency_feature"  # and its variance


def networks_of(metric: str, networks: Iterable[str]) -> set[str]:
    """Those of ``networks`` that decide a column; all of them for a column that is not of ``METRICS``."""
    if metric not in METRICS:
        return set(networks)
    name = metric.removesuffix(ROW)
    if name in OWN or name.startswith(OWN_PREFIX):
        return {OWN_NETWORK} & set(networks)
    measure = MEASURES.get(name.removeprefix(BRAIN))
    return {measure.view.network} & set(networks) if measure else set()


def refuse_other_weights(metrics: Sequence[str], runs: Sequence[NamedRun]) -> None:
    """Raise UserError where rows with a score in one of the columns were judged by one network with other weights.

    Args:
        metrics: the columns of a table.
        runs: its rows; those of old scores, which do not say which weights there were, are accepted.
    """
    networks = sorted({network for _, run in runs for network in run.weights})
    problems = [problem for network in networks if (problem := _problem(network, metrics, runs))]
    if problems:
        raise UserError(
            "these rows were judged by the same network with other weights and cannot stand in one column:\n"
            + "\n".join(problems)
            + "\nScore them with one set of weights (protocol.weights=<folder>): remove the folders of those that had "
            "others and run `nd evaluate` again. Or give them tables of their own."
        )


def _problem(network: str, metrics: Sequence[str], runs: Sequence[NamedRun]) -> str:
    """The columns in which weights of a network differ, and every row there with its own; empty where there are none.

    A row stands in a column if it has a score there and says which weights judged it.
    """
    known = [(label, run) for label, run in runs if network in run.weights]
    standing = {
        metric: [(label, run) for label, run in known if metric in run.scores]
        for metric in metrics
        if networks_of(metric, [network])
    }
    mixed = {m: rows for m, rows in standing.items() if len({run.weights[network] for _, run in rows}) > 1}
    if not mixed:
        return ""
    there = [(label, run) for label, run in known if run.scores.keys() & mixed.keys()]
    rows = (f"  - {label}: {network} {run.weights[network]}, in {run.path}" for label, run in there)
    return "\n".join([f"{network}, columns {', '.join(mixed)}:", *rows])
