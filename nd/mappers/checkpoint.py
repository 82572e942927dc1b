"""A fitted mapper on disk: `<name>.safetensors` with the arrays and `<name>.json` with everything else.

The JSON file is written last and holds the arrays' hash, so a checkpoint is whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from typing_extensions import TypedDict

from nd.config import MapperConfig
from nd.config.components import component
from nd.digests import digest_file, is_content
from nd.errors import UserError
from nd.files import atomic_path, misfit, read_json, unreadable, write_json
from nd.mappers.arrays import read_arrays, write_arrays
from nd.mappers.base import Mapper
from nd.mappers.components import restore_mapper

FORMAT = 1
AGAIN = "Remove its run folder and run `nd train` again."


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a checkpoint was fitted on; a mapper is used for nothing else.

    Attributes:
        subject, roi, n_voxels, mask_hash: whose voxels, which of them and in which order.
        split_hash, fold: which images were seen.
        target, target_fingerprint: what is predicted.
    """

    subject: str
    roi: str
    n_voxels: int
    mask_hash: str
    split_hash: str
    fold: int
    target: str
    target_fingerprint: str


class OriginFacts(TypedDict):
    """An `Origin` as JSON."""

    subject: str
    roi: str
    n_voxels: int
    mask_hash: str
    split_hash: str
    fold: int
    target: str
    target_fingerprint: str


class Saved(TypedDict):
    """What the JSON file beside any arrays holds, those of a pretrained network too."""

    arrays: str


class Checkpoint(Saved):
    """What the JSON file of a checkpoint holds."""

    mapper: dict[str, Any]
    origin: OriginFacts
    shape: list[int]
    details: dict[str, Any]


def checkpoint_path(folder: Path, fold: int) -> Path:
    """Return the arrays' file of one fold in a train run folder."""
    return folder / "checkpoint" / f"fold-{fold:02d}.safetensors"


def target_path(folder: Path, fold: int, target: str, n_targets: int) -> Path:
    """Return the arrays' file of one target of a training of several; of one alone, as `checkpoint_path`."""
    path = checkpoint_path(folder, fold)
    return path if n_targets == 1 else path.with_name(f"{path.stem}-{target}{path.suffix}")


def saved_path(folder: Path, origin: Origin) -> Path:
    """Return where a fold's arrays of a target lie: in its own file where there is one, else in the fold's."""
    own = target_path(folder, origin.fold, origin.target, n_targets=2)
    return own if own.with_suffix(".json").exists() else checkpoint_path(folder, origin.fold)


def is_saved(path: Path) -> bool:
    """Return whether whole arrays lie at `path` (a killed run may have left them without their JSON)."""
    details = path.with_suffix(".json")
    return path.is_file() and details.exists() and is_content(path, read_json(details, Saved, AGAIN)["arrays"])


def save(path: Path, mapper: Mapper, config: MapperConfig, origin: Origin, shape: tuple[int, ...]) -> None:
    """Write a fitted mapper, arrays first.

    Args:
        path: of the arrays; the JSON file lies beside it.
        config: the mapper group.
        origin: what it was fitted on.
        shape: of the target.

    Raises:
        UserError: the disk is full.
    """
    with atomic_path(path) as temporary:
        write_arrays(temporary, mapper.state())
    content = {"format": FORMAT, "mapper": asdict(config), "origin": asdict(origin), "arrays": digest_file(path)}
    write_json(path.with_suffix(".json"), {**content, "shape": list(shape), "details": mapper.details()})


def read_details(path: Path) -> dict[str, Any]:
    """Return the JSON part of a checkpoint.

    Raises:
        UserError: it is missing, or of another format.
    """
    description = path.with_suffix(".json")
    content = read_json(description, again=AGAIN)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {content.get('format')}, this version reads {FORMAT}. Train again."
        )
    if problem := misfit(content, Checkpoint):
        raise UserError(f"{description} does not hold what it should: {problem}. {AGAIN}")
    return dict(content)


def load(path: Path, wanted: Origin, train_command: str, device: torch.device | None = None) -> Mapper:
    """Return a mapper for use on the voxels and target that `wanted` describes.

    Args:
        path: of the arrays.
        train_command: what makes the right one, for messages.
        device: where a trained network predicts, by default the CPU; others predict there anyway.

    Raises:
        UserError: fitted on other voxels, another target or another split (names both and the command that trains the
            right one), or damaged.
    """
    content = read_details(path)
    check_origin(path, Origin(**content["origin"]), wanted, train_command)
    again = f"Remove its run folder and run: {train_command}"
    arrays = checked_arrays(path, content["arrays"], again)
    try:
        settings = component("mapper", content["mapper"].get("name")).settings(**content["mapper"])
        mapper = restore_mapper(settings, arrays, content["details"])
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # of a description that was written for something else
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no checkpoint of a mapper of this version ({error}). {again}") from None
    mapper.device = device or mapper.device
    return mapper


def checked_arrays(
    path: Path, recorded: str, again: str, read: Callable[[Path], dict[str, Any]] = read_arrays
) -> dict[str, Any]:
    """Return the arrays of a file, made sure to be those that were written.

    Args:
        path: of a safetensors file.
        recorded: digest of its content.
        again: what to do otherwise, for messages.
        read: gives the arrays.

    Raises:
        UserError: it is missing, damaged, or was changed.
    """
    try:
        arrays, same = read(path), is_content(path, recorded)
    except OSError as error:
        raise UserError(f"{unreadable(path, error)} {again}") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). {again}") from None
    if not same:
        raise UserError(f"{path} is damaged: it was changed since it was written. {again}")
    return arrays


def check_origin(path: Path, found: Origin, wanted: Origin, train_command: str) -> None:
    """Compare what a checkpoint was fitted on with what it is wanted for.

    Args:
        path: of the checkpoint; train_command: what makes the right one; both for the message.

    Raises:
        UserError: they differ; it names the first difference.
    """
    for differs, message in _differences(found, wanted):
        if differs:
            raise UserError(f"{path} {message} Train for these settings: {train_command}")


def _differences(found: Origin, wanted: Origin) -> list[tuple[bool, str]]:
    """Whether and how they differ, in the order in which the messages help most."""
    return [
        (
            found.n_voxels != wanted.n_voxels,
            f"was trained on {found.n_voxels} voxels of {found.subject} (subject.roi={found.roi}), but "
            f"{wanted.subject} (subject.roi={wanted.roi}) has {wanted.n_voxels}.",
        ),
        (
            found.mask_hash != wanted.mask_hash,
            f"was trained on other voxels: mask {found.mask_hash} of {found.subject} (subject.roi={found.roi}), not "
            f"{wanted.mask_hash} of {wanted.subject} (subject.roi={wanted.roi}); both have {wanted.n_voxels} voxels.",
        ),
        (found.target != wanted.target, f"predicts target {found.target!r}, but {wanted.target!r} is wanted."),
        (
            found.target_fingerprint != wanted.target_fingerprint,
            f"was trained on features {found.target_fingerprint} of target {found.target!r}, but the present backbone, "
            f"stimuli and settings give {wanted.target_fingerprint}.",
        ),
        (
            (found.split_hash, found.fold) != (wanted.split_hash, wanted.fold),
            f"was trained on fold {found.fold} of split {found.split_hash}, but fold {wanted.fold} of "
            f"{wanted.split_hash} is wanted: its test images may have been seen.",
        ),
    ]
