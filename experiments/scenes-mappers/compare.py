"""Compare mappers on Scenes (simulated fMRI): trained in two stages, from chance, and ridge, by sessions of training.

    python experiments/scenes-mappers/compare.py                    every comparison, about two hours on one CPU core
    python experiments/scenes-mappers/compare.py --only sessions    or: full, shrinkage, shared, prior, shuffled,
                                                                   one_hour
    python experiments/scenes-mappers/compare.py --only one_hour --set debug=fast    in small, written to debug-runs/

Trains what is missing through `nd train`, predicts the test images of subject 1, and compares predicted with true
targets: no image is made. Retrieval: how often the own target correlates best with the prediction among those of all
test images (chance 1/200), and the reverse (brain retrieval); two-way identification; pattern correlation, of an
image's prediction with its target over columns. All after the training mean is taken off. Intervals are bootstrapped
over images; differences are paired by image and averaged over seeds. Choices of the recipe were made on validation
images; test images are looked at here alone. Writes results.json beside itself, and the learning curves of what was
trained as curve-<target>-<sessions>-<how>.jsonl (of one network for z and c <how> ends in -shared).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.config.application import compose
from nd.data.prepared import mean_betas, open_subject, split_of
from nd.extract import extract
from nd.files import read_json, write_json
from nd.mappers.checkpoint import load, saved_path
from nd.mappers.folds import origin_of, predict_fold
from nd.mappers.network.heads import slices_of
from nd.mappers.two_stage import TwoStage
from nd.metrics.intervals import Interval, bootstrap_interval, paired_difference
from nd.prepare import prepare
from nd.runs.folder import RunFolder
from nd.runs.identity import trained_together
from nd.targets.store import TargetStore, store_path
from nd.train import pretrain_of, train

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
BASE = ["experiment=scenes"]
TRAINED = ["mapper=two_stage"]
CHANCE = ["mapper=two_stage", "training.pretrain=false"]
BOTH = [*CHANCE, "guidance=none", "guidance.kappa=0", "method.targets=[z,c]"]  # what one network may decode at once
RIDGE = ["mapper=ridge"]
VOLUMETRIC = ["mapper=volumetric"]
SEEDS = (42, 43, 44)
BANDS = (0, 5, 10, 25, 50, 100, 200)  # principal components of targets
LEAST_GAIN = 0.02  # below it a component is noise

Row = dict[str, Any]
PerImage = dict[str, NDArray[np.float64]]


def main() -> None:
    """Run what is asked for and add it to the record."""
    options = parsed()
    BASE.extend(options.set)
    cfg = compose(BASE)
    kept = kept_in(cfg) / "results.json"
    record = read_json(kept) if kept.exists() else {}
    prepare(cfg)
    for target in ("z", "c", "g"):
        extract(compose([*BASE, f"target={target}"]))
    for name in options.only or COMPARISONS:
        begun = time.monotonic()
        record[name] = one_hour(options.targets) if name == "one_hour" else COMPARISONS[name]()
        record[name]["minutes"] = round((time.monotonic() - begun) / 60, 1)
        write_json(kept, record)
        print(f"wrote {name} to {kept} after {record[name]['minutes']} minutes")


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(COMPARISONS), default=[])
    parser.add_argument("--targets", nargs="*", choices=("z", "c"), default=["z", "c"], help="of one_hour")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of every run")
    return parser.parse_args()


def kept_in(cfg: Config) -> Path:
    """Where figures are kept: beside this file, but for those in small."""
    folder = HERE if cfg.debug.name == "off" else Path(cfg.paths.results)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- comparisons -----------------------------------------------------------------------------------------------------


def sessions() -> Row:
    """The one-hour question, on c: pretrained, from chance and ridge, with few and with all sessions."""
    found: Row = {}
    for n in (1, 2, 4, 18):
        seeds = SEEDS if n == 1 else SEEDS[:1]
        rows = {name: averaged("c", n, what, seeds) for name, what in METHODS.items()}
        found[str(n)] = compared(rows, [("pretrained", "from chance"), ("pretrained", "ridge")]) | {
            "seeds": list(seeds)
        }
    return found


def full() -> Row:
    """All sessions, c and g: predicted targets, and for c retrieval by the network's contrastive head.

    g is trained without such heads, as for the images of table scenes: they are half of a step's work.
    """
    found: Row = {}
    for target, how in (("c", []), ("g", ["network.projector=false"])):
        rows = {name: averaged(target, 0, [*what, *how]) for name, what in METHODS.items()}
        pairs = [("pretrained", "ridge"), ("from chance", "ridge"), ("pretrained", "from chance")]
        found[target] = compared(rows, pairs)
    heads = {"pretrained": by_heads("c", TRAINED), "ridge": retrieved_by_parts("c", RIDGE)}
    return found | {"c by contrastive heads": compared(heads, [("pretrained", "ridge")])}


def shrinkage() -> Row:
    """Why ridge retrieves better than a network that predicts patterns better: how far components are shrunk.

    Components are those of the training targets; what a mapper makes of each is divided by its gain (regression of
    predicted on true values) over validation images, which ridge is not refitted on here.
    """
    found: Row = {}
    for target, how in (("c", []), ("g", ["network.projector=false"])):
        rows: dict[str, PerImage] = {}
        for name, what in {"pretrained": [*TRAINED, *how], "ridge": [*RIDGE, "mapper.refit=false"]}.items():
            cfg = compose([*BASE, f"target={target}", *what])
            basis_PK = components_of(cfg)
            (shown, true), (held_shown, held_true) = against_truth(cfg, "test"), against_truth(cfg, "val")
            rows[name] = image_scores(shown, true)
            rows[f"{name}, gains undone"] = image_scores(undone(shown, held_shown, held_true, basis_PK), true)
            found[f"{target}, {name}"] = by_band(shown @ basis_PK, true @ basis_PK)
        found[target] = compared(rows, [(f"{name}, gains undone", name) for name in ("pretrained", "ridge")])
    return found


def components_of(cfg: Config) -> NDArray[np.float64]:
    """Leading principal components (P, K) of the training images' targets."""
    store = TargetStore(store_path(cfg))
    values = store.columns(split_of(cfg).folds[0].train, 0, store.size).astype(np.float64)
    values -= values.mean(0)
    variances, vectors = np.linalg.eigh(values @ values.T)
    leading = slice(-1, -1 - min(BANDS[-1], len(values) - 1), -1)
    return np.asarray((values.T @ vectors[:, leading]) / np.sqrt(variances[leading]))


def undone(
    shown: NDArray[Any], held_shown: NDArray[Any], held_true: NDArray[Any], basis_PK: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Predictions (N, P) in the span of components, each over its gain on held-out images, of at least LEAST_GAIN."""
    a, b = held_shown @ basis_PK, held_true @ basis_PK
    gain = np.maximum((a * b).sum(0) / (b**2).sum(0), LEAST_GAIN)
    return np.asarray((shown @ basis_PK / gain) @ basis_PK.T, np.float32)


def by_band(shown_NK: NDArray[np.float64], true_NK: NDArray[np.float64]) -> Row:
    """Mean correlation over images, and spread beside the true one, of bands of components."""
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(shown_NK.T, true_NK.T, strict=True)]
    bands = [slice(a, b) for a, b in itertools.pairwise(BANDS) if a < len(r)]
    spread = [shown_NK[:, band].std() / true_NK[:, band].std() for band in bands]
    return {
        "components": [[band.start, min(band.stop, len(r))] for band in bands],
        "correlation": [round(float(np.mean(r[band])), 3) for band in bands],
        "spread": [round(float(one), 3) for one in spread],
    }


def shared() -> Row:
    """One training for z and c instead of one for each, from chance."""
    found: Row = {}
    for target in ("z", "c"):
        rows = {
            "a network each": averaged(target, 0, BOTH),
            "one network": averaged(target, 0, [*BOTH, "network.share=all"]),
        }
        found[target] = compared(rows, [("one network", "a network each")])
    return found


def prior() -> Row:
    """The diffusion prior on c, trained from chance: the tokens it is given and its three ways of sampling."""
    cfg = compose([*BASE, "target=c", *CHANCE, "network.prior=true"])
    mapper, test, store, train_ids = trained(cfg)
    voxels, mean = mean_betas(open_subject(cfg), test), store.columns(train_ids, 0, store.size).mean(0)
    rows: dict[str, PerImage] = {}
    for way in ("tokens", "mean", "ddim", "released"):
        asked = {"predict": "tokens"} if way == "tokens" else {"predict": "prior", "prior_sampling": way}
        details = {**mapper.details(), "network": {**mapper.details()["network"], **asked}}
        predicted = TwoStage.restore(cfg.mapper, mapper.state(), details).predict(voxels, test)
        rows[way] = image_scores(predicted - mean, store.columns(test, 0, store.size) - mean)
    return compared(rows, [(way, "tokens") for way in ("mean", "ddim", "released")])


def shuffled() -> Row:
    """Control: training images paired with the targets of others."""
    methods = {name: METHODS[name] for name in ("from chance", "ridge")}
    rows = {name: averaged("c", 0, [*what, "control=shuffled_labels"]) for name, what in methods.items()}
    return compared(rows, [])


def one_hour(targets: Sequence[str] = ("z", "c")) -> Row:
    """Voxels by their places or flattened, in the one-hour question: one session of the subject, z and c.

    Where places say what voxels see, what others taught of them holds for a new subject at once.
    """
    methods = {"volumetric": VOLUMETRIC, "volumetric, places exchanged": [*VOLUMETRIC, "mapper.coordinates=shuffled"]}
    methods |= {"volumetric from chance": [*VOLUMETRIC, "training.pretrain=false"]}
    methods |= {"two_stage": TRAINED, "two_stage from chance": CHANCE, "ridge": RIDGE}
    pairs = [("volumetric", name) for name in methods if name != "volumetric"] + [
        ("two_stage", "two_stage from chance")
    ]
    return {
        target: compared({name: averaged(target, 1, what) for name, what in methods.items()}, pairs)
        for target in targets
    }


METHODS = {"pretrained": TRAINED, "from chance": CHANCE, "ridge": RIDGE}
COMPARISONS = {f.__name__: f for f in (sessions, full, shrinkage, shared, prior, shuffled, one_hour)}


def compared(rows: dict[str, PerImage], pairs: list[tuple[str, str]]) -> Row:
    """Means with 95% intervals, and paired differences."""
    scores = {name: {metric: interval(values) for metric, values in row.items()} for name, row in rows.items()}
    differences = {
        f"{a} minus {b}": {metric: difference(rows[a][metric], rows[b][metric]) for metric in rows[a]} for a, b in pairs
    }
    return {"scores": scores, "differences": differences}


def interval(values: NDArray[np.float64]) -> list[float]:
    """Mean, lower and upper end."""
    return ends(bootstrap_interval(values))


def difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> list[float]:
    """Mean difference, lower and upper end."""
    return ends(paired_difference(a, b))


def ends(found: Interval) -> list[float]:
    """As they are recorded."""
    return [round(value, 4) for value in (found.mean, found.lo, found.hi)]


# ---- one mapper ------------------------------------------------------------------------------------------------------


def averaged(target: str, n_sessions: int, overrides: list[str], seeds: tuple[int, ...] = SEEDS[:1]) -> PerImage:
    """Scores per test image (N,), averaged over seeds; ridge has none."""
    used = seeds if "mapper=ridge" not in overrides else seeds[:1]
    runs = [
        scored(compose([*BASE, f"target={target}", f"subject.sessions={n_sessions}", *overrides, f"seed={s}"]))
        for s in used
    ]
    return {metric: np.mean([run[metric] for run in runs], axis=0) for metric in runs[0]}


def scored(cfg: Config) -> PerImage:
    """Train, predict the test images, and score every one of them."""
    scores = image_scores(*against_truth(cfg, "test"))
    keep_curves(cfg)
    return scores


def against_truth(cfg: Config, part: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predicted and true targets (N, P) of the test or val images, less the training mean; trained where missing."""
    folder, subject, split = train(cfg), open_subject(cfg), split_of(cfg)
    store, fold = TargetStore(store_path(cfg)), split.folds[0]
    ids = fold.test if part == "test" else fold.val
    origin = origin_of(cfg, subject, split, 0, store.fingerprint)
    predicted = predict_fold(folder, origin, mean_betas(subject, ids), "nd train", image_ids=ids)
    mean = store.columns(fold.train, 0, store.size).mean(0)
    return predicted.reshape(len(ids), -1) - mean, store.columns(ids, 0, store.size) - mean


def trained(cfg: Config) -> tuple[TwoStage, NDArray[np.int32], TargetStore, NDArray[np.int32]]:
    """The network, trained where missing; test images, true targets, training images."""
    subject, split, store = open_subject(cfg), split_of(cfg), TargetStore(store_path(cfg))
    origin = origin_of(cfg, subject, split, 0, store.fingerprint)
    mapper = load(saved_path(train(cfg), origin), origin, "nd train")
    assert isinstance(mapper, TwoStage)
    return mapper, split.folds[0].test, store, split.folds[0].train


def by_heads(target: str, overrides: list[str]) -> PerImage:
    """Retrieval of every test image by the contrastive heads: cosine similarity, averaged over the target's parts."""
    cfg = compose([*BASE, f"target={target}", *overrides])
    mapper, test, store, train_ids = trained(cfg)
    shown = mapper.projected(mean_betas(open_subject(cfg), test))
    total = np.zeros((len(test), len(test)))
    for part in mapper.network.slices:
        mean = store.columns(train_ids, part.start, part.stop).mean(0)
        total += of_length_1(shown[part.name]) @ of_length_1(store.columns(test, part.start, part.stop) - mean).T
    return retrieval_scores(total)


def retrieved_by_parts(target: str, overrides: list[str]) -> PerImage:
    """Retrieval by the predicted targets, correlation averaged over the target's parts as for the heads."""
    cfg = compose([*BASE, f"target={target}", *overrides])
    subject, split, store = open_subject(cfg), split_of(cfg), TargetStore(store_path(cfg))
    origin = origin_of(cfg, subject, split, 0, store.fingerprint)
    test = split.folds[0].test
    predicted = predict_fold(train(cfg), origin, mean_betas(subject, test), "nd train", image_ids=test)
    mean = store.columns(split.folds[0].train, 0, store.size).mean(0)
    shown, true = predicted.reshape(len(test), -1) - mean, store.columns(test, 0, store.size) - mean
    total = np.zeros((len(test), len(test)))
    for part in slices_of(target, store.shape):
        columns = slice(part.start, part.stop)
        total += unit_rows(shown[:, columns]) @ unit_rows(true[:, columns]).T
    return retrieval_scores(total)


def retrieval_scores(similarity_NN: NDArray[np.float64]) -> PerImage:
    """Both directions of retrieval from similarities of shown rows with true columns."""
    own_N = similarity_NN.diagonal()
    return {
        "retrieval": ((similarity_NN >= own_N[:, None]).sum(1) == 1).astype(float),
        "brain_retrieval": ((similarity_NN >= own_N).sum(0) == 1).astype(float),
    }


def of_length_1(x_NP: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of length 1."""
    return np.asarray(x_NP / np.linalg.norm(x_NP.astype(np.float64), axis=1, keepdims=True))


def image_scores(predicted_NP: NDArray[np.float32], true_NP: NDArray[np.float32]) -> PerImage:
    """Retrieval, brain retrieval, two-way identification and pattern correlation of every image."""
    r_NN = unit_rows(predicted_NP) @ unit_rows(true_NP).T
    own_N, n = r_NN.diagonal(), len(r_NN)
    return retrieval_scores(r_NN) | {
        "identification": (r_NN < own_N[:, None]).sum(1) / (n - 1),
        "pattern_correlation": own_N.astype(float),
    }


def unit_rows(x_NP: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows less their mean, of length 1."""
    centred = x_NP.astype(np.float64) - x_NP.mean(1, keepdims=True, dtype=np.float64)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def keep_curves(cfg: Config) -> None:
    """Copy the learning curves of the first seed beside this file."""
    if cfg.mapper.name != "two_stage" or cfg.seed != SEEDS[0]:
        return
    for stage in (cfg, pretrain_of(cfg)) if cfg.training.pretrain else (cfg,):
        curve = RunFolder.open(stage, "train").path / "training" / "fold-00-curve.jsonl"
        shutil.copyfile(curve, kept_in(cfg) / curve_name(cfg, stage))


def curve_name(cfg: Config, stage: Config) -> str:
    """What the curve of a stage is called: no two trainings that are compared have the same name."""
    kind = "others" if stage is not cfg else "pretrained" if cfg.training.pretrain else "from-chance"
    kind += "-shuffled" if cfg.control == "shuffled_labels" else ""
    kind += "-shared" if len(trained_together(stage)) > 1 else ""
    return f"curve-{cfg.target.name}-{stage.subject.sessions or 'all'}-{kind}.jsonl"


if __name__ == "__main__":
    main()
