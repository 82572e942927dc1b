"""Where a backbone's files lie: shipped in the package, in a local folder, or on the Hugging Face hub.

Only safetensors are read: other weight formats can run code when they are opened.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nd.errors import UserError, unknown
from nd.files import HASH_CHARS, PACKAGE, SHIPPED, located, read_json, sha256_file

log = logging.getLogger(__name__)

INDEX = "model_index.json"
SHARED = "shares_parts_of"  # in model_index.json: where the parts lie that a folder has not

# What each part of a diffusers folder needs. The whole-precision file is preferred; '.fp16' is taken where it is alone.
WEIGHT_FILES = {
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    "text_encoder": ("model.safetensors", "model.fp16.safetensors"),
}
OTHER_FILES = {
    "tokenizer": ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    "scheduler": ("scheduler_config.json",),
}
PARTS = (*WEIGHT_FILES, *OTHER_FILES)
VOCABULARY = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # of a tokenizer; either will do

# Download sizes as listed on the hub, in GB, of the float32 safetensors.
KNOWN = {
    "CompVis/stable-diffusion-v1-4": "4.3 GB (unet 3.4, text_encoder 0.5, vae 0.3), licence CreativeML OpenRAIL-M",
}
USUAL_SIZE = "4 to 5 GB for a Stable Diffusion 1.x model; read its licence there"


@dataclass(frozen=True)
class Source:
    """A diffusers folder.

    Attributes:
        text: what was given.
        folder: where it lies on disk; None: a hub id, whose parts are fetched when first needed.
        shared: of the folder whose parts stand for those that this one has not; None: it is whole.
    """

    text: str
    folder: Path | None
    shared: Source | None = None

    def part(self, name: str) -> Path:
        """The folder of one part, its files in place.

        Raises:
            UserError: the part, its safetensors, or a tokenizer's vocabulary is neither here nor reachable.
        """
        root = self.folder if self.folder is not None else _fetch(self.text, name)
        folder = root / name
        if self.shared is not None and not folder.is_dir():
            return self.shared.part(name)
        if not folder.is_dir():
            raise UserError(f"backbone.weights={self.text}: {root} has no folder {name!r}. {_remedy(self.text)}")
        if name == "tokenizer" and not has_vocabulary(folder):
            raise UserError(
                f"backbone.weights={self.text}: {folder} holds no vocabulary (tokenizer.json, or vocab.json and "
                f"merges.txt). {_remedy(self.text)}"
            )
        if name in WEIGHT_FILES and not any((folder / f).is_file() for f in WEIGHT_FILES[name]):
            raise UserError(
                f"backbone.weights={self.text}: {folder} holds no {WEIGHT_FILES[name][0]}. Only safetensors are read. "
                f"{_remedy(self.text)}"
            )
        return folder


def has_vocabulary(folder: Path) -> bool:
    """Say whether a tokenizer's folder says which words there are.

    Without, transformers makes a tokenizer that knows no word, and all captions become the same.
    """
    return any(all((folder / name).is_file() for name in names) for names in VOCABULARY)


def find_source(weights: str) -> Source:
    """Turn `backbone.weights` into a source.

    Args:
        weights: 'package://<name>', a local folder, or a hub id '<owner>/<name>', '@<revision>' after it to pin one.

    Raises:
        UserError: the package ships no such weights, or the folder is absent, not a diffusers folder, or shares parts
            of itself.
    """
    return _source(weights, ())


def _source(weights: str, before: tuple[Path, ...]) -> Source:
    """Return a source that the folders `before` share parts of, one after the other."""
    if weights.startswith(PACKAGE):
        folder = shipped_folder(weights, "backbone.weights")
        return Source(weights, folder, _shared(folder, before))
    local = located(weights)
    if local.is_dir():
        shared = _shared(local, before)
        if shared is None and not any((local / part).is_dir() for part in PARTS):
            raise UserError(f"backbone.weights={weights} is not a diffusers folder: it has none of {', '.join(PARTS)}.")
        return Source(weights, local, shared)
    if weights.count("/") == 1 and not weights.startswith((".", "/", "~")):
        return Source(weights, None)
    raise UserError(f"backbone.weights={weights}: no such folder. {_remedy('CompVis/stable-diffusion-v1-4')}")


def _shared(folder: Path, before: tuple[Path, ...] = ()) -> Source | None:
    """Return the folder that another one says to share parts of. UserError: following these leads in a circle."""
    index, here = folder / INDEX, folder.resolve()
    given = read_json(index).get(SHARED) if index.is_file() else None
    if here in before:
        raise UserError(
            f"{index}: {SHARED!r} is {given}, which leads back to this folder. Name a folder there that has the parts"
            " that this one lacks, or take the entry out."
        )
    return None if given is None else _source(str(given), (*before, here))


def folders_of(folder: Path) -> list[Path]:
    """Return a folder and those on disk that it shares parts of: what its content depends on."""
    shared = _shared(folder)
    return [folder, *(folders_of(shared.folder) if shared and shared.folder else [])]


def module_folder(given: str, field: str, example: str) -> Path:
    """The folder of a single diffusers module: 'package://<name>', a local folder, or a hub id ('@<revision>').

    Raises:
        UserError: nothing was given, or it is neither here nor reachable.
    """
    if given.startswith(PACKAGE):
        return shipped_folder(given, field)
    files = ["config.json", WEIGHT_FILES["vae"][0]]
    local = located(given)
    remedy = f"{field} wants a folder with {' and '.join(files)}, or a hub id, for example {example}."
    if given and local.is_dir():
        missing = [name for name in files if not (local / name).is_file()]
        if missing:
            raise UserError(f"{field}={given}: the folder has no {missing[0]}. {remedy}")
        return local
    if given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return fetch(given, files, remedy)
    raise UserError(f"{field}={given}: no such folder. {remedy}")


def local_folder(weights: str) -> Path | None:
    """Return the folder, there or not, that 'package://...' or a path means; None for a hub id or an open_clip name."""
    folder = located(weights)
    return folder if folder.is_dir() or weights.startswith((PACKAGE, "/", ".", "~")) else None


def shipped_folder(weights: str, field: str) -> Path:
    """The folder of 'package://<name>[/<sub>]'; a name that is not shipped is a `UserError` listing those that are."""
    relative = weights.removeprefix(PACKAGE)
    folder = SHIPPED / relative
    if not relative or not folder.is_dir():
        shipped = sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []
        if relative.split("/")[0] in shipped:
            raise UserError(f"{field}={weights}: this installation lacks {folder}. Install nd again.")
        if not shipped:
            raise UserError(
                f"{field}={weights}: this installation ships no weights ({SHIPPED} is absent). Install nd again."
            )
        raise unknown(f"shipped weights ({field})", weights, [PACKAGE + name for name in shipped])
    return folder


def weight_variant(folder: Path, part: str) -> str | None:
    """'fp16' when a part's folder holds the half-precision file alone, else None."""
    return None if (folder / WEIGHT_FILES[part][0]).is_file() else "fp16"


def _fetch(hub_id: str, part: str) -> Path:
    """Download one part of a hub model into the hub's cache (or find it there); returns the snapshot folder."""
    names = [WEIGHT_FILES[part][0], "config.json"] if part in WEIGHT_FILES else list(OTHER_FILES[part])
    return fetch(hub_id, [f"{part}/{name}" for name in names], _remedy(hub_id))


def fetch(hub_id: str, patterns: list[str], remedy: str) -> Path:
    """Files of a hub repository, from the local cache or the network; one clear message where neither has them.

    ``hub_id`` is '<owner>/<name>', with '@<revision>' for another than the newest.
    """
    from huggingface_hub import snapshot_download  # slow to import, and not needed for local folders

    # snapshot_download asks the hub once and gives up; the per-file calls of the libraries retry for half a minute.
    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns, etag_timeout=10))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    except Exception as error:  # the hub client raises its HTTP library's own errors, which differ between versions
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    raise UserError(f"cannot fetch {hub_id} from the Hugging Face hub ({reason}). {remedy}")


def _remedy(weights: str) -> str:
    weights = weights.partition("@")[0]
    size = KNOWN.get(weights, USUAL_SIZE)
    hub_id = weights if weights.count("/") == 1 and not weights.startswith(PACKAGE) else "<hub id>"
    return (
        f"Needed: a diffusers folder with {', '.join(PARTS)} in safetensors, e.g. "
        f"https://huggingface.co/{hub_id} ({size}). "
        "With a network it is fetched by itself; otherwise download it elsewhere and give its folder: "
        "backbone.weights=/path/to/folder."
    )


def revision_of(path: Path) -> str:
    """The hub revision that a file or folder of the hub's cache belongs to; empty for any other place."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def hash_folder(folder: Path) -> str:
    """12 hexadecimal digits that change when any configuration or safetensors file directly in `folder` changes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt") and path.is_file():
            digest.update(f"{path.name}:{hash_file(path)};".encode())
    return digest.hexdigest()[:HASH_CHARS]


def hash_file(path: Path) -> str:
    """12 hexadecimal digits of a file's bytes, read once per process as long as the file stays as it is."""
    stat = path.stat()
    return _hash_version(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_version(path: Path, size: int, mtime_ns: int) -> str:
    """Content hash, computed once per version of a file: gigabytes are read once per process."""
    return sha256_file(path)
