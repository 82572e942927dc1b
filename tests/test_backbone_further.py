"""A denoiser that is trained further: what it begins with, and what of the folder stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_scripts import EXPERIMENTS
from safetensors.torch import load_file

from backbone_training.loop import Optimisation
from backbone_training.unet import UnetRecipe, build_unet, fit_unet
from nd.backbone.weights import SHIPPED

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def test_training_begins_with_the_given_denoiser() -> None:
    still = Optimisation(steps=1, batch=4, learning_rate=0.0, warmup=1, average=0.0)
    recipe = UnetRecipe(widths=(8, 16, 16), norm_groups=4, heads=2, how=still)
    latents, states = torch.randn(12, 4, 8, 8), np.zeros((12, 2, 5, 16), np.float16)
    torch.manual_seed(5)
    start = build_unet(recipe, 8, 4, 16)
    begun = {name: value.clone() for name, value in start.state_dict().items()}
    fitted = fit_unet(latents, states, states[0, 0], recipe, seed=0, start=start).state_dict()
    assert all(torch.equal(fitted[name], value) for name, value in begun.items())
    new = fit_unet(latents, states, states[0, 0], recipe, seed=0).state_dict()
    assert not torch.equal(new["conv_in.weight"], begun["conv_in.weight"])


@pytest.mark.slow
def test_only_the_denoiser_changes(tmp_path: Path) -> None:
    shipped, out = SHIPPED / "scenes", tmp_path / "further"
    script = EXPERIMENTS / "scenes-backbone" / "further.py"
    given = ["--weights", str(shipped), "--out", str(out), "--work", str(tmp_path / "work"), "--quick"]
    for _ in range(2):  # the second time there is nothing left to do
        subprocess.run([sys.executable, str(script), *given], check=True, capture_output=True)
    files = sorted(str(file.relative_to(shipped)) for file in shipped.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == files
    changed = [name for name in files if (out / name).read_bytes() != (shipped / name).read_bytes()]
    assert changed == [UNET_FILE]
    begun, ended = load_file(shipped / UNET_FILE), load_file(out / UNET_FILE)
    assert begun.keys() == ended.keys()
    far = max(float((ended[name].float() - begun[name].float()).abs().max()) for name in begun)
    assert 0 < far < 0.02  # three steps of at most .001 each, and half precision
