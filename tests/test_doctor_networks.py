"""nd doctor: every network that the protocol's measures judge by, there, missing or another one."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nd.config.application import compose
from nd.doctor import weights
from nd.doctor.need import Need
from nd.doctor.report import doctor
from nd.metrics import networks

# Networks of published protocols, with the megabytes and the places that their publishers state.
MINDEYE2 = {
    "alexnet": ("244.0 MB", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "inception_v3": ("109.0 MB", "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"),
    "clip_vit_l14": ("1.7 GB", "https://huggingface.co/openai/clip-vit-large-patch14"),
    "efficientnet_b1_v2": ("32.0 MB", "https://download.pytorch.org/models/efficientnet_b1-c27df63c.pth"),
    "swav_resnet50": ("110.0 MB", "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"),
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine's caches hold, these tests see empty ones."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def judges(*overrides: str) -> dict[str, Need]:
    """Needs of the protocol by name; the protocol of the digits has no network of its own."""
    data = [] if "experiment=nsd" in overrides else ["experiment=digits69", "table="]
    found = weights.weight_needs(compose([*data, *overrides]))
    return {need.what: need for need in found if need.what not in ("backbone", "image tower")}


def test_networks_of_a_published_protocol_are_listed_with_size_and_source() -> None:
    found = judges("experiment=nsd", "method=mean_image", "protocol=mindeye2", "data.split=nsd1000")
    assert found.keys() == MINDEYE2.keys()
    for name, (size, source) in MINDEYE2.items():
        assert found[name].state == "missing"
        assert f", {size}, from {source}" in found[name].note
        assert found[name].note.endswith("; put it there and give protocol.weights=<folder>")
        assert found[name].where.startswith("<folder>/")


def test_a_network_is_listed_once_and_beside_the_protocols_own() -> None:
    found = weights.weight_needs(compose(["protocol.measures=[alexnet2_256,alexnet5_224_pil]"]))
    assert [need.what for need in found][-2:] == ["scoring network", "alexnet"]
    assert [need.what for need in found].count("alexnet") == 1


def test_put_where_the_doctor_says_a_file_is_found(tmp_path: Path) -> None:
    measures = "protocol.measures=[alexnet2_256,clip_l14_224,clip_b32_cosine_224_pil,swav_224]"
    (tmp_path / "own").mkdir()
    given = [measures, f"protocol.weights={tmp_path}/own"]
    for name, need in judges(*given).items():
        assert (need.state, need.note.rpartition("; ")[2]) == ("missing", "put it there"), name
        Path(need.where).parent.mkdir(parents=True, exist_ok=True)
        Path(need.where).write_bytes(bytes(1_500_000))
    found = judges(*given)
    assert {name: need.state for name, need in found.items()} == {
        "alexnet": "wrong", "clip_vit_l14": "ok", "clip_vit_b32": "ok", "swav_resnet50": "ok",
    }  # fmt: skip
    assert found["swav_resnet50"].note == "1.5 MB, SwAV's ResNet-50"
    assert found["swav_resnet50"].where == f"{tmp_path}/own/swav_800ep_pretrain.pth.tar"
    assert found["clip_vit_l14"].where == f"{tmp_path}/own/clip_vit_l14/model.safetensors"  # others are called so too
    assert found["alexnet"].note.startswith("has SHA-256 ")
    assert "begins with 7be5be79: other weights" in found["alexnet"].note


def test_a_published_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alexnet = networks.NETWORKS["alexnet"]
    digits = "6e340b9cffb37a98"  # SHA-256 of one byte of zero
    monkeypatch.setitem(networks.NETWORKS, "alexnet", replace(alexnet, weights=replace(alexnet.weights, sha256=digits)))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.write_bytes(b"\0")
    need = judges("protocol.measures=[alexnet2_256]")["alexnet"]
    assert (need.state, need.where, need.note) == ("ok", str(path), "0.0 kB, torchvision's AlexNet")
    path.write_bytes(b"\1")
    assert judges("protocol.measures=[alexnet2_256]")["alexnet"].state == "wrong"


def test_networks_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(weights, "find_spec", lambda name: real("json") if name == "lpips" else None)
    found = judges("protocol.measures=[lpips_256,dreamsim_224]", "protocol.random_weights=true")
    assert [(name, need.state) for name, need in found.items()] == [("lpips", "ok"), ("dreamsim", "missing")]
    assert found["dreamsim"].note == "pip install dreamsim, or leave its measure out of protocol.measures"


def test_random_weights_need_no_files() -> None:
    given = ["protocol.network=efficientnet_lite0", "protocol.measures=[swav_224]"]
    assert judges(*given).keys() == {"scoring network", "swav_resnet50"}
    assert judges(*given, "protocol.random_weights=true") == {}


def test_the_package_may_hold_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["protocol.network=efficientnet_lite0"]
    assert judges(*own)["scoring network"].state == "ok"
    monkeypatch.setattr("nd.metrics.efficientnet_lite.WEIGHTS_SHA256", "0" * 64)
    need = judges(*own)["scoring network"]
    assert need.state == "wrong"
    assert "wanted 000000000000...: other weights would give other scores" in need.note


def test_the_doctor_says_so_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = "protocol.measures=[swav_224,clip_l14_224]"
    code = doctor(compose([f"paths.root={tmp_path}/work", measures]))
    said = capsys.readouterr().out
    assert code == 1
    assert said.splitlines()[-1] == "cannot run yet, missing: swav_resnet50, clip_vit_l14"
    assert "MISSING swav_resnet50    <folder>/swav_800ep_pretrain.pth.tar  (SwAV's ResNet-50, 110.0 MB, from" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 118
