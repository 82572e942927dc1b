"""Pretraining: whom it sees, what it leaves (a network, and a record of what it saw), and who may go on from it.

Written as ``checkpoint/fold-<k>.safetensors`` with a JSON file beside it, which is written last. Shapes: A anchors, H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from nd.config import Config, NetworkConfig
from nd.data.components import NSD_SPLITS
from nd.data.prepared import open_subject, split_of, with_doubles
from nd.data.splits import Fold
from nd.data.subject import Subject
from nd.digests import digest_file
from nd.errors import LeakError, UserError
from nd.files import atomic_path, misfit, read_json, write_json
from nd.mappers.checkpoint import checked_arrays
from nd.mappers.network.network import Network
from nd.mappers.statistics import TargetScale

FORMAT = 1
AGAIN = "Train it again, or fetch it again."
Seen = list[tuple[Subject, Fold]]


class Details(TypedDict):
    """What is read of the details of a pretrained network."""

    scores: dict[str, dict[str, float]]


class PretrainedFile(TypedDict):
    """What the JSON file of a pretrained network holds."""

    arrays: str
    subjects: list[str]
    fingerprints: dict[str, str]
    network: dict[str, Any]
    variant: str
    details: Details


@dataclass(frozen=True)
class Pretrained:
    """A network trained on some subjects.

    Attributes:
        subjects: whom it saw.
        seen: (n,) int32 ids of the images it was trained or validated on.
        fingerprints, scales: of every target's features, and the mean and spread they were standardised with.
        front: what shaped its shared weights beside, `Front.shape`.
        weights: of the network but for the subject layers, by name.
        anchor_ids, anchors: (A,) images and, by trunk, (A, H) what the subject layers made of them on average.
    """

    subjects: tuple[str, ...]
    seen: NDArray[np.int32]
    fingerprints: dict[str, str]
    scales: dict[str, TargetScale]
    network: NetworkConfig
    variant: str
    front: dict[str, Any]
    weights: dict[str, Tensor]
    anchor_ids: NDArray[np.int32]
    anchors: dict[str, Tensor]
    details: dict[str, Any] = field(default_factory=dict)


def shared_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that belong to no subject."""
    return {name: value for name, value in weights.items() if ".subject_layers." not in name}


def load_shared(path: Path, network: Network, weights: Mapping[str, Tensor]) -> None:
    """Put pretrained weights into everything but the subject layers; heads that the network does not have are left out.

    Args:
        path: of the weights, for messages.

    Raises:
        UserError: weights are missing, or of another shape.
    """
    wanted = shared_weights(network.state_dict())
    wrong = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    if wrong:
        here = tuple(wanted[wrong[0]].shape)
        there = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "missing"
        raise UserError(
            f"{path} has another network: {len(wrong)} of {len(wanted)} weights do not fit (first: {wrong[0]}, {there}"
            f" there, {here} here). Give the same network and training.aux_* settings, or pretrain again."
        )
    network.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def save_pretrained(path: Path, pretrained: Pretrained) -> None:
    """Write a pretrained network to `path`, arrays first."""
    arrays = {f"network.{name}": value.contiguous() for name, value in pretrained.weights.items()}
    arrays |= {f"anchors.{name}": value.contiguous() for name, value in pretrained.anchors.items()}
    arrays |= {"seen": torch.from_numpy(pretrained.seen), "anchor_ids": torch.from_numpy(pretrained.anchor_ids)}
    for name, scale in pretrained.scales.items():
        arrays |= {f"mean.{name}": torch.from_numpy(scale.mean), f"scale.{name}": torch.from_numpy(scale.scale)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)
    content = {"format": FORMAT, "kind": "pretrained", "arrays": digest_file(path)}
    content |= {"subjects": list(pretrained.subjects), "fingerprints": pretrained.fingerprints}
    content |= {"network": asdict(pretrained.network), "variant": pretrained.variant, "details": pretrained.details}
    content |= {"front": pretrained.front} if pretrained.front else {}
    write_json(path.with_suffix(".json"), content)


def recorded_arrays(path: Path) -> str:
    """Return the recorded hash of a pretrained network's arrays.

    Raises:
        UserError: it is missing, or of another kind.
    """
    return str(_description(path)["arrays"])


def _description(path: Path) -> dict[str, Any]:
    description = path.with_suffix(".json")
    if not path.is_file() or not description.is_file():
        raise UserError(
            f"{path.parent.parent} holds no pretrained network ({path.name} with its .json is wanted in checkpoint/)."
            " Give the run folder of `nd train training.stage=pretrain`, or leave training.pretrained empty."
        )
    content = read_json(description, again=AGAIN)
    if content.get("kind") != "pretrained" or content.get("format") != FORMAT:
        raise UserError(
            f"{path} is no pretrained network of format {FORMAT}, but a {content.get('kind', 'finished mapper')}."
            " Give the run folder of `nd train training.stage=pretrain`."
        )
    if problem := misfit(content, PretrainedFile):
        raise UserError(f"{description} does not hold what it should: {problem}. {AGAIN}")
    return dict(content)


def load_pretrained(path: Path) -> Pretrained:
    """Return the pretrained network of `path`.

    Raises:
        UserError: it is missing, of another kind or damaged.
    """
    content = _description(path)
    arrays = checked_arrays(path, content["arrays"], AGAIN, load_file)

    def starting(word: str) -> dict[str, Tensor]:
        return {name.removeprefix(word): value for name, value in arrays.items() if name.startswith(word)}

    means = starting("mean.")
    if absent := {"seen", "anchor_ids", *(f"scale.{name}" for name in means)} - arrays.keys():
        raise UserError(f"{path} lacks {', '.join(sorted(absent))}: it is no pretrained network. {AGAIN}")
    try:
        network = NetworkConfig(**content["network"])
    except TypeError as error:
        raise UserError(f"{path} is a network of another version ({error}). {AGAIN}") from None
    return Pretrained(
        subjects=tuple(content["subjects"]),
        seen=arrays["seen"].numpy(),
        fingerprints=content["fingerprints"],
        scales={name: TargetScale(mean.numpy(), arrays[f"scale.{name}"].numpy()) for name, mean in means.items()},
        network=network,
        variant=content["variant"],
        front=content.get("front", {}),
        weights=starting("network."),
        anchor_ids=arrays["anchor_ids"].numpy(),
        anchors=starting("anchors."),
        details=content["details"],
    )


def check_pretrained(
    path: Path,
    found: Pretrained,
    subject: str,
    fold: Fold,
    fingerprints: Mapping[str, str],
    network: Network,
) -> None:
    """Refuse a pretrained network that saw the subject or its held-out images, or does not fit what is trained.

    Args:
        path: of `found`, for messages.
        subject, fold: who is fine-tuned, on which images.
        fingerprints: of the features, by target.
        network: what is trained.

    Raises:
        LeakError: it saw the subject, or test images of the fold.
        UserError: it learnt other features, or is another network.
    """
    if subject in found.subjects:
        raise LeakError(
            f"{path} was pretrained on {', '.join(found.subjects)}, so it has seen {subject}, whom it is to be"
            " fine-tuned on: its scores would not be those of a new subject. Pretrain without: nd train"
            f" training.stage=pretrain subject={subject}."
        )
    leaked = np.intersect1d(found.seen, fold.test)
    if leaked.size:
        raise LeakError(
            f"{path} was pretrained on {leaked.size} test image(s) of {subject} (first: image {leaked[0]}). Pretrain on"
            f" the same split: nd train training.stage=pretrain subject={subject}."
        )
    for target, fingerprint in fingerprints.items():
        if found.fingerprints.get(target) != fingerprint:
            other = found.fingerprints.get(target)
            had = f"other features of {target} ({other})" if other else f"targets {', '.join(found.fingerprints)}"
            raise UserError(
                f"{path} was pretrained on {had}, but {target} ({fingerprint}) is wanted. Use the same backbone,"
                " stimuli and target settings, or pretrain again."
            )
    wanted: dict[str, Any] = asdict(network.config) | {"variant": network.variant} | dict(network.front.shape)
    there: dict[str, Any] = asdict(found.network) | {"variant": found.variant} | found.front
    # mapper.spread is of finished predictions; earlier versions recorded it among what shapes the network.
    free = ("predict", "prior_sampling", "prior_steps", "dropout", "subject_dropout", "prior_drop", "mapper.spread")
    differing = [name for name in {**wanted, **there} if name not in free and wanted.get(name) != there.get(name)]
    if differing:
        listed = ", ".join(f"{name}={there.get(name)} there, {wanted.get(name)} here" for name in differing)
        raise UserError(f"{path} has another network: {listed}. Give the same network settings, or pretrain again.")


def others_of(cfg: Config, fold: int) -> Seen:
    """Return the data set's other subjects with one fold of each, without what the left-out subject's fold holds out.

    Subjects of NSD give all their sessions, of which some have fewer than a named split is about; no image that all
    subjects share is ever trained on.

    Raises:
        UserError: there are none, or their splits have other folds.
    """
    # What is held out does not depend on how many sessions fine-tuning may use.
    own, found = split_of(replace(cfg, subject=replace(cfg.subject, sessions=0))).folds[fold], []
    own = Fold(own.train, with_doubles(cfg, own.val), with_doubles(cfg, own.test))  # by whatever id others saw them
    data = replace(cfg.data, split="nsd_partial") if cfg.data.split in NSD_SPLITS else cfg.data
    for name in cfg.data.subjects:
        if name == cfg.subject.name:
            continue
        other = replace(cfg, data=data, subject=replace(cfg.subject, name=name, sessions=0))
        subject, folds = open_subject(other), split_of(other).folds
        if len(folds) <= fold:
            raise UserError(f"{name} has {len(folds)} folds in split {cfg.data.split}: none answers to fold {fold}.")
        found.append((subject, _without(folds[fold], own, subject)))
    if not found:
        raise UserError(f"data {cfg.data.name} has no subject beside {cfg.subject.name}; give training.pretrain=false.")
    return found


def _without(theirs: Fold, own: Fold, subject: Subject) -> Fold:
    """Another subject's fold with the held-out images of one's own moved to the test, as far as they were shown."""
    test = np.intersect1d(np.union1d(theirs.test, own.test), subject.image_id).astype(np.int32)
    train = np.setdiff1d(theirs.train, np.union1d(own.val, own.test))
    return Fold(train, np.setdiff1d(theirs.val, own.test), test)
