"""Networks to measure with: sizes as published, names of public checkpoints, what compiles."""

import pytest
import torch

from pruning.networks.importer import import_model
from pruning.zoo.bert import bert_base
from pruning.zoo.gnmt import gnmt
from pruning.zoo.jasper import jasper10x5
from pruning.zoo.mobilenet import mobilenet_v2
from pruning.zoo.resnet import resnet50

# torchvision's model pages; table 1 of arXiv 1904.03288 gives 333 M.
CASES = {
    "resnet50": (resnet50, 25_557_032, ("layer1.0.downsample.0.weight", "layer4.2.bn3.bias")),
    "mobilenet_v2": (mobilenet_v2, 3_504_872, ("features.1.conv.0.0.weight", "classifier.1.bias")),
    "jasper10x5": (jasper10x5, 332_632_349, ()),
    # Of the checkpoint bert-base-uncased, without the heads of its training.
    "bert_base": (
        bert_base,
        109_482_240,
        (
            "embeddings.LayerNorm.weight",
            "encoder.layer.11.attention.self.query.weight",
            "encoder.layer.0.attention.output.LayerNorm.bias",
            "encoder.layer.3.intermediate.dense.bias",
            "pooler.dense.weight",
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weights(name):
    build, n_weights, keys = CASES[name]
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == n_weights
    assert set(keys) <= model.state_dict().keys()


def test_mobilenet_is_one_node_per_convolution():
    torch.manual_seed(0)
    network = import_model(mobilenet_v2().eval(), torch.randn(1, 3, 32, 32))
    # 52 convolutions, the mean, the classifier.
    assert len(network.nodes) == 54
    assert sum(len(node.affine.terms) > 1 for node in network.nodes) == 10


def test_gnmt_has_the_layers_of_the_paper():
    """8 layers of 1024 on each side; every gate matrix of a layer is 4096 wide."""
    with torch.device("meta"):
        model = gnmt()
    gates = [p for name, p in model.named_parameters() if "weight_ih" in name]
    assert [tuple(p.shape) for p in gates[:4]] == [(4096, 1024)] * 2 + [(4096, 2048), (4096, 1024)]
    assert len(gates) == 8 + 1 + 8
    n = sum(p.numel() for p in model.parameters())
    embeddings = 2 * 32_000 * 1024
    encoder = 4096 * (2 * 2048 + 3072 + 6 * 2048) + 9 * 8192
    decoder = 4096 * (2048 + 7 * 3072) + 8 * 8192
    assert n == embeddings + encoder + decoder + 2 * 1024**2 + 32_000 * 1025


def test_resnet_has_one_node_per_convolution():
    """And its pools and classifier: batch norms, additions and ReLUs are part of them."""
    network = import_model(resnet50().eval(), torch.randn(1, 3, 32, 32))
    assert len(network.nodes) == 49 + 3
    assert [node.name for node in network.nodes if node.affine.maximum] == ["max_pool2d"]
    assert sum(len(node.affine.terms) > 1 for node in network.nodes) == 16
