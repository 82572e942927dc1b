"""What ``scores.json`` of an evaluate run holds, declared once, and its reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from nd.files import read_json
from nd.runs.outputs import output_of

AGAIN = "Remove its folder and run `nd evaluate` again."


class ScoreFacts(TypedDict):
    """One metric in ``scores.json``."""

    mean: float
    lo: float
    hi: float
    chance: NotRequired[float | None]
    better: NotRequired[str]


class ProtocolFacts(TypedDict):
    """The protocol in ``scores.json``."""

    name: str
    version: int | str
    settings: NotRequired[dict[str, Any]]
    hash: NotRequired[str]


class RetrievalFacts(TypedDict):
    """One direction of retrieval by decoded targets in ``scores.json``."""

    mean: float
    lo: float
    hi: float
    chance: float
    n_images: int
    n_candidates: int
    n_loops: int
    all_images: bool


class BrainFacts(TypedDict):
    """Brain correlation in one ROI in ``scores.json``."""

    mean: float
    lo: float
    hi: float
    seen: float
    ceiling: float | None
    n_voxels: int


class DiversityFacts(TypedDict):
    """How varied one decoded target is, in ``scores.json``."""

    predicted: float
    true: float
    n: int


class DecodedFacts(TypedDict):
    """What was decoded, in ``scores.json``."""

    run: str
    diversity: dict[str, DiversityFacts]


class VoxelFacts(TypedDict):
    """What could be explained of the voxels, in ``scores.json``."""

    median: float
    high: float
    n_voxels: int
    n_trials: float


class SelectionFacts(TypedDict):
    """Which images were scored, in ``scores.json``."""

    n: int
    of: int
    at_least: float


class Summary(TypedDict):
    """What ``scores.json`` of an evaluate run holds; what earlier versions did not write is not required."""

    metrics: dict[str, ScoreFacts]
    protocol: ProtocolFacts
    test_set: str
    n_images: int
    n_repeats: int
    oracle: bool
    simulated: bool
    control: str
    transductive: NotRequired[bool]
    aggregation: NotRequired[str]
    weights: NotRequired[dict[str, str]]
    retrieval: NotRequired[dict[str, RetrievalFacts]]
    brain: NotRequired[dict[str, dict[str, BrainFacts]]]
    decoded: NotRequired[DecodedFacts]
    same_images: NotRequired[dict[str, str]]
    voxels: NotRequired[VoxelFacts | None]
    selection: NotRequired[SelectionFacts]


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what ``scores.json`` of an evaluate run holds.

    Raises:
        UserError: missing, of another kind, or changed since it was written.
    """
    found: dict[str, Any] = read_json(output_of(folder, "scores.json", AGAIN), Summary, AGAIN)
    return found
