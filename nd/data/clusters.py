"""The cluster of every image, for splits that hold whole clusters out of training: a file of the prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nd.errors import UserError
from nd.files import read_json, write_json

CLUSTERS = "clusters.json"


def clusters_path(folder: Path) -> Path:
    """Where a prepared folder holds the clusters of its images."""
    return folder / CLUSTERS


def write_clusters(path: Path, clusters: Sequence[str]) -> None:
    """Write the cluster of every image 0 .. N-1."""
    write_json(path, list(clusters))


def read_clusters(path: Path) -> list[str]:
    """Read the cluster of every image 0 .. N-1. Raises UserError for a file that is missing or no list of names."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, and a split by clusters needs it. Run `nd prepare` with this data.split."
        )
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} is no list of names, one for each image. Remove it and run `nd prepare` again.")
    return found
