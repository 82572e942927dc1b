"""Decoded instance features to images, R per image, by a generator whose weights the user has.

B images, R repeats, S = B * R samples, F instance features, N noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.backbone.reading import freeze, reading
from nd.config import Config
from nd.errors import UserError
from nd.files import located
from nd.generate.base import Reconstructions, not_finite, to_uint8
from nd.generate.ic_gan.network import Generator, Shape
from nd.generate.plan import in_parts
from nd.targets.noise import keyed_normal

AT_ONCE = 8  # samples in a pass: 256 px take 0.3 GB each
NAMED = 3  # tensors that a message names
URL = "https://dl.fbaipublicfiles.com/ic_gan/icgan_biggan_imagenet_res256.tar.gz"
REMEDY = (
    f"Published: G_ema_best<n>.pth in {URL} (360 MB, CC-BY-NC; of both the one whose state_dict_best<n>.pth has the "
    "lower best_FID). For Scenes: experiments/scenes-instance-generator/train.py makes one."
)


def load_generator(path: str | Path, device: torch.device) -> Generator:
    """Read a generator in eval mode; only tensors are unpickled.

    Args:
        path: .pth or .safetensors; its sizes are those of its tensors.
        device: where it goes.

    Raises:
        UserError: there is no file, it is damaged, or its tensors are not those of such a generator.
    """
    file = located(path)
    if not str(path) or not file.is_file():
        raise UserError(f"method.weights={path or chr(39) * 2}: no such file. Generator ic_gan needs weights. {REMEDY}")
    with reading("the weights of generator ic_gan", file):
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = {name: value.float() for name, value in load_file(file).items()}
        else:
            state = dict(torch.load(file, map_location="cpu", weights_only=True))
    try:
        shape = Shape.of(state)
    except (KeyError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{file} holds {len(state)} entries, but none of {error}: no instance-conditioned BigGAN without classes. "
            f"{REMEDY}"
        ) from error
    return freeze(_filled(Generator(shape), state, file), device)


def _filled(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> nn.Module:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = {
        "missing": sorted(wanted.keys() - found.keys()),
        "not expected": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name]),
    }
    said = [
        f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise UserError(f"{file} does not fit the instance-conditioned BigGAN: tensors {'; '.join(said)}. {REMEDY}")
    network.load_state_dict(dict(state))
    return network


class InstanceGan:
    """The generator with the noise that belongs to each image and repeat."""

    def __init__(self, network: Generator, seed: int, repeats: int, *, normalise: bool = True) -> None:
        """Take a generator.

        Args:
            network: in eval mode, on its device.
            seed: of the noise.
            repeats: R.
            normalise: bring decoded features to length 1.
        """
        self.network, self.seed, self.repeats, self.normalise = network, seed, repeats, normalise

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Tensor]) -> list[Reconstructions]:
        """Return the images of the one run; reads instance (B, F)."""
        h, shape = features["instance"], self.network.shape
        if h.shape[1:] != (shape.features,):
            raise UserError(
                f"decoded instance features have shape {tuple(h.shape[1:])} per image, but method.weights are of a "
                f"generator for {shape.features} of them. Decode the features of the network it was trained with: "
                "method.targets.instance.target.network=swav for the published one, tower for Scenes."
            )
        h = functional.normalize(h, dim=1) if self.normalise else h
        noise = np.stack([keyed_normal(self.seed, image_ids, r, (shape.noise,)) for r in range(self.repeats)], axis=1)
        drawn = torch.from_numpy(noise).flatten(0, 1).to(h)
        with torch.inference_mode():
            images = in_parts(self.network, AT_ONCE, drawn, h.repeat_interleave(self.repeats, dim=0))
        images = (images + 1).div(2).unflatten(0, (-1, self.repeats))
        return [Reconstructions(to_uint8(images), not_finite(image_ids, images))]


def build(cfgs: Sequence[Config], device: torch.device) -> InstanceGan:
    """Load the generator of the one run on a device."""
    (cfg,) = cfgs
    method = cfg.method
    return InstanceGan(load_generator(method.weights, device), cfg.seed, method.repeats, normalise=method.normalise)
