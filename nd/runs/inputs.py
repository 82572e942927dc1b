"""What a run read: files by content, earlier runs by fingerprint; and whether they are still the same.

Paths are not part of a run's identity, so a finished run could be taken for one of other data or other weights that lie
at the same place. Each manifest therefore records its inputs, and a finished run whose inputs have changed is refused.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from nd.backbone.weights import folders_of, local_folder
from nd.config.components import component
from nd.config.fields import declared
from nd.config.schema import Config
from nd.data.piece_records import added_to, check_piece, recorded_hash
from nd.data.splits import BY_CLUSTER, CLUSTERS
from nd.files import located, sha256_file, sha256_json
from nd.runs.identity import generator_of, mapper_of, trained_together

WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt", ".bin", ".pt")
CLIP_PARTS = ("image_tower", "text_encoder", "tokenizer")  # what is read of a backbone as a CLIP model
DIFFUSION_PARTS = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")


def _parts(verb: str, cfg: Config) -> tuple[str, ...]:
    """Return the parts of the backbone that a verb's output depends on, as folders of its weights."""
    if verb == "train":
        return tuple(part for name in trained_together(cfg) for part in component("target", name).parts)
    if verb == "evaluate":
        own_clip = "caption_clip" in cfg.protocol.measures and not cfg.protocol.caption_clip
        return CLIP_PARTS if own_clip else ()
    return generator_of(cfg).parts(cfg) if verb == "reconstruct" else ()


def _own_weights(verb: str, cfg: Config) -> list[Path]:
    """Return the weights that targets, a generator or a protocol name in fields of their own (``weights=True``)."""
    owners: list[Any] = []
    if verb == "train":
        owners = [cfg.decoding(name).target for name in trained_together(cfg)]
    elif verb == "reconstruct":  # a generator may run networks that some of its targets are made by
        ran = [name for name in generator_of(cfg).parts(cfg) if name in cfg.method.targets]
        owners = [cfg.method, *(cfg.decoding(name).target for name in ran)]
    elif verb == "evaluate":
        owners = [cfg.protocol]
    given = [str(getattr(one, item.name)) for one in owners for item in fields(one) if declared(item).weights]
    return [located(text) for text in sorted(set(given)) if text]


def _weight_files(verb: str, cfg: Config) -> list[Path]:
    weights = local_folder(cfg.backbone.weights)
    folders = {part: weights / part for part in DIFFUSION_PARTS} if weights else {}
    single = {"image_tower": cfg.backbone.image_tower, "tiny_vae": cfg.backbone.tiny_vae}
    folders |= {part: folder for part, given in single.items() if given and (folder := local_folder(given))}
    wanted = [folders[part] for part in _parts(verb, cfg) if part in folders]
    given = _own_weights(verb, cfg)
    wanted += [folder for path in given if path.is_dir() for folder in folders_of(path)]
    inside = (path for folder in wanted for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES)
    return sorted({*inside, *(path for path in given if path.is_file())})


def _trained_on(cfg: Config) -> list[str]:
    """Return the files of the subjects whose voxels a training reads."""
    if mapper_of(cfg).trained and cfg.training.stage == "pretrain":
        return [f"{name}.h5" for name in cfg.data.subjects if name != cfg.subject.name]
    return [f"{cfg.subject.name}.h5"]


def input_files(verb: str, cfg: Config) -> list[Path]:
    """Return the files whose contents decide a verb's output and that exist: prepared data, split, local weights."""
    data = Path(cfg.paths.data) / cfg.data.name
    voxels = f"{cfg.subject.name}.h5"
    paths = {"train": [*_trained_on(cfg), "stimuli.h5"], "predict": [voxels]}
    paths["evaluate"] = ["stimuli.h5", *([voxels] if cfg.protocol.brain else [])]
    split = [CLUSTERS] if cfg.data.split == BY_CLUSTER else []  # every verb's images are those of the split
    listed = [data / name for name in [*paths.get(verb, ["stimuli.h5"]), *split]]
    return [path for path in [*listed, *_weight_files(verb, cfg)] if path.is_file()]


def describe(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Return size, modification time and content hash of files, by path."""
    described = {}
    for path in paths:
        state = path.stat()
        # Gigabytes of betas are not read again to say what their manifest says already.
        check_piece(path)
        content = recorded_hash(path) or sha256_file(path)
        described[str(path.resolve())] = {
            "size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": content,
        } | ({"added": added} if (added := added_to(path)) else {})  # fmt: skip
    return described


def _same(path: Path, recorded: dict[str, Any]) -> bool:
    if not recorded.get("added", {}).items() <= added_to(path).items():
        return False
    state, known = path.stat(), recorded_hash(path)  # of a file whose links were led elsewhere, that of its content
    if known is not None:
        return known == recorded["sha256"]
    if state.st_size != recorded["size"]:
        return False
    return state.st_mtime_ns == recorded["mtime_ns"] or sha256_file(path) == recorded["sha256"]


def changed_files(recorded: dict[str, dict[str, Any]], present: list[Path]) -> list[str]:
    """Return messages on the files whose contents are not those the run read.

    A recorded file that is gone cannot be compared and is passed over (runs may be read without their data); one of the
    same name that now lies elsewhere is compared by content, so moving a folder changes nothing.
    """
    by_name = {(path.parent.name, path.name): path for path in present}
    changed = []
    for name, state in recorded.items():
        path = by_name.get((Path(name).parent.name, Path(name).name))
        if path is not None and not _same(path, state):
            changed.append(f"{path} has other contents than the file this run read ({state['sha256']})")
    return changed


def changed_inputs(recorded: dict[str, str], present: dict[str, str]) -> list[str]:
    """Return messages on the named inputs whose hashes differ from the recorded ones."""
    both = sorted(set(recorded) & set(present))
    return [f"{name} was {recorded[name]}, is {present[name]}" for name in both if recorded[name] != present[name]]


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return a hash of a run's identity and of the contents of all it read: what a later run records as its input."""
    files = sorted(
        (Path(name).name, state["sha256"], *([sha256_json(state["added"])] if "added" in state else []))
        for name, state in manifest["files"].items()
    )
    return sha256_json({"identity": manifest["identity"], "inputs": manifest["inputs"], "files": files})
