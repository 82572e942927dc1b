"""Train the small instance-conditioned generator of Scenes: see README.md for the command and what it is.

Images are drawn here, of another world than the experiment's, so that none of its stimuli is ever trained on. An
interrupted run goes on from its work file; `--quick` does all of it in seconds, for tests.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.tower import BlockFeatures
from nd.config import BackboneConfig
from nd.config.application import compose
from nd.files import atomic_path
from nd.generate.ic_gan.network import Generator, Shape
from nd.scenes.draw import draw_many
from nd.targets.base import Items
from nd.targets.components import InstanceTarget
from nd.targets.instance import InstanceFeatures

log = logging.getLogger("scenes-instance-generator")

WORLD_SEED = 2  # the experiment's brains look at the world of seed 7, the backbone was trained on that of seed 1
BLOCKS = (0, 2, 4)  # of the image tower, whose features an image should share with the one it stands for
AT_ONCE = 256  # images drawn and embedded together
KEEP_EVERY = 100  # iterations between two states of the work file


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained for how long."""

    images: int = 20_000
    iterations: int = 2500
    batch: int = 32
    tries: int = 3  # noises of an image, of which the nearest result is trained
    channels: tuple[int, ...] = (192, 192, 96, 48, 24)
    learning_rate: float = 5e-4
    average: float = 0.999  # of the weights that are written
    features: float = 0.5  # weight of the distance in features beside that of pixels


QUICK = Recipe(images=16, iterations=3, batch=4, tries=2, channels=(8, 8, 8, 8, 8), average=0.5)


class Distance:
    """How far images are from those they stand for, each by itself: in pixels, and in features of the tower."""

    def __init__(self, backbone: Backbone, true_BCHW: Tensor, weight: float) -> None:
        """Look at the images in [-1, 1] that others will stand for, once.

        Args:
            backbone: whose image tower says what the images have in common.
            true_BCHW: in [-1, 1].
            weight: of the features.
        """
        self.backbone, self.true, self.weight = backbone, true_BCHW, weight
        self.blocks = BlockFeatures(backbone.tower, BLOCKS)
        with torch.no_grad():
            self.features = self._features(true_BCHW)

    def __call__(self, made_BCHW: Tensor) -> Tensor:
        """Return (B,) of images in [-1, 1], in the order of those they stand for."""
        pixels_B = (made_BCHW - self.true).abs().flatten(1).mean(1)
        pairs = zip(self._features(made_BCHW), self.features, strict=True)
        features_B = sum(((a - b).square().flatten(1).mean(1) / b.var()) for a, b in pairs) / len(BLOCKS)
        return pixels_B + self.weight * features_B

    def _features(self, images_BCHW: Tensor) -> list[Tensor]:
        return self.blocks(self.backbone.tower_input((images_BCHW + 1) / 2))


def data(backbone: Backbone, n_images: int) -> tuple[NDArray[np.uint8], Tensor]:
    """Images (N, H, W, 3) uint8 and their instance features (N, D)."""
    extract = InstanceFeatures(backbone, InstanceTarget())
    images, found = [], []
    for start in range(0, n_images, AT_ONCE):
        ids = np.arange(start, min(start + AT_ONCE, n_images), dtype=np.int32)
        images.append(np.asarray(draw_many(WORLD_SEED, ids)))
        found.append(extract(Items(ids, images[-1])))
    return np.concatenate(images), torch.from_numpy(np.concatenate(found))


def step(network: Generator, distance: Distance, h_BD: Tensor, tries: int, random: torch.Generator) -> Tensor:
    """Return the mean distance of the nearest of some tries at every image; its gradient trains that try alone.

    Implicit maximum likelihood (Li, Peng & Malik 2020): every image draws the nearest sample to itself, so that noise
    keeps a meaning where regression would give the mean of all images with such features.
    """
    noise_KBN = torch.randn(tries, len(h_BD), network.shape.noise, generator=random)
    with torch.no_grad():
        apart_KB = torch.stack([distance(made(network, noise_BN, h_BD)) for noise_BN in noise_KBN])
    nearest_BN = noise_KBN[apart_KB.argmin(0), torch.arange(len(h_BD))]
    return distance(made(network, nearest_BN, h_BD)).mean()


def made(network: Generator, noise_BN: Tensor, h_BD: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1], computed in bfloat16, which takes a third of the time on newer CPUs."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images_BCHW: Tensor = network(noise_BN, h_BD)
    return images_BCHW.float()


def fit(backbone: Backbone, recipe: Recipe, work: Path) -> Generator:
    """Train, going on from the work file where there is one; returns the averaged generator."""
    images, h = data(backbone, recipe.images)
    torch.manual_seed(0)
    network = Generator(Shape(recipe.channels, 16, h.shape[1], 64, attention=1)).train()
    network = network.to(memory_format=torch.channels_last)  # convolutions on CPUs: a third faster
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    adam = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.iterations)
    parts = {"network": network, "average": average, "adam": adam, "schedule": schedule}
    begun = resume(parts, work)
    since = time.process_time()
    for iteration in range(begun, recipe.iterations):
        random = torch.Generator().manual_seed(iteration)  # the same batches whether resumed or not
        rows = torch.randint(len(images), (recipe.batch,), generator=random)
        true = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = step(network, Distance(backbone, true, recipe.features), h[rows], recipe.tries, random)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        average.update_parameters(network)
        if (iteration + 1) % KEEP_EVERY == 0 or iteration + 1 == recipe.iterations:
            cost = (time.process_time() - since) / (iteration + 1 - begun)
            log.info("%d of %d: distance %.4f, %.2f CPU s each", iteration + 1, recipe.iterations, loss.item(), cost)
            with atomic_path(work) as temporary:
                torch.save(
                    {name: part.state_dict() for name, part in parts.items()} | {"done": iteration + 1}, temporary
                )
    found: Generator = average.module.eval()
    return found


def resume(parts: dict[str, torch.nn.Module], work: Path) -> int:
    """Bring everything to the state of the work file; returns the iterations done."""
    if not work.is_file():
        return 0
    state = torch.load(work, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["done"])


def main(given: Sequence[str] | None = None) -> None:
    """Train and write the generator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the generator, .safetensors")
    parser.add_argument("--work", type=Path, required=True, help="where an interrupted training goes on")
    parser.add_argument("--quick", action="store_true", help="seconds instead of hours; the result means nothing")
    chosen = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config: BackboneConfig = compose(["experiment=scenes"]).backbone
    network = fit(load_backbone(config), QUICK if chosen.quick else Recipe(), chosen.work)
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(chosen.out) as temporary:
        save_file(state, temporary)
    log.info("wrote %s, %.1f MB", chosen.out, chosen.out.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
