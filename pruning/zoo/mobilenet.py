"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), torchvision's names."""

import torch
from torch import Tensor, nn

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first (table 2)."""


def _layer(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the skip where shapes allow."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        n_middle = n_in * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_layer(n_in, n_middle, 1)]
        layers += [
            _layer(n_middle, n_middle, 3, stride, n_middle),
            nn.Conv2d(n_middle, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.has_skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_skip else self.conv(x)


class MobileNetV2(nn.Module):
    """Width 1.0."""

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        n_in, blocks = 32, [_layer(3, 32, 3, 2)]
        for expansion, n_out, n, stride in _STAGES:
            for block in range(n):
                blocks.append(InvertedResidual(n_in, n_out, 1 if block else stride, expansion))
                n_in = n_out
        blocks.append(_layer(n_in, 1280, 1))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2() -> MobileNetV2:
    """For images of 224 x 224, 3.5 M weights."""
    return MobileNetV2()
