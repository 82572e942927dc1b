"""Measures on features, by name: which network sees the images how, which layer is read, and what is done with it.

A name is a column of tables, so another definition has another name: size and resize are part of it. ``_pil`` marks
images resized as bytes by Pillow, as Brain-Diffuser does; the measures of MindEye resize floats without antialias,
which torchvision 0.15 and 0.16, pinned there, did by default.

Importing this module loads no network and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from nd.config import ProtocolConfig

CHANCE = 0.5  # of identification among two
KINDS = ("two_way", "distance", "cosine", "pair")
LEVELS = ("low", "mid", "high")  # of EfficientNet-Lite0
# Layers from which voxels are predicted for brain correlation: a few thousand numbers; others would need gigabytes.
ENCODED_LEVELS, ENCODED_LAYERS = ("mid", "high"), ("avgpool", "embedding")
BRAIN = "brain_"  # prefix of its columns
OWN_NETWORK = "efficientnet_lite0"
CONSISTENCIES = ("pixcorr", "ssim", "feature")
ROW = "_row"  # suffix of columns identified row-wise
PER_COLUMN = "ssim_per_column"


@dataclass(frozen=True)
class View:
    """How a network sees pictures: brought to ``via`` pixels first (0: not), then to ``size``, both by one filter."""

    network: str
    size: int
    filter: str = "bilinear"
    antialias: bool = True
    arithmetic: str = "floats"
    via: int = 0


@dataclass(frozen=True)
class Measure:
    """A layer's features under a view, and what is made of them: one of ``KINDS``.

    two_way: identification; distance: 1 - correlation with the own stimulus; cosine: with the own stimulus; pair: the
    network itself compares two images, and there is no layer.
    """

    view: View
    layer: str
    kind: str


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a metric: its value by chance (None: there is none) and which way is better."""

    chance: float | None = None
    better: str = "higher"


def _mindeye(network: str, size: int, layer: str, kind: str) -> Measure:
    return Measure(View(network, size, antialias=False, via=256), layer, kind)


def _pillow(network: str, layer: str, kind: str, method: str = "bilinear") -> Measure:
    return Measure(View(network, 224, filter=method, arithmetic="bytes"), layer, kind)


# Source of the first six: MindEyeV2 final_evaluations.ipynb and MindEye1 src/Reconstruction_Metrics.py. EfficientNet-B1
# there is torchvision's DEFAULT, the weights V2.
# Source of the next six: brain-diffuser scripts/eval_extract_features.py; `weights=True` there means V1.
# clip_b32: MindDiffuser's CLIP similarity (4.3.2: last layer, 512 numbers); the resize is CLIP's own, presumed.
MEASURES = {
    "alexnet2_256": _mindeye("alexnet", 256, "features.4", "two_way"),
    "alexnet5_256": _mindeye("alexnet", 256, "features.11", "two_way"),
    "inception_342": _mindeye("inception_v3", 342, "avgpool", "two_way"),
    "clip_l14_224": _mindeye("clip_vit_l14", 224, "embedding", "two_way"),
    "effnet_b1v2_255": _mindeye("efficientnet_b1_v2", 255, "avgpool", "distance"),
    "swav_224": _mindeye("swav_resnet50", 224, "avgpool", "distance"),
    "alexnet2_224_pil": _pillow("alexnet", "features.4", "two_way"),
    "alexnet5_224_pil": _pillow("alexnet", "features.11", "two_way"),
    "inception_224_pil": _pillow("inception_v3", "avgpool", "two_way"),
    "clip_l14_224_pil": _pillow("clip_vit_l14", "embedding", "two_way"),
    "effnet_b1v1_224_pil": _pillow("efficientnet_b1_v1", "avgpool", "distance"),
    "swav_224_pil": _pillow("swav_resnet50", "avgpool", "distance"),
    "clip_b32_cosine_224_pil": _pillow("clip_vit_b32", "embedding", "cosine", "bicubic"),
    "clip_l14_cosine_224": _mindeye("clip_vit_l14", 224, "embedding", "cosine"),
    "lpips_256": Measure(View("lpips", 256), "", "pair"),
    "dreamsim_224": Measure(View("dreamsim", 224, filter="bicubic"), "", "pair"),
}


def _metric(kind: str) -> Metric:
    return {"two_way": Metric(CHANCE), "cosine": Metric()}.get(kind, Metric(better="lower"))


# Every column of every protocol, in the order of tables.
METRICS = {
    "pixcorr": Metric(),
    "ssim": Metric(),
    PER_COLUMN: Metric(),
    "two_way_pixels": Metric(CHANCE),
    **{f"two_way_{level}": Metric(CHANCE) for level in LEVELS},
    "feature_distance": Metric(better="lower"),
    "label_two_way": Metric(CHANCE),
    **{name: _metric(measure.kind) for name, measure in MEASURES.items()},
    **{f"consistency_{name}": Metric() for name in CONSISTENCIES},
    **{f"consistency_{name}_variance": Metric(better="lower") for name in CONSISTENCIES},
    **{
        BRAIN + name: Metric()
        for name in (*ENCODED_LEVELS, *(name for name, one in MEASURES.items() if one.layer in ENCODED_LAYERS))
    },
}
METRICS |= {name + ROW: metric for name, metric in METRICS.items() if metric.chance}


def measures_of(protocol: ProtocolConfig) -> dict[str, Measure]:
    """All measures of a protocol: those of its own three levels, at its own size, then those it names."""
    named = {name: MEASURES[name] for name in protocol.measures}
    if protocol.network == "none":
        return named
    view = _own_view(protocol)
    levels = {f"two_way_{level}": Measure(view, level, "two_way") for level in LEVELS}
    return levels | {"feature_distance": Measure(view, LEVELS[-1], "distance")} | named


def encoded_layers(protocol: ProtocolConfig) -> dict[str, Measure]:
    """The layers that a protocol computes anyway and from which voxels can be predicted, by name (``protocol.brain``).

    They are ``ENCODED_LEVELS`` of its own network, and its measures that read one of ``ENCODED_LAYERS``.
    """
    levels = ENCODED_LEVELS if protocol.network != "none" else ()
    own = {level: Measure(_own_view(protocol), level, "distance") for level in levels}
    named = {name: MEASURES[name] for name in protocol.measures if name in MEASURES}
    return own | {name: measure for name, measure in named.items() if measure.layer in ENCODED_LAYERS}


def _own_view(protocol: ProtocolConfig) -> View:
    return View(OWN_NETWORK, protocol.network_size, protocol.resize_filter, protocol.resize_antialias)


def by_view(measures: dict[str, Measure]) -> dict[View, dict[str, Measure]]:
    """Measures grouped by view: one pass of a network serves all of a group."""
    groups: dict[View, dict[str, Measure]] = {}
    for name, measure in measures.items():
        groups.setdefault(measure.view, {})[name] = measure
    return groups
