"""`nd reconstruct`: decoded (or, with features=oracle, true) targets to images.

Writes images.h5 into the run folder: images (N, R, H, W, 3) uint8 RGB, image_id (N,) int32 in rising order, where the
generator decodes a caption of each image caption (N,) text, and the attributes oracle, seed, part, generator, control,
simulated and transductive.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nd.config import Config
from nd.config.application import verb
from nd.errors import UserError
from nd.launch import is_rank_zero
from nd.processes import run_in_processes, starts_processes
from nd.runs.folder import RunFolder, found
from nd.runs.identity import generator_of, reads_predictions

if TYPE_CHECKING:
    from nd.generate.inputs import FeatureSource
    from nd.generate.parts import Parts
    from nd.generate.plan import Plan

log = logging.getLogger(__name__)


def reconstruct(cfg: Config) -> Path:
    """Make the images of one part of a data set; returns the run folder. Images that are finished are kept."""
    folder = RunFolder.open(cfg, "reconstruct")
    if starts_processes(cfg.trainer) and not folder.done:
        run_in_processes("reconstruct", cfg)
        return folder.path
    return reconstruct_together([cfg])[0]


def reconstruct_together(cfgs: Sequence[Config]) -> list[Path]:
    """Make the images of configurations that differ in fields alone whose runs are made together (for guided
    diffusion guidance.kappa and eta); returns their run folders.

    What the points of such a sweep have in common is sampled once; the images are those each gives alone.
    """
    from nd.generate.inputs import part_ids

    entry = generator_of(cfgs[0])
    targets = list(dict.fromkeys(name for cfg in cfgs for name in entry.wants(cfg)))
    source, inputs = feature_source(cfgs[0], targets)
    runs = [(cfg, RunFolder.open(cfg, "reconstruct"), own_inputs(inputs, entry.wants(cfg))) for cfg in cfgs]
    left = []
    for cfg, folder, mine in runs:
        if folder.is_done(mine):
            print(f"{folder.path} is finished; nothing to do")
        else:
            left.append((cfg, folder, mine))
    image_ids = part_ids(cfgs[0])[: cfgs[0].debug.limit_images or None]
    if left:
        for target in targets:
            source.rows(target, image_ids[:1])  # a missing target should be known before anything is written
        write([(cfg, folder.writing(cfg, mine)) for cfg, folder, mine in left], source, targets, image_ids)
    return [folder.path for _, folder, _ in runs]


def write(
    runs: Sequence[tuple[Config, AbstractContextManager[Path]]],
    source: FeatureSource,
    targets: Sequence[str],
    image_ids: list[int],
) -> None:
    """Make the images of some runs inside their folders; a run whose images failed does not take others with it.

    Raises:
        UserError: of the first run with images that could not be made, once all runs are finished.
    """
    with ExitStack() as making:
        paths = [making.enter_context(context) for _, context in runs]
        problems = make_images([cfg for cfg, _ in runs], source, targets, image_ids, paths)
        making.pop_all()  # from here each run ends by itself, well or not
    for (_, context), problem in zip(runs, problems, strict=True):
        with suppress(UserError):
            context.__exit__(type(problem) if problem else None, problem, None)
    for problem in problems:
        if problem:
            raise problem


def sweeps(cfgs: Sequence[Config]) -> list[list[Config]]:
    """Return the groups of two or more configurations that differ in fields alone whose runs are made together."""
    groups: dict[str, list[Config]] = {}
    for cfg in cfgs:
        fields = generator_of(cfg).together
        if fields and not starts_processes(cfg.trainer):
            groups.setdefault(repr(_without(cfg, fields)), []).append(cfg)
    return [group for group in groups.values() if len(group) > 1]


def _without(cfg: Config, fields: Sequence[str]) -> Config:
    """Return the configuration with some fields (dotted) emptied, and no overrides."""
    for key in fields:
        group, _, name = key.partition(".")
        cfg = replace(cfg, **{group: replace(getattr(cfg, group), **{name: None})})
    return replace(cfg, overrides=[])


def sample_sweeps(cfgs: Sequence[Config]) -> None:
    """Sample every sweep over kappa and eta among some configurations; what fails is left to its own job to report."""
    for group in sweeps(cfgs):
        log.info("sampling %d points of guidance together", len(group))
        sound = [folder for cfg in group if not (folder := RunFolder.open(cfg, "reconstruct")).failed]
        with suppress(UserError):
            try:
                reconstruct_together(group)
            except Exception:
                for folder in sound:
                    folder.take_back()
                raise


def own_inputs(inputs: dict[str, str], targets: Sequence[str]) -> dict[str, str]:
    """Return the inputs of one of several runs: of true targets those that it wants."""
    return {name: value for name, value in inputs.items() if name in ("predictions", *(f"target {t}" for t in targets))}


def feature_source(cfg: Config, targets: Sequence[str]) -> tuple[FeatureSource, dict[str, str]]:
    """Return where a generator reads its targets and the fingerprints of what lies there, for the manifest.

    Raises:
        UserError: targets are absent; or decoded by mappers that learned from features of other weights than these.
    """
    from nd.generate.inputs import PredictedFeatures, TrueFeatures
    from nd.targets.store import TargetStore, store_path

    if cfg.features == "oracle" or not targets:
        stores = {name: store_path(cfg, name) for name in targets}
        return TrueFeatures(stores), {f"target {name}": TargetStore(path).fingerprint for name, path in stores.items()}
    run = found(cfg, "predict")
    for name in targets:
        if (training := RunFolder.open(cfg.with_target(name), "train")).done:  # else there is nothing to compare with
            training.is_done()
    return PredictedFeatures(run.output("predictions.h5")), {"predictions": run.fingerprint}


def make_images(
    cfgs: Sequence[Config], source: FeatureSource, targets: Sequence[str], image_ids: list[int], paths: Sequence[Path]
) -> list[UserError | None]:
    """Generate what is missing, on all devices, and merge it to images.h5 in each run's folder.

    Returns:
        For each run what was wrong with images that could not be made; all others are made and kept by then.
    """
    from nd.generate.module import Work, run_work
    from nd.generate.parts import Parts, partition, record_execution, unfinished

    cfg, begun = cfgs[0], time.monotonic()
    runs = [Parts(path / "parts") for path in paths]
    missing = {i for parts in runs for i in set(image_ids) - parts.finished()}
    batches = partition(image_ids, max(1, cfg.trainer.batch_size // cfg.method.n_repeats))
    if len(missing) < len(image_ids):
        log.info("%d of %d images are there already", len(image_ids) - len(missing), len(image_ids))
    entry = generator_of(cfg)
    alike: dict[Plan | None, list[int]] = {}
    for k, parts in enumerate(runs):
        alike.setdefault(parts.plan, []).append(k)  # runs that were interrupted go on by the plans they began with
    for mine in alike.values():
        for k in mine:
            record_execution(paths[k], together=len(mine))  # whose time is that of all of them
        if left := unfinished(batches, set.intersection(*(runs[k].finished() for k in mine))):
            build = functools.partial(entry.build, [cfgs[k] for k in mine])
            work, sizes = Work(left, source, targets), [len(batch) for batch in batches]
            run_work(build, work, [runs[k] for k in mine], cfg.trainer, sizes)
    if not is_rank_zero(cfg.trainer):
        return [None] * len(runs)
    rate = len(missing) * len(runs) / (time.monotonic() - begun)
    return [finish(one, parts, image_ids, rate) for one, parts in zip(cfgs, runs, strict=True)]


def finish(cfg: Config, parts: Parts, image_ids: list[int], rate: float) -> UserError | None:
    """Merge one run's images, or say what is wrong with those that are missing."""
    failed = parts.failures()
    if failed:
        return UserError(
            f"{len(failed)} of {len(image_ids)} images could not be made. {failed[0]}. The others are kept, and "
            "images.h5 is written once all are there. Check that the decoded targets are finite and that "
            "backbone.dtype can hold them; where images are guided, lower guidance.kappa or set "
            "guidance.normalise=true."
        )
    path = parts.folder.parent / "images.h5"
    parts.merge(image_ids, path, attributes(cfg))
    parts.remove()
    print(f"wrote {len(image_ids)} images at {path} ({rate:.2f} images/s)")
    return None


def attributes(cfg: Config) -> dict[str, str | int | bool]:
    """Return what a reader of images.h5 must know without its run folder."""
    return {
        "oracle": cfg.features == "oracle" and bool(generator_of(cfg).wants(cfg)),
        "seed": cfg.seed,
        "part": cfg.part,
        "generator": cfg.method.generator,
        "control": cfg.control,
        "simulated": cfg.data.simulated,
        "transductive": cfg.transductive and reads_predictions(cfg),
    }


main = verb(reconstruct, together=sample_sweeps)

if __name__ == "__main__":
    main()
