"""The clusters of images decide the split, so they are an input of whatever depends on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers_results import config

from nd.config import Config
from nd.data.prepared import data_folder
from nd.data.splits import CLUSTERS, write_clusters
from nd.errors import UserError
from nd.runs.folder import RunFolder
from nd.runs.inputs import input_files

VERBS = ("train", "predict", "reconstruct", "evaluate")


@pytest.fixture
def clustered(tmp_path: Path) -> Config:
    """A configuration whose prepared folder holds the clusters of three images, and nothing else."""
    cfg = config(tmp_path)
    cfg.data.split = "scenes-clusters"
    data_folder(cfg).mkdir(parents=True)
    write_clusters(data_folder(cfg) / CLUSTERS, ["sky", "sea", "sky"])
    return cfg


def finish(cfg: Config, verb: str) -> None:
    with RunFolder.open(cfg, verb).writing(cfg):
        pass


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_is_refused_when_the_clusters_have_changed(verb: str, clustered: Config) -> None:
    path = data_folder(clustered) / CLUSTERS
    finish(clustered, verb)
    os.utime(path, ns=(1, 1))  # the same content of another time
    assert RunFolder.open(clustered, verb).is_done()
    write_clusters(path, ["sky", "sky", "sea"])  # as long as the former
    message = (
        rf"(?s)was made from other inputs.*clusters\.json has other contents than the file this run read.*nd {verb}"
    )
    with pytest.raises(UserError, match=message):
        RunFolder.open(clustered, verb).is_done()


def test_the_run_that_reads_it_records_other_inputs(clustered: Config) -> None:
    finish(clustered, "train")
    first = RunFolder.open(clustered, "train").fingerprint
    write_clusters(data_folder(clustered) / CLUSTERS, ["sky", "sky", "sea"])
    (RunFolder.open(clustered, "train").path / "status").unlink()  # as if it had never been run
    finish(clustered, "train")
    assert RunFolder.open(clustered, "train").fingerprint != first


@pytest.mark.parametrize("verb", VERBS)
def test_clusters_that_the_split_does_not_need_are_no_input(verb: str, clustered: Config) -> None:
    needed = input_files(verb, clustered)
    clustered.data.split = "scenes"
    assert {*needed} - {*input_files(verb, clustered)} == {data_folder(clustered) / CLUSTERS}


def test_voxels_are_an_input_of_scores_that_read_them(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    folder = data_folder(cfg)
    folder.mkdir(parents=True)
    for name in ("stimuli.h5", f"{cfg.subject.name}.h5"):
        (folder / name).touch()
    assert [path.name for path in input_files("evaluate", cfg)] == ["stimuli.h5"]
    cfg.protocol.brain = ["high"]
    assert {path.name for path in input_files("evaluate", cfg)} == {"stimuli.h5", f"{cfg.subject.name}.h5"}
