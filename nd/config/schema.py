"""The whole configuration as dataclasses: one per group, one comment per field.

``opt`` attaches to each field the text that ``nd VERB --help`` prints, the allowed values, and whether the field is
part of a run's identity. Identity fields decide *what* is computed and are hashed into ``run_id``; the others
(devices, batch sizes, paths, loggers) only decide *how* and never change an id.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nd.config.data_group import DataConfig
from nd.config.fields import opt
from nd.config.mapper_group import MapperConfig, NetworkConfig, TrainingConfig
from nd.config.protocol_group import ProtocolConfig
from nd.config.steps import share_of
from nd.config.target_group import TARGETS, TargetConfig

SCHEMA_VERSION = 1  # part of every run_id; raise it when the meaning of a field changes


@dataclass(kw_only=True)
class SubjectConfig:
    """Whose voxels."""

    name: str = opt("subj01", "subject")
    roi: str = opt("all", "voxel mask: 'all' or the name of an ROI of the prepared file")
    sessions: int = opt(
        0, "first sessions whose training and validation trials are used; 0: all. Test images keep all their trials"
    )


@dataclass(kw_only=True)
class MethodConfig:
    """A recipe: which targets are decoded and how they become an image."""

    name: str = opt("neuraldiffuser", "method")
    variant: str = opt(
        "nd",
        "whose arithmetic the sampler follows: ours, the published description's, or the released code's to the letter",
        choices=("nd", "paper", "released"),
    )
    generator: str = opt(
        "guided_diffusion",
        "what turns targets into images",
        choices=("guided_diffusion", "pixels", "vae", "mean_image", "nearest_image", "random_image"),
    )
    targets: list[str] = opt(["z", "c", "g"], "targets the method decodes", choices=TARGETS)
    steps: int = opt(50, "DDIM steps of the full schedule")
    strength: float = opt(0.75, "share of the schedule that is run: int(steps * strength) steps, in (0, 1]")
    cfg_scale: float = opt(7.5, "classifier-free guidance scale, >= 1")
    sag_scale: float = opt(0.0, "self-attention guidance scale, >= 0; 0 switches it off. One more UNet pass per step")
    repeats: int = opt(5, "images sampled per stimulus, each from its own noise")


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
    tiny_vae: str = opt("", "guidance.decoder=tiny: diffusers AutoencoderTiny, hub id or local folder", identity=False)
    image_size: int = opt(64, "side of the square images it makes, pixels")
    tower_size: int = opt(64, "side of the square images the image tower sees, pixels")
    tower_mean: list[float] = opt(
        [0.485, 0.456, 0.406], "mean subtracted before the image tower, per RGB channel in [0, 1]"
    )
    tower_std: list[float] = opt(
        [0.229, 0.224, 0.225], "standard deviation divided by before the image tower, per RGB channel"
    )
    tower_filter: str = opt("bilinear", "how images are resized for the image tower", choices=("bilinear", "bicubic"))
    tower_antialias: bool = opt(True, "low-pass before shrinking for the image tower; library defaults differ")
    dtype: str = opt("float32", "arithmetic of sampling", choices=("float32", "bfloat16", "float16"))


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
        2.0, "mapper=two_stage: least time between checkpoints of training, taken at ends of epochs", identity=False
    )
    progress: bool = opt(True, "show a progress bar with rate and time left", identity=False)


@dataclass(kw_only=True)
class LoggerConfig:
    """Where metrics are shown; off unless asked for."""

    name: str = opt("none", "logger", identity=False, choices=("none", "csv", "wandb"))
    project: str = opt("nd", "W&B project", identity=False)
    mode: str = opt("offline", "W&B mode", identity=False, choices=("offline", "online", "disabled"))


@dataclass(kw_only=True)
class PathsConfig:
    """Where files are written."""

    root: str = opt(".", "folder the others lie in", identity=False)
    data: str = opt("${paths.root}/data", "prepared data", identity=False)
    cache: str = opt("${paths.root}/cache", "target stores", identity=False)
    runs: str = opt("${paths.root}/runs", "run folders", identity=False)
    results: str = opt("${paths.root}/results", "tables and reports", identity=False)


@dataclass(kw_only=True)
class DebugConfig:
    """Shrunk runs for tests and first tries."""

    name: str = opt("off", "debug preset", identity=False, choices=("off", "fast"))
    limit_images: int = opt(0, "reconstruct only this many test images; 0 means all")


@dataclass(kw_only=True)
class Config:
    """Everything a verb needs."""

    data: DataConfig = field(default_factory=DataConfig)
    subject: SubjectConfig = field(default_factory=SubjectConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    seed: int = opt(42, "seed of the sampler's noise and of training; never of data or splits")
    part: str = opt("test", "images that are predicted and reconstructed", choices=("val", "test"))
    features: str = opt(
        "predicted", "decoded targets, or the true ones (ceiling; marked everywhere)", choices=("predicted", "oracle")
    )
    control: str = opt(
        "none",
        "control: shuffle the voxels over the images before predicting, or the targets that mappers learn from",
        choices=("none", "shuffled_voxels", "shuffled_labels"),
    )
    images: str = opt(
        "",
        "evaluate: reconstructions made elsewhere, instead of a reconstruct run's: a folder of .png or .jpg named"
        " <image id>[_<repeat>], or .h5, .npy or .pt",
        identity=False,
        path=True,
    )
    order: str = opt(
        "",
        "evaluate images=...: the order they are in where they carry no ids: canonical (rising image ids), or"
        " first_appearance in the subject's trials",
        identity=False,
        choices=("", "canonical", "first_appearance"),
    )
    images_hash: str = opt("", "evaluate images=...: hash of their content; filled in, and where given held against it")
    layout: str = opt(
        "prepared",
        "prepare data=scenes: write the prepared format, or a small tree in the files and codes of a public release",
        identity=False,
        choices=("prepared", "nsd", "mindeye2"),
    )
    table: str = opt("", "table spec of experiments/ that run, table and report work on", identity=False)
    check: bool = opt(False, "table: compare with the spec's expected values and fail when they differ", identity=False)
    overrides: list[str] = opt([], "what was given on the command line; filled in, never set", identity=False)

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return share_of(self.method.steps, self.method.strength)

    @property
    def guided_steps(self) -> int:
        """Sampled steps that are guided, the first int(n * eta); 0 where nothing is guided."""
        on = self.method.generator == "guided_diffusion" and self.guidance.kappa > 0
        return share_of(self.sampled_steps, self.guidance.eta) if on else 0

    @property
    def transductive(self) -> bool:
        """Whether statistics of test images take part, in scaling voxels or predictions; every result is marked."""
        return self.data.transductive or self.mapper.rescale == "test"
