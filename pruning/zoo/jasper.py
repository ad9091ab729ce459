"""Jasper 10x5 dense residual (Li et al. 2019, arXiv 1904.03288)."""

import itertools

from torch import Tensor, nn

_BLOCKS = (
    (256, 11),
    (256, 11),
    (384, 13),
    (384, 13),
    (512, 17),
    (512, 17),
    (640, 21),
    (640, 21),
    (768, 25),
    (768, 25),
)
"""Channels and kernel of every block (table 1)."""
N_FEATURES = 64
FEATURES_PER_SECOND = 100


class SubBlock(nn.Module):
    """Convolution and batch norm; what is added and ReLU come after."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride, padding, dilation, bias=False)
        self.norm = nn.BatchNorm1d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Sub-blocks in a row; the last one adds a point convolution of every earlier block's output.

    Parameters
    ----------
    n_before
        Channels of the outputs of the first layer and of all blocks before.
    """

    def __init__(self, n_before: list[int], n_out: int, kernel: int, n_layers: int) -> None:
        super().__init__()
        sizes = [n_before[-1]] + [n_out] * n_layers
        self.layers = nn.ModuleList(SubBlock(a, b, kernel) for a, b in itertools.pairwise(sizes))
        self.residuals = nn.ModuleList(SubBlock(n, n_out, 1) for n in n_before)

    def forward(self, before: list[Tensor]) -> Tensor:
        x = before[-1]
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        x = self.layers[-1](x)
        for residual, earlier in zip(self.residuals, before, strict=True):
            x = x + residual(earlier)
        return x.relu()


class Jasper(nn.Module):
    """Acoustic model: (samples, 64 features, time) to (samples, characters, time / 2).

    Parameters
    ----------
    n_layers
        Sub-blocks of every block.
    """

    def __init__(self, n_layers: int = 5, n_characters: int = 29) -> None:
        super().__init__()
        self.first = SubBlock(N_FEATURES, 256, 11, stride=2)
        channels, blocks = [256], []
        for n_out, kernel in _BLOCKS:
            blocks.append(Block(list(channels), n_out, kernel, n_layers))
            channels.append(n_out)
        self.blocks = nn.ModuleList(blocks)
        self.second = SubBlock(768, 896, 29, dilation=2)
        self.third = SubBlock(896, 1024, 1)
        self.last = nn.Conv1d(1024, n_characters, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.first(x).relu()]
        for block in self.blocks:
            outputs.append(block(outputs))
        return self.last(self.third(self.second(outputs[-1]).relu()).relu())


def jasper10x5() -> Jasper:
    """One second of audio is 100 time steps of features."""
    return Jasper()
