"""Named, versioned protocols: everything that decides a score, so that two scores of one name can be compared.

``conf/protocol/<name>.yaml`` holds the values; their hash is pinned here. A value changed without a new version is
still computed, but under a name that says so, and tables refuse to set it beside the others.

scenes v1: 64 px, the size of its stimuli, so nothing is resized for PixCorr and SSIM; EfficientNet-Lite0 sees them
bilinearly enlarged to 128 px. digits69 v1: 28 px; grey digits are outside what an ImageNet network knows, so there are
no feature levels; identification by pixels, and among the images of the same digit.

nd v1: natural images: pixel metrics at 256 px, EfficientNet-Lite0 at 224 px, the size it was trained at.

brain_diffuser, mindeye1, mindeye2, minddiffuser, minddiffuser_decoded: the protocols of published tables, each on the
test set it was used on; what is not known of them is said in their files.

All: all images of the part are each other's distractors, in any order; ``aggregation`` says what is made of the repeats
of an image (``nd.metrics.repeats``); intervals are over images.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nd.errors import UserError
from nd.files import sha256_json
from nd.metrics.efficientnet_lite import LEVEL_BLOCKS
from nd.metrics.measures import Measure, measures_of
from nd.metrics.networks import NETWORKS, OFFLINE, network_named
from nd.metrics.ssim import WINDOW

if TYPE_CHECKING:
    from nd.config import ProtocolConfig

# Name and version to the hash of the settings. To change a setting, add a version; never edit a line.
PINNED = {
    ("scenes", 1): "df43600dcff8",
    ("digits69", 1): "2bfa7da1cf6f",
    ("nd", 1): "1f515a5e4a65",
    ("brain_diffuser", 1): "fda1c4aeabc9",
    ("brain_diffuser", 2): "fab04d74f848",
    ("mindeye1", 1): "8cee43cda5e3",
    ("mindeye2", 1): "e3b0eaf4570d",
    ("minddiffuser", 1): "b6d438fff5ea",
    ("minddiffuser_decoded", 1): "db86e2d487d4",
}
# What does not decide the values: n_boot only how finely ends are known, folders only where weights lie (what was found
# there stands with the scores); brain only adds columns, whose names say what they are.
NO_SETTING = ("name", "version", "n_boot", "weights", "brain", "caption_clip", "sentence_model")


def settings(protocol: ProtocolConfig) -> dict[str, Any]:
    """Everything that decides a score: the protocol's values, the definitions of its measures, its networks' weights.

    Of weights without published digits only the name counts; ``weights_found`` says what was used.
    """
    values = {name: value for name, value in asdict(protocol).items() if name not in NO_SETTING}
    if protocol.measures:
        named = measures_of(protocol)
        values["measures"] = {name: _definition(named[name]) for name in protocol.measures}
    if protocol.network == "none":
        return values
    return values | {"weights": network_named(protocol.network).pinned, "level_blocks": list(LEVEL_BLOCKS)}


def _definition(measure: Measure) -> dict[str, Any]:
    """What decides a measure's values. A network of this package is known by its weights, other code by its name."""
    network = NETWORKS.get(measure.view.network)
    made_by = {"weights": network.pinned} if network else {"weights": "", "score": measure.score}
    return {"view": asdict(measure.view), "layer": measure.layer, "kind": measure.kind} | made_by


def settings_hash(protocol: ProtocolConfig) -> str:
    """Hash of the settings that are not defaults, so that a new field with a default keeps every old protocol."""
    defaults, values = asdict(type(protocol)()), settings(protocol)
    return sha256_json({name: value for name, value in values.items() if defaults.get(name) != value})


def describe(protocol: ProtocolConfig) -> dict[str, Any]:
    """What a run records of its protocol: name, version, settings and their hash.

    The name of a protocol whose settings are not the pinned ones gets the suffix ``-changed-<hash>``.
    """
    values, digest = settings(protocol), settings_hash(protocol)
    pinned = PINNED.get((protocol.name, protocol.version)) == digest
    name = protocol.name if pinned else f"{protocol.name}-changed-{digest}"
    return {"name": name, "version": protocol.version, "hash": digest, "settings": values, "n_boot": protocol.n_boot}


def weights_found(protocol: ProtocolConfig) -> dict[str, str]:
    """12 digits of the SHA-256 of every network's weights, or ``random``.

    Raises:
        UserError: weights that are absent or not the published ones, all of them in one message.
    """
    names = sorted({measure.view.network for measure in measures_of(protocol).values()} & set(NETWORKS))
    if protocol.random_weights:
        return dict.fromkeys(names, "random")
    found, problems = {}, []
    for name in names:
        try:
            found[name] = network_named(name).found(protocol.weights)
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("\n".join([*problems, OFFLINE]))
    return found


def check_protocol(protocol: ProtocolConfig, image_size: int) -> None:
    """Refuse what is too small for SSIM.

    Args:
        protocol: whose pixel metrics are computed at ``image_size``.
        image_size: side of the stimuli or reconstructions, pixels.

    Raises:
        UserError: one of them is below 11 pixels.
    """
    if protocol.image_size < WINDOW:
        raise UserError(f"protocol.image_size={protocol.image_size}: SSIM needs at least {WINDOW} pixels.")
    if image_size < WINDOW:
        raise UserError(f"protocol {protocol.name}: stimuli of {image_size} px; SSIM needs at least {WINDOW} pixels.")


def check_number(protocol: ProtocolConfig, n_images: int) -> None:
    """Raise UserError where the protocol is defined on another number of test images."""
    if protocol.n_images and n_images != protocol.n_images:
        raise UserError(
            f"protocol {protocol.name}: {n_images} images were given, it is defined on {protocol.n_images}; scores of "
            "other images do not compare with its tables. To score what there is, give protocol.n_images=0, which "
            "marks the protocol as changed."
        )
