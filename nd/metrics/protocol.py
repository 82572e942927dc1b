"""Named, versioned protocols: everything that decides a score, so that two scores of one name can be compared.

``conf/protocol/<name>.yaml`` holds the values; their hash is pinned here. A value changed without a new version is
still computed, but under a name that says so, and tables refuse to set it beside the others.

scenes v1: 64 px, the size of its stimuli, so nothing is resized for PixCorr and SSIM; EfficientNet-Lite0 sees them
bilinearly enlarged to 128 px. digits69 v1: 28 px; grey digits are outside what an ImageNet network knows, so there are
no feature levels; identification by pixels, and among the images of the same digit.

nd v1: natural pictures: pixel metrics at 256 px, EfficientNet-Lite0 at 224 px, the size it was trained at.

All: all images of the part are each other's distractors; every repeat is scored and the scores are averaged within an
image; intervals are over images.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from nd.errors import UserError
from nd.files import sha256_json
from nd.metrics.network import LEVEL_BLOCKS, weights_hash
from nd.metrics.ssim import WINDOW
from nd.schema import ProtocolConfig

# Name and version to the hash of the settings. To change a setting, add a version; never edit a line.
PINNED = {("scenes", 1): "df43600dcff8", ("digits69", 1): "2bfa7da1cf6f", ("nd", 1): "1f515a5e4a65"}
PRECISION_ONLY = ("name", "version", "n_boot")  # the rest decides the values; n_boot only how finely ends are known


def settings(protocol: ProtocolConfig) -> dict[str, Any]:
    """Everything that decides a score: the values of the protocol, the weights of its network and the levels."""
    values = {name: value for name, value in asdict(protocol).items() if name not in PRECISION_ONLY}
    if protocol.network == "none":
        return values
    return values | {"weights": weights_hash(protocol.network), "level_blocks": list(LEVEL_BLOCKS)}


def settings_hash(protocol: ProtocolConfig) -> str:
    """Hash of the settings that are not defaults, so that a new field with a default keeps every old protocol."""
    defaults = {item.name: item.default for item in fields(ProtocolConfig)}
    values = settings(protocol)
    return sha256_json({name: value for name, value in values.items() if defaults.get(name) != value})


def describe(protocol: ProtocolConfig) -> dict[str, Any]:
    """What a run records of its protocol: name, version, settings and their hash.

    The name of a protocol whose settings are not the pinned ones gets the suffix ``-changed-<hash>``.
    """
    values, digest = settings(protocol), settings_hash(protocol)
    pinned = PINNED.get((protocol.name, protocol.version)) == digest
    name = protocol.name if pinned else f"{protocol.name}-changed-{digest}"
    return {"name": name, "version": protocol.version, "hash": digest, "settings": values, "n_boot": protocol.n_boot}


def check_protocol(protocol: ProtocolConfig, image_size: int) -> None:
    """Raise UserError where stimuli of ``image_size`` pixels cannot be scored under the protocol."""
    if protocol.image_size < WINDOW:
        raise UserError(f"protocol.image_size={protocol.image_size}: SSIM needs at least {WINDOW} pixels.")
    if image_size < WINDOW:
        raise UserError(f"protocol {protocol.name}: stimuli of {image_size} px; SSIM needs at least {WINDOW} pixels.")
