import copy

import numpy as np
import pytest
import torch

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.backbones.create import create_backbone
from vitrail.data.sources.memory import MemorySource
from vitrail.data.sources.registry import open_source
from vitrail.data.subset import Subset
from vitrail.evals.classification.classifier import Classifier, layer_groups, layer_of
from vitrail.evals.classification.few_labels import draw_share
from vitrail.evals.classification.finetune import (
    Finetune,
    finetune,
    finetune_accuracy,
    labels_of,
)
from vitrail.evals.classification.mixing import numpy_seeded

QUICK = Finetune(epochs=1, min_steps=3, batch_size=32)


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder("digits", size=8)


@pytest.fixture(scope="module")
def digits():
    return [Subset(open_source("digits", split), range(300)) for split in ("train", "test")]


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_it_learns_the_digits(encoder, digits):
    config = Finetune(
        epochs=10, min_steps=0, batch_size=30, lr=1e-2, layer_decay=0.9, crop=(0.9, 1), flip=0
    )
    assert finetune_accuracy(encoder, *digits, config) > 0.4  # of ten classes


def test_it_is_a_function_of_its_arguments_and_leaves_the_encoder_alone(encoder, digits):
    before = copy.deepcopy(encoder.backbone.state_dict())
    np.random.seed(1)  # noqa: NPY002
    first = weights(finetune(encoder, digits[0], QUICK, seed=3))
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(7)
    again = weights(finetune(encoder, digits[0], QUICK, seed=3))
    other = weights(finetune(encoder, digits[0], QUICK, seed=4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_numpys_own_generator_goes_on_as_if_nothing_had_been():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand(2)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = np.random.rand()  # noqa: NPY002
    with numpy_seeded(0, 3):
        inside = np.random.rand()  # noqa: NPY002
    assert [first, np.random.rand()] == expected.tolist()  # noqa: NPY002
    with numpy_seeded(0, 3):
        assert np.random.rand() == inside  # noqa: NPY002
    with numpy_seeded(0, 4):
        assert np.random.rand() != inside  # noqa: NPY002


@pytest.mark.parametrize(
    "name",
    [
        "vit_nano_patch4_28",
        "crate_nano_patch4_28",
        "tost_nano_patch4_28",
        "resnet18_small",
        "swin_nano_patch2_28",
    ],
)
def test_the_rate_of_every_parameter(name):
    """A layer d before the head moves at decay^d; each parameter is in one group."""
    backbone = create_backbone(name, in_chans=1, img_size=28)
    depths, n_layers = layer_of(backbone)
    assert set(depths) == {key for key, _ in backbone.named_parameters()}
    assert set(range(1, n_layers + 1)) <= set(depths.values())
    assert next(iter(depths.values())) == 0
    network = Classifier(backbone, 3, seed=0)
    groups = layer_groups(network, layer_decay=0.5, weight_decay=0.05)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(scale) == len(list(network.parameters()))
    for key, parameter in backbone.named_parameters():
        assert scale[id(parameter)] == 0.5 ** (n_layers + 1 - depths[key]), key
        if parameter.ndim == 1:
            assert decay[id(parameter)] == 0
    # as MAE's fine-tuning, whose `no_weight_decay` lists these two
    for key in {"pos_embed", "cls_token"} & set(depths):
        assert decay[id(backbone.get_parameter(key))] == 0
    exempt = backbone.no_weight_decay()
    for group in layer_groups(network, 0.5, 0.05, decay_positions=True):
        held = {id(p) for p in group["params"]}
        for key in ({"pos_embed", "cls_token"} & set(depths)) - exempt:
            assert id(backbone.get_parameter(key)) not in held or group["weight_decay"] == 0.05
    assert scale[id(network.head.weight)] == 1
    assert decay[id(network.head.weight)] == 0.05


def test_layers_of_a_vit_by_name():
    depths, n_layers = layer_of(create_backbone("vit_nano_patch4_28", depth=3))
    assert n_layers == 3
    assert depths["pos_embed"] == depths["cls_token"] == depths["patch_embed.proj.weight"] == 0
    assert depths["blocks.0.attn.qkv.weight"] == 1
    assert depths["blocks.2.mlp.fc2.bias"] == 3
    assert depths["norm.weight"] == 4


def test_only_the_drawn_labels_are_seen(encoder, digits, monkeypatch):
    train, test = digits
    drawn = set(draw_share(labels_of(train), 0.1, seed=2).tolist())
    asked = set()

    def label(self, index):
        if self._source is train:
            asked.add(self._indices[index])
        return self._source.label(self._indices[index])

    monkeypatch.setattr(Subset, "label", label)
    finetune_accuracy(encoder, train, test, QUICK, share=0.1, seed=2)
    assert asked == drawn


def test_no_mixing_and_few_images(encoder, digits):
    three = Subset(digits[0], [0, 1, 2])
    config = Finetune(epochs=0, min_steps=2, mixup=0, cutmix=0)
    assert 0 <= finetune_accuracy(encoder, three, digits[1], config) <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 7),
        ("batch_size", 0),
        ("lr", -1.0),
        ("mixup", float("nan")),
        ("layer_decay", 0.0),
        ("drop_path", 1.0),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"finetune: {field} is"):
        Finetune(**{field: value})


def test_a_rate_that_is_too_high_is_told(encoder, digits):
    config = Finetune(epochs=0, min_steps=12, lr=1e30, warmup=0, batch_size=4, layer_decay=1)
    with pytest.raises(ValueError, match=r"fine-tuning diverged.*lower lr"):
        finetune(encoder, digits[0], config)


def test_one_class_and_other_channels_are_refused(encoder, digits):
    ones = [i for i in range(300) if digits[0].label(i) == 1]
    with pytest.raises(ValueError, match="needs at least two classes"):
        finetune(encoder, Subset(digits[0], ones), QUICK)
    colours = MemorySource(
        "colours", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1] * 2), "ab", None
    )
    with pytest.raises(ValueError, match="3 channels"):
        finetune(encoder, colours, QUICK)
