"""Other people's checkpoints: some load, some are refused, and nothing is ever executed."""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.interop import layouts
from vitrail.backbones.create import create_backbone
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.interop.read.load import load_official
from vitrail.interop.read.weights_file import read_checkpoint

Weights = dict[str, Tensor]


def vit(seed: int = 1) -> SkeletonBackbone:
    return create_backbone("vit_nano_patch4_32", seed=seed)


def crate(seed: int = 1) -> SkeletonBackbone:
    return create_backbone("crate_nano_patch4_32", seed=seed)


def equal(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_timm_vit_round_trips(tmp_path: Path, suffix: str) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32).eval()
    path = tmp_path / f"vit{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(theirs.state_dict(), path)
    ours = create_backbone("vit_tiny_patch16_224", img_size=32)
    load_official(ours, path)
    images = torch.randn(2, 3, 32, 32)
    expected = theirs.forward_features(images)[:, 0]
    torch.testing.assert_close(ours(images).pooled, expected, rtol=1e-5, atol=1e-5)
    assert theirs.state_dict().keys() - ours.state_dict().keys() == {"head.weight", "head.bias"}


def test_dinos_full_checkpoint_gives_the_teacher(tmp_path: Path) -> None:
    teacher, student = vit(7).state_dict(), vit(8).state_dict()
    path = saved(
        tmp_path,
        {
            "student": prefixed(student, "module.backbone."),
            "teacher": prefixed(teacher, "backbone.") | {"head.mlp.0.weight": torch.ones(2, 2)},
            "optimizer": {"state": {}},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", patch_size=16),
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
    )
    ours = vit()
    load_official(ours, path)
    assert equal(ours.state_dict(), teacher)


@pytest.mark.parametrize(
    ("prefix", "container"),
    [
        ("", None),
        ("module.", "state_dict"),
        ("_orig_mod.backbone.", "teacher"),
        ("_orig_mod.module.backbone.", "student"),
        ("module.", "model"),
    ],
)
def test_containers_and_prefixes_are_taken_off(
    tmp_path: Path, prefix: str, container: str | None
) -> None:
    weights = vit(9).state_dict()
    content = prefixed(weights, prefix)
    path = saved(tmp_path, content if container is None else {container: content, "epoch": 3})
    assert equal(read_checkpoint(path).weights, weights)


def test_an_official_crate_lands_in_the_right_places(tmp_path: Path) -> None:
    official = layouts.crate(depth=4)
    path = saved(tmp_path, {"epoch": 1, "state_dict": prefixed(official, "module.")})
    ours = create_backbone("crate_nano_patch4_28", img_size=16, width=32)
    load_official(ours, path)
    weights = ours.state_dict()
    assert torch.equal(weights["pos_embed"], official["pos_embedding"])
    assert torch.equal(weights["patch_embed.norm_in.bias"], official["to_patch_embedding.1.bias"])
    assert torch.equal(weights["patch_embed.proj.weight"], official["to_patch_embedding.2.weight"])
    assert torch.equal(
        weights["patch_embed.norm_out.weight"], official["to_patch_embedding.3.weight"]
    )
    layer = "transformer.layers.2"
    assert torch.equal(weights["blocks.2.norm1.weight"], official[f"{layer}.0.norm.weight"])
    assert torch.equal(weights["blocks.2.attn.qkv.weight"], official[f"{layer}.0.fn.qkv.weight"])
    assert torch.equal(weights["blocks.2.attn.proj.bias"], official[f"{layer}.0.fn.to_out.0.bias"])
    assert torch.equal(weights["blocks.2.norm2.bias"], official[f"{layer}.1.norm.bias"])
    assert torch.equal(weights["blocks.2.mlp.weight"], official[f"{layer}.1.fn.weight"])
    assert torch.equal(weights["norm.weight"], official["mlp_head.0.weight"])


def test_wrong_weights_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    weights = vit(5).state_dict()
    del weights["blocks.1.attn.qkv.bias"]
    weights["register_tokens"] = torch.zeros(1, 4, 64)
    weights["pos_embed"] = torch.zeros(1, 51, 64)  # not one and a square
    ours = vit()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_official(ours, saved(tmp_path, weights))
    message = str(caught.value)
    assert "missing: blocks.1.attn.qkv.bias\n" in message
    assert "unexpected: register_tokens\n" in message
    assert "pos_embed: [1, 51, 64] in the file, [1, 65, 64] in the backbone" in message
    assert equal(ours.state_dict(), before)


def test_another_familys_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)missing: blocks.*patch_embed.norm_in.*unexpected: "):
        load_official(crate(), saved(tmp_path, vit().state_dict()))


class Bomb:
    """A pickle that creates a file when it is read by an ordinary unpickler."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.target, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    content = {"teacher": vit().state_dict(), "args": Bomb(target)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth: refused.*running code"):
        read_checkpoint(path)
    assert not target.exists()
    with open(path, "rb") as file:
        (torch.load(path, weights_only=False) if zipped else pickle.load(file))
    assert target.exists()  # the bomb was live


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.npz"])
@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"some text\n" * 30, b"PK\x03\x04 cut off"]
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_any_damage_is_an_error_that_names_the_file(tmp_path: Path, suffix: str) -> None:
    """Random bytes, and checkpoints with a few bytes changed (those may still be read)."""
    rng = np.random.default_rng(0)
    whole = tmp_path / f"whole{suffix}"
    weights = {"cls_token": torch.zeros(1, 1, 4), "norm.weight": torch.ones(4)}
    if suffix == ".npz":
        np.savez(whole, **{key: value.numpy() for key, value in weights.items()})  # type: ignore[arg-type]
    else:
        (save_file if suffix == ".safetensors" else torch.save)(weights, whole)
    good, path = whole.read_bytes(), tmp_path / f"damaged{suffix}"
    messages, refused = [], 0
    for trial in range(60):
        bad = bytearray(good)
        for position in rng.integers(0, len(bad), 1 + trial % 8):
            bad[position] = rng.integers(0, 256)
        path.write_bytes(rng.bytes(300) if trial % 3 == 0 else bytes(bad))
        try:
            read_checkpoint(path)
        except ValueError as error:
            messages.append(str(error))
            refused += trial % 3 == 0
    assert refused == 20  # all random bytes
    assert all(path.name in message for message in messages)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, vit().state_dict())
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"weights\.pth: not a readable checkpoint"):
        read_checkpoint(path)


def test_an_npz_that_pickles_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    np.savez(tmp_path / "evil.npz", bomb=np.array([Bomb(target)], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz: not a readable checkpoint.*allow_pickle"):
        read_checkpoint(tmp_path / "evil.npz")
    assert not target.exists()
    with np.load(tmp_path / "evil.npz", allow_pickle=True) as arrays:
        assert arrays["bomb"].shape == (1,)
    assert target.exists()  # the bomb was live


def test_a_bare_array_is_no_checkpoint(tmp_path: Path) -> None:
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npz: not a readable checkpoint"):
        read_checkpoint(tmp_path / "array.npz")


def test_missing_files_and_empty_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"no backbone weights found; .* epoch, optimizer"):
        read_checkpoint(saved(tmp_path, {"epoch": 3, "optimizer": {}}))
    with pytest.raises(ValueError, match="no backbone weights found"):
        read_checkpoint(saved(tmp_path, [1, 2]))
