"""The whole configuration as dataclasses, and the base classes of the groups whose fields depend on a choice.

``data``, ``method``, ``target`` and ``mapper`` hold the fields of the chosen source, generator, target and mapper
alone; each declares its own beside its code (``nd.config.components``) in a subclass of what stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nd.config.components import component
from nd.config.fields import opt
from nd.config.groups import (
    BackboneConfig,
    DebugConfig,
    GuidanceConfig,
    LoggerConfig,
    PathsConfig,
    ProtocolConfig,
    TrainerConfig,
    TuneConfig,
)
from nd.config.training import NetworkConfig, TrainingConfig

SCHEMA_VERSION = 3  # part of every run_id; raise it when the meaning of a field changes
ALL = "all"  # extract: every target of the method, in one pass over the stimuli


class Chosen:
    """Base of the groups whose fields depend on a choice.

    Code that belongs to one choice reads that choice's fields, which type checkers cannot know here.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@dataclass(kw_only=True)
class DataConfig(Chosen):
    """Which data set, how it is cut, and where its raw files lie."""

    name: str = opt("scenes", "name of the data set: its prepared files lie in <paths.data>/<name>")
    source: str = opt("scenes", "where the data come from: made here, or the reader of that name", identity=False)
    subjects: list[str] = opt(["subj01", "subj02", "subj03", "subj04"], "subjects of the data set", identity=False)
    split: str = opt("scenes", "named frozen split")
    n_val: int = opt(100, "validation images, cut from the training images by image")
    simulated: bool = opt(True, "voxels come from a simulated brain; every table says so", identity=False)
    variant: str = opt(
        "nd",
        "nd: nothing is fitted on test trials; released: scaling that published code fits on them may be chosen",
        choices=("nd", "released"),
    )
    test_scaling: str = opt(
        "train",
        "statistics that z-score the test voxels: those of training rows, or (variant=released) the test rows' own",
        choices=("train", "own"),
    )
    image_size: int = opt(64, "side of the square stimuli, pixels")
    streams: dict[str, list[str]] = opt({}, "ROIs by stream, beside the built-in early, ventral, lateral and dorsal")
    same_images: str = opt(
        "refuse",
        "images that are trained on under one id and tested under another: refuse them, or allow (and say) them",
        choices=("refuse", "allow"),
    )

    @property
    def transductive(self) -> bool:
        """Whether statistics of test trials take part in scaling; everything made so is marked."""
        return self.test_scaling == "own"


@dataclass(kw_only=True)
class SubjectConfig:
    """Whose voxels."""

    name: str = opt("subj01", "subject")
    roi: str = opt("all", "voxel mask: 'all', an ROI of the prepared file, <stream>_stream, or several joined by '+'")
    sessions: int = opt(0, "first sessions that are trained on and validated with; 0: all. Tests have all trials")


@dataclass(kw_only=True)
class MethodConfig(Chosen):
    """A recipe: which targets are decoded, each how, and what turns them into an image."""

    name: str = opt("neuraldiffuser", "method")
    generator: str = opt("guided_diffusion", "what turns targets into images")
    targets: dict[str, Any] = opt(
        {"z": {}, "c": {}, "g": {}},
        "targets that are decoded, each with what it has of its own: {z: {roi: V1, mapper: {name: ridge}}}; a list"
        " where they have nothing",
        identity=False,  # what it means for each target counts: decodings
    )

    @property
    def n_repeats(self) -> int:
        """Images made per stimulus."""
        return int(getattr(self, "repeats", 1))

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run; 0 where nothing is sampled."""
        return 0

    def guided_steps(self, guidance: GuidanceConfig) -> int:
        """Return how many of the sampled steps are guided."""
        return 0


@dataclass(kw_only=True)
class TargetConfig(Chosen):
    """One target: the features a mapper learns to predict."""

    name: str = opt("z", "target; extract: 'all' for every target of the method")
    dtype: str = opt("float32", "storage type", choices=("float16", "float32"))
    precision: str = opt(
        "float32", "arithmetic of the networks while extracting", choices=("float32", "bfloat16", "float16")
    )


@dataclass(kw_only=True)
class MapperConfig(Chosen):
    """Voxels to one target."""

    name: str = opt("ridge", "mapper")
    variant: str = opt(
        "nd",
        "nd: nothing is fitted on test images; released: arithmetic of published code may be chosen, quirks included",
        choices=("nd", "released"),
    )
    rescale: str = opt(
        "none",
        "spread of the predictions: as fitted; restored to that of the training targets; or (variant=released)"
        " standardised over the test images and given mean and spread of the training targets",
        choices=("none", "train", "test"),
    )
    spread: float = opt(1.0, "factor on predictions' distance to the training targets' mean, > 0", since="predict")

    @property
    def keeps_some(self) -> bool:
        """Whether some columns of the target are left out of the predictions."""
        return getattr(self, "keep", 1.0) < 1


@dataclass(kw_only=True)
class Decoding:
    """How one target of the method is decoded: what the groups and the method's recipe say together."""

    target: TargetConfig
    mapper: MapperConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    roi: str = "all"


def _default(kind: str, name: str) -> Callable[[], Any]:
    """Return what makes the default settings of a component."""
    return lambda: component(kind, name).settings()


@dataclass(kw_only=True)
class Config:
    """Everything a verb needs."""

    data: DataConfig = field(default_factory=_default("source", "scenes"))
    subject: SubjectConfig = field(default_factory=SubjectConfig)
    method: MethodConfig = field(default_factory=_default("generator", "guided_diffusion"))
    target: TargetConfig = field(default_factory=_default("target", "z"))
    mapper: MapperConfig = field(default_factory=_default("mapper", "ridge"))
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
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
        "evaluate images=...: the order they are in where they carry no ids: first_appearance in the subject's trials"
        " (Brain-Diffuser, NeuralDiffuser), or canonical (rising image ids, MindEye2)",
        identity=False,
        choices=("", "first_appearance", "canonical"),
    )
    subset: bool = opt(False, "evaluate images=...: score some of the test images alone", identity=False)  # images_hash
    images_hash: str = opt("", "evaluate images=...: hash of their content; filled in, and where given held against it")
    layout: str = opt(
        "prepared",
        "prepare data=scenes: write the prepared format, or a small tree in the files and codes of a public release",
        identity=False,
        choices=("prepared", "nsd", "mindeye2"),
    )
    rois: list[str] = opt([], "roi: ROIs, or sets joined by '+', that images are made of; empty: all", identity=False)
    table: str = opt("", "table spec of experiments/ that run, table and report work on", identity=False)
    check: bool = opt(False, "table: compare with the spec's expected values and fail when they differ", identity=False)
    deep: bool = opt(False, "doctor: read every file and compare it with what was recorded of it", identity=False)
    dry_run: bool = opt(False, "sweep: list the runs with state and cost, and run nothing", identity=False)
    fail_fast: bool = opt(False, "sweep: begin no further run once one has failed", identity=False)
    decodings: dict[str, Decoding] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    def decoding(self, name: str) -> Decoding:
        """Return how a target is decoded; one that was not composed has the groups as they are and default settings.

        Args:
            name: of the target.

        Returns:
            Its own settings, mapper, network, training and ROI.

        Raises:
            UserError: no such target.
        """
        if name in self.decodings and name != self.target.name:
            return self.decodings[name]
        own = self.target if self.target.name == name else component("target", name).settings()
        return Decoding(
            target=own, mapper=self.mapper, network=self.network, training=self.training, roi=self.subject.roi
        )

    def with_target(self, name: str) -> Config:
        """Return the configuration of ``extract``, ``train`` and ``predict`` for one target of the method.

        Args:
            name: of the target, or ``all``.

        Returns:
            A copy; its overrides say the target too.

        Raises:
            UserError: no such target.
        """
        if name == ALL:
            target = TargetConfig(name=ALL, dtype=self.target.dtype, precision=self.target.precision)
            return replace(self, target=target, overrides=self._overrides_for(ALL))
        return replace(self.decoding_as(self.decoding(name)), overrides=self._overrides_for(name))

    def decoding_as(self, one: Decoding) -> Config:
        """Return the configuration with the groups of one target.

        Args:
            one: of ``decoding``.

        Returns:
            A copy.
        """
        return replace(
            self,
            target=one.target,
            mapper=one.mapper,
            network=one.network,
            training=one.training,
            subject=replace(self.subject, roi=one.roi),
        )

    def _overrides_for(self, name: str) -> list[str]:
        return [*(text for text in self.overrides if not text.startswith("target=")), f"target={name}"]

    @property
    def mappers(self) -> list[MapperConfig]:
        """The mappers of the method's targets."""
        return [self.decoding(name).mapper for name in self.method.targets]

    @property
    def sampled_steps(self) -> int:
        """Steps of the schedule that are run, the last int(steps * strength)."""
        return self.method.sampled_steps

    @property
    def guided_steps(self) -> int:
        """Sampled steps that are guided, the first int(n * eta); 0 where nothing is guided."""
        return self.method.guided_steps(self.guidance)

    @property
    def transductive(self) -> bool:
        """Whether statistics of test images take part, in scaling voxels or predictions; every result is marked."""
        return self.data.transductive or any(mapper.rescale == "test" for mapper in self.mappers)
