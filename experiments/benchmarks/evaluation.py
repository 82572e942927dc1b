"""MindEye2's whole evaluation with full-size networks: seconds per network, of identification, and peak memory.

    command   python experiments/benchmarks/evaluation.py
    time      one and a half hours on 2 CPU cores, of which CLIP takes most; --images 32 takes 3 minutes
    memory    3.9 GB for 1,000 images, most of it AlexNet's features of stimuli and images
    figures   1,000 stimuli and as many images, 2 threads beside other work (seconds, of processor time in brackets):
              AlexNet 22 (39), Inception-v3 247 (445), CLIP 4,995 (4,380), EfficientNet-B1 251 (131), SwAV 406 (237);
              scores made of the features at most 3; identification of 1,000 x 139,968 takes 1.6 s on free cores, 2.9
              beside other work, where a plain product took 2.4

Weights are random: times do not depend on them, and none need be downloaded. Images are simulated (uniform noise of
256 px). Features of the stimuli are computed once and kept, so a second method costs half.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rows import Asked, Row, in_turns, peak_gb, peak_row
from skimage.metrics import structural_similarity

from nd.config import ProtocolConfig
from nd.files import write_json
from nd.metrics.features import RANDOM, features, loaded
from nd.metrics.identification import two_way_identification
from nd.metrics.images import to_grey
from nd.metrics.measures import by_view, measures_of
from nd.metrics.repeats import repeats_of
from nd.metrics.score import by_pixels, one_measure
from nd.metrics.ssim import ssim

PROTOCOLS = Path(__file__).parents[2] / "conf" / "protocol"
ALEXNET2 = 139_968  # numbers of AlexNet(2) at 224 px
SIDE = 256


def main() -> None:
    """Time every part and print what was found as JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    protocol = read_protocol(given.protocol)
    draw = np.random.default_rng(0)
    true, pred = (draw.integers(0, 256, (given.images, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2))
    found: dict[str, Any] = {"protocol": given.protocol, "images": given.images, "threads": given.threads}
    found |= {"machine": platform.machine(), "torch": torch.__version__}
    found["pixels"] = rate(given.images, lambda: by_pixels(repeats_of(pred[:, None], "first"), true, protocol))
    found["networks"] = {
        view.network: one_network(true, pred, view, measures, protocol)
        for view, measures in by_view(measures_of(protocol)).items()
    }
    found["two_way"] = two_way(given.two_way_images)
    found["peak_gb"] = peak_gb()
    print(json.dumps(found, indent=2))
    if given.out:
        write_json(Path(given.out), found)


def measure(asked: Asked) -> list[Row]:
    """Return the rows of SSIM against scikit-image, identification against a plain product, and of every network."""
    rows = [ssim_row(asked), identification_row(asked)]
    protocol = read_protocol(asked.pick("scenes", "mindeye2"))
    n = 2
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    for view in by_view(measures_of(protocol)):
        loaded(view.network, RANDOM)
        (taken,) = in_turns(asked.pick(1, 3), asked.seconds, partial(features, images, view, RANDOM), warm=False)
        case = f"features of images of {SIDE} px by {view.network}"
        rows.append(Row(case=case, unit="images/s", ours=[n / s for s in taken], more=True, clock=asked.clock))
        print(rows[-1], flush=True)
    return [*rows, peak_row()]


def ssim_row(asked: Asked) -> Row:
    """Return the row of SSIM of many images at once against scikit-image's, image by image."""
    n = asked.pick(2, 50)
    x, y = torch.rand(2, n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    grey = [to_grey(one.double()).numpy() for one in (x, y)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    ours, theirs = in_turns(
        asked.pick(1, 5), asked.seconds, lambda: ssim(x, y),
        lambda: [structural_similarity(a, b, **settings) for a, b in zip(*grey, strict=True)],
    )  # fmt: skip
    return Row(case=f"SSIM of {n} images of {SIDE} px", unit="s", ours=ours, peer="scikit-image", theirs=theirs)


def identification_row(asked: Asked) -> Row:
    """Return the row of two-way identification against the product it cannot do without."""
    n, width = asked.pick((20, 500), (500, ALEXNET2))
    true, pred = torch.rand(2, n, width, generator=torch.Generator().manual_seed(0))
    ours, theirs = in_turns(
        asked.pick(1, 5), asked.seconds, lambda: two_way_identification(pred, true), lambda: true @ pred.T
    )
    return Row(case=f"two-way identification, {n} x {width}", unit="s", ours=ours, peer="torch.mm alone", theirs=theirs)


def read_protocol(name: str) -> ProtocolConfig:
    """Return a protocol of conf/protocol."""
    return ProtocolConfig(**yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text(encoding="utf-8")))


def one_network(true: Any, pred: Any, view: Any, measures: dict[str, Any], protocol: ProtocolConfig) -> dict[str, Any]:
    """Seconds to build it, its passes over stimuli and images, and the scores made of them."""
    found = {"build_s": seconds(lambda: loaded(view.network, RANDOM))}
    sides: list[Any] = []
    cpu = time.process_time()
    found |= rate(2 * len(true), lambda: sides.extend(features(images, view, RANDOM) for images in (true, pred)))
    found["cpu_s"] = round(time.process_time() - cpu, 1)  # what it takes however busy the machine is
    start = time.perf_counter()
    for measure in measures.values():
        one_measure(measure.kind, sides[1][measure.layer], sides[0][measure.layer], protocol.identification)
    found |= {"scores_s": round(time.perf_counter() - start, 2), "peak_gb": peak_gb()}
    print(view.network, found, file=sys.stderr, flush=True)
    return found


def two_way(n_images: int) -> dict[str, Any]:
    """Seconds of identification by AlexNet(2) alone, and of the plain product of the same matrices."""
    draw = torch.Generator().manual_seed(0)
    true, pred = (torch.rand(n_images, ALEXNET2, generator=draw) for _ in range(2))
    found = {"images": n_images, "features": ALEXNET2, "plain_product_s": seconds(lambda: true @ pred.T)}
    cpu = time.process_time()
    found["seconds"] = seconds(lambda: two_way_identification(pred, true))
    return found | {"cpu_s": round(time.process_time() - cpu, 2), "peak_gb": peak_gb()}


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 2)


def rate(n_images: int, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds and images per second."""
    taken = seconds(work)
    return {"seconds": taken, "images_per_s": round(n_images / max(taken, 0.01), 2)}


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default="mindeye2", help="a protocol of conf/protocol")
    parser.add_argument("--images", type=int, default=1000, help="pictures, and as many stimuli")
    parser.add_argument("--two-way-images", type=int, default=1000, help="for identification timed alone")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument("--out", default="", help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
