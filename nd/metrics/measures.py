"""Measures by name, each declared once: what it scores, by which network, its value by chance, which way is better.

A name is a column of tables, so another definition has another name: size and resize are part of it. ``_pil`` marks
images resized as bytes by Pillow, as Brain-Diffuser does; the measures of MindEye resize floats without antialias,
which torchvision 0.15 and 0.16, pinned there, did by default.

Other packages declare measures of their own: an entry point of the group ``nd.measures`` names a ``Measure``, whose
name can then stand in ``protocol.measures``.

Importing this module loads no network and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from nd.config.plugins import external_components

if TYPE_CHECKING:
    from nd.config import ProtocolConfig

CHANCE = 0.5  # of identification among two
KINDS = ("pixels", "two_way", "distance", "cosine", "pair", "consistency", "brain", "caption")
LEVELS = ("low", "mid", "high")  # of EfficientNet-Lite0
# Layers from which voxels are predicted for brain correlation: a few thousand numbers; others would need gigabytes.
ENCODED_LEVELS, ENCODED_LAYERS = ("mid", "high"), ("avgpool", "embedding")
BRAIN = "brain_"  # prefix of its columns
RETRIEVAL = "retrieval_"  # prefix of columns of what decoded targets retrieve, which is no score of an image
DECODED = "_decoded"  # suffix of columns of a selection of images (protocol.min_decoding)
OWN_NETWORK = "efficientnet_lite0"
WORDNET, CLIP_TEXT, SENTENCES = "wordnet", "clip_text", "sentence_model"  # what captions are judged by
CONSISTENCIES = ("pixcorr", "ssim", "feature")
ROW = "_row"  # suffix of columns identified row-wise
PER_COLUMN = "ssim_per_column"
SSIM = {"2d": ("ssim",), "per_column": (PER_COLUMN,), "both": ("ssim", PER_COLUMN)}  # columns by protocol.ssim


@dataclass(frozen=True)
class View:
    """How a network sees images: brought to ``via`` pixels first (0: not), then to ``size``, both by one filter.

    The view without a network is that of the protocol's pixel metrics.
    """

    network: str = ""
    size: int = 0
    filter: str = "bilinear"
    antialias: bool = True
    arithmetic: str = "floats"
    via: int = 0


@dataclass(frozen=True)
class Measure:
    """One score of a reconstruction.

    Attributes:
        name: column of tables and key of ``scores.json``.
        kind: one of ``KINDS``. ``pixels``: ``score`` of both images as the protocol's pixel metrics see them; ``pair``:
            ``score`` of both images under the view; of a layer's features ``two_way``: identification, ``distance``:
            1 - correlation with the own stimulus, ``cosine``: with the own stimulus; ``consistency`` of repeats;
            ``brain`` correlation; ``caption``: of the decoded caption, by ``score`` or by the cosine of embeddings.
        view: which network sees the images, and how; of captions what they are judged by.
        layer: whose features are read.
        score: ``module:function`` of two batches (B, 3, H, W) float32 in [0, 1], reconstructions first, that returns
            (B,) values; of captions, of N texts and N lists of reference texts, that returns (N,) values.
        chance: value by chance; None: there is none.
        better: ``higher`` or ``lower``.

    >>> Measure("edges", "pixels", score="my_package.edges:correlation").better
    'higher'
    """

    name: str
    kind: str
    view: View = field(default_factory=View)
    layer: str = ""
    score: str = ""
    chance: float | None = None
    better: str = "higher"

    @property
    def function(self) -> Callable[..., Any]:
        """The function that ``score`` names; its module is loaded now."""
        found: Callable[..., Any] = resolve_name(self.score)
        return found


def _of_layer(name: str, view: View, layer: str, kind: str) -> Measure:
    chance, better = (CHANCE if kind == "two_way" else None), ("lower" if kind == "distance" else "higher")
    return Measure(name, kind, view, layer, chance=chance, better=better)


def _mindeye(name: str, network: str, size: int, layer: str, kind: str) -> Measure:
    return _of_layer(name, View(network, size, antialias=False, via=256), layer, kind)


def _pillow(name: str, network: str, layer: str, kind: str, method: str = "bilinear") -> Measure:
    return _of_layer(name, View(network, 224, filter=method, arithmetic="bytes"), layer, kind)


def _pair(name: str, network: str, size: int, method: str = "bilinear") -> Measure:
    score = f"nd.metrics.features:{network}"
    return Measure(name, "pair", View(network, size, filter=method), score=score, better="lower")


def _caption(name: str, judged_by: str = "", function: str = "") -> Measure:
    return Measure(name, "caption", View(judged_by), score=f"nd.metrics.captions:{function}" if function else "")


def _by_name(*declared: Measure) -> dict[str, Measure]:
    return {measure.name: measure for measure in declared}


# Source of the first six: MindEyeV2 final_evaluations.ipynb and MindEye1 src/Reconstruction_Metrics.py. EfficientNet-B1
# there is torchvision's DEFAULT, the weights V2.
# Source of the next six: brain-diffuser scripts/eval_extract_features.py; `weights=True` there means V1.
# caption_*: MindEye2's scores of captions (nd.metrics.captions says from where).
# clip_b32: MindDiffuser's CLIP similarity (4.3.2: last layer, 512 numbers); the resize is CLIP's own, presumed.
MEASURES = _by_name(
    _mindeye("alexnet2_256", "alexnet", 256, "features.4", "two_way"),
    _mindeye("alexnet5_256", "alexnet", 256, "features.11", "two_way"),
    _mindeye("inception_342", "inception_v3", 342, "avgpool", "two_way"),
    _mindeye("clip_l14_224", "clip_vit_l14", 224, "embedding", "two_way"),
    _mindeye("effnet_b1v2_255", "efficientnet_b1_v2", 255, "avgpool", "distance"),
    _mindeye("swav_224", "swav_resnet50", 224, "avgpool", "distance"),
    _pillow("alexnet2_224_pil", "alexnet", "features.4", "two_way"),
    _pillow("alexnet5_224_pil", "alexnet", "features.11", "two_way"),
    _pillow("inception_224_pil", "inception_v3", "avgpool", "two_way"),
    _pillow("clip_l14_224_pil", "clip_vit_l14", "embedding", "two_way"),
    _pillow("effnet_b1v1_224_pil", "efficientnet_b1_v1", "avgpool", "distance"),
    _pillow("swav_224_pil", "swav_resnet50", "avgpool", "distance"),
    _pillow("clip_b32_cosine_224_pil", "clip_vit_b32", "embedding", "cosine", "bicubic"),
    _mindeye("clip_l14_cosine_224", "clip_vit_l14", 224, "embedding", "cosine"),
    _pair("lpips_256", "lpips", 256),
    _pair("dreamsim_224", "dreamsim", 224, "bicubic"),
    _caption("caption_meteor", WORDNET, "meteor"),
    _caption("caption_rouge1", function="rouge1"),
    _caption("caption_rougeL", function="rouge_l"),
    _caption("caption_clip", CLIP_TEXT),
    _caption("caption_sentence", SENTENCES),
)
PIXELS = _by_name(
    Measure("pixcorr", "pixels", score="nd.metrics.correlation:pixcorr"),
    Measure("ssim", "pixels", score="nd.metrics.ssim:ssim"),
    Measure(PER_COLUMN, "pixels", score="nd.metrics.ssim:ssim_per_column"),
)


@cache
def measures() -> dict[str, Measure]:
    """Every measure that ``protocol.measures`` can name: those of this module and those of other packages."""
    return MEASURES | external_components("nd.measures")


def own_measures(view: View) -> dict[str, Measure]:
    """The three levels and the distance of the protocol's own network under a view."""
    levels = [_of_layer(f"two_way_{level}", view, level, "two_way") for level in LEVELS]
    return _by_name(*levels, _of_layer("feature_distance", view, LEVELS[-1], "distance"))


@cache
def columns() -> dict[str, Measure]:
    """Every column of every protocol by name, in the order of tables."""
    own, named = own_measures(View(OWN_NETWORK)), measures()
    identified = (Measure(name, "two_way", chance=CHANCE) for name in ("two_way_pixels", "label_two_way"))
    pixels, label = identified
    encoded = {level: View(OWN_NETWORK) for level in ENCODED_LEVELS}
    encoded |= {name: one.view for name, one in named.items() if one.layer in ENCODED_LAYERS}
    found = [
        *PIXELS.values(), pixels, *own.values(), label, *named.values(),
        *(Measure(f"consistency_{name}", "consistency", _seen(name)) for name in CONSISTENCIES),
        *(
            Measure(f"consistency_{name}_variance", "consistency", _seen(name), better="lower")
            for name in CONSISTENCIES
        ),
        *(Measure(BRAIN + name, "brain", view) for name, view in encoded.items()),
    ]  # fmt: skip
    by_row = [replace(measure, name=measure.name + ROW) for measure in found if measure.chance]
    every = [*found, *by_row]
    return _by_name(*every, *(replace(measure, name=measure.name + DECODED) for measure in every))


def _seen(consistency: str) -> View:
    return View(OWN_NETWORK) if consistency == "feature" else View()


def measures_of(protocol: ProtocolConfig) -> dict[str, Measure]:
    """Return all measures of a protocol by name: pixel metrics, its own network's at its own size, those it names."""
    found = {name: PIXELS[name] for name in ("pixcorr", *SSIM[protocol.ssim])}
    if protocol.network != "none":
        found |= own_measures(_own_view(protocol))
    return found | {name: measures()[name] for name in protocol.measures}


def encoded_layers(protocol: ProtocolConfig) -> dict[str, Measure]:
    """Return the layers that a protocol computes anyway and from which voxels can be predicted, by name.

    They are ``ENCODED_LEVELS`` of its own network, and its measures that read one of ``ENCODED_LAYERS``; some of them
    stand in ``protocol.brain``.
    """
    levels = ENCODED_LEVELS if protocol.network != "none" else ()
    own = {level: _of_layer(level, _own_view(protocol), level, "distance") for level in levels}
    named = {name: measures()[name] for name in protocol.measures if name in measures()}
    return own | {name: measure for name, measure in named.items() if measure.layer in ENCODED_LAYERS}


def _own_view(protocol: ProtocolConfig) -> View:
    return View(OWN_NETWORK, protocol.network_size, protocol.resize_filter, protocol.resize_antialias)


def caption_measures(protocol: ProtocolConfig) -> dict[str, Measure]:
    """Return the measures of a protocol that judge decoded captions, by name."""
    named = {name: measures()[name] for name in protocol.measures if name in measures()}
    return {name: measure for name, measure in named.items() if measure.kind == "caption"}


def by_view(measures: Mapping[str, Measure]) -> dict[View, dict[str, Measure]]:
    """Group measures by view: one pass of a network serves all of a group.

    Pixel metrics have none, and captions are no images: both are left out.
    """
    groups: dict[View, dict[str, Measure]] = {}
    for name, measure in measures.items():
        if measure.kind not in ("pixels", "caption"):
            groups.setdefault(measure.view, {})[name] = measure
    return groups
