"""The protocol group: how images are scored."""

from __future__ import annotations

from dataclasses import dataclass

from nd.config.fields import opt


@dataclass(kw_only=True)
class ProtocolConfig:
    """How images are scored: named, versioned, never mixed in one column."""

    name: str = opt(
        "scenes",
        "protocol",
        choices=("scenes", "digits69", "nd", "brain_diffuser", "mindeye1", "mindeye2", "minddiffuser"),
    )
    version: int = opt(1, "version of the protocol")
    # ---- the test set
    split: str = opt(
        "", "split whose test images the protocol is defined on; empty: any", choices=("", "nsd982", "nsd1000")
    )
    n_images: int = opt(0, "number of test images the protocol is defined on; 0: any")
    aggregation: str = opt(
        "each",
        "repeats of an image: each scored and the scores averaged; the first alone; the best by each metric, a "
        "ceiling; or their mean picture",
        choices=("each", "first", "best", "pixel_mean"),
    )
    # ---- pixels
    picture_size: int = opt(0, "side to which images are brought before the pixel metrics' own resize; 0: as they are")
    image_size: int = opt(64, "side at which pixel metrics are computed")
    resize_filter: str = opt("bilinear", "filter where images have another size", choices=("bilinear", "bicubic"))
    resize_antialias: bool = opt(True, "low-pass before shrinking; never left to a library's default")
    resize_arithmetic: str = opt(
        "floats", "resized as floats, or by Pillow as bytes (always with antialias)", choices=("floats", "bytes")
    )
    ssim: str = opt(
        "2d",
        "2-D windows on grey images, or the 1-D windows per column of scikit-image 0.17 with multichannel=True",
        choices=("2d", "per_column"),
    )
    pixel_identification: bool = opt(True, "also identify by the pixels themselves")
    # ---- identification
    identification: str = opt(
        "column",
        "column: one reconstruction among all stimuli; row: one stimulus among all reconstructions. Ties fail in both",
        choices=("column", "row"),
    )
    label_identification: bool = opt(False, "also identify within images of the same class label")
    # ---- networks
    network: str = opt(
        "efficientnet_lite0",
        "network of the three feature levels; 'none' leaves them out",
        choices=("efficientnet_lite0", "none"),
    )
    network_size: int = opt(128, "side of the images the network sees")
    measures: list[str] = opt([], "further measures by name (nd/metrics/measures.py), each a network, layer and size")
    random_weights: bool = opt(False, "tests and benchmarks only: networks with random weights; changes the protocol")
    weights: str = opt("", "folder of the measures' networks, <network>.pth or .safetensors", identity=False, path=True)
    brain: list[str] = opt(
        [],
        "brain correlation: layers from which an encoder fitted on training images predicts the subject's voxels; of "
        "the protocol's own network mid and high, of its measures those with a pooled layer, by their names",
    )
    # ---- intervals
    n_boot: int = opt(2000, "bootstrap resamples of the images")
