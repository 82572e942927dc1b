"""What a run read: files by content, earlier runs by fingerprint; and whether they are still the same.

Paths are not part of a run's identity, so a finished run could be taken for one of other data or other weights that lie
at the same place. Each manifest therefore records its inputs, and a finished run whose inputs have changed is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nd.config import Config
from nd.data.pieces import recorded_hash
from nd.data.splits import BY_CLUSTER, CLUSTERS
from nd.files import sha256_file, sha256_json
from nd.runs.identity import TRAINED_MAPPERS, trained_together

WEIGHT_SUFFIXES = (".safetensors", ".json", ".txt", ".bin", ".pt")
DIFFUSION_PARTS = ("vae", "unet", "scheduler", "text_encoder", "tokenizer")
TARGET_PARTS: dict[str, tuple[str, ...]] = {
    "z": ("vae",),
    "z40": ("vae",),
    "c": ("text_encoder", "tokenizer"),
    "g": ("image_tower",),
}
OWN_WEIGHTS = {"clip_vision": "clip", "clip_text": "clip", "clip_image": "clip", "vdvae": "vdvae"}  # field of target
SHIPPED = Path(__file__).resolve().parents[1] / "weights"


def weights_folder(weights: str) -> Path | None:
    """Return the local folder a ``backbone.weights`` value means, or None for a hub id."""
    if weights.startswith("package://"):
        return SHIPPED / weights.removeprefix("package://")
    folder = Path(weights).expanduser()
    return folder if folder.is_dir() else None


def _parts(verb: str, cfg: Config) -> tuple[str, ...]:
    """Return the parts of the backbone that a verb's output depends on, as folders of its weights."""
    if verb == "train":
        return tuple(part for target in trained_together(cfg) for part in TARGET_PARTS.get(target, ()))
    if verb == "reconstruct" and cfg.method.generator == "vae":
        return ("vae",)
    if verb == "reconstruct" and cfg.method.generator == "guided_diffusion":
        return (*DIFFUSION_PARTS, *(("image_tower", "tiny_vae") if cfg.guided_steps else ()))
    return ()


def _weight_files(verb: str, cfg: Config) -> list[Path]:
    weights = weights_folder(cfg.backbone.weights)
    folders = {part: weights / part for part in DIFFUSION_PARTS} if weights else {}
    single = {"image_tower": cfg.backbone.image_tower, "tiny_vae": cfg.backbone.tiny_vae}
    folders |= {part: folder for part, given in single.items() if given and (folder := weights_folder(given))}
    wanted = [folders[part] for part in _parts(verb, cfg) if part in folders]
    own = {OWN_WEIGHTS[target] for target in trained_together(cfg) if verb == "train" and target in OWN_WEIGHTS}
    given = [Path(getattr(cfg.target, name)).expanduser() for name in sorted(own)]
    wanted += [path for path in given if path.is_dir()]
    inside = (path for folder in wanted for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES)
    return sorted({*inside, *(path for path in given if path.is_file())})


def _trained_on(cfg: Config) -> list[str]:
    """Return the files of the subjects whose voxels a training reads."""
    if cfg.mapper.name in TRAINED_MAPPERS and cfg.training.stage == "pretrain":
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
        content = recorded_hash(path) or sha256_file(path)
        described[str(path.resolve())] = {
            "size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": content,
        }  # fmt: skip
    return described


def _same(path: Path, recorded: dict[str, Any]) -> bool:
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
    files = sorted((Path(name).name, state["sha256"]) for name, state in manifest["files"].items())
    return sha256_json({"identity": manifest["identity"], "inputs": manifest["inputs"], "files": files})
