"""ResNet-50 (He et al. 2015, arXiv 1512.03385), strides in the 3 x 3, torchvision's names."""

import torch
from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, and the skip."""

    def __init__(self, n_in: int, n_middle: int, stride: int) -> None:
        super().__init__()
        n_out = EXPANSION * n_middle
        self.conv1 = nn.Conv2d(n_in, n_middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_middle)
        self.conv2 = nn.Conv2d(n_middle, n_middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_middle)
        self.conv3 = nn.Conv2d(n_middle, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Stem, four stages of bottlenecks, mean, classifier.

    Parameters
    ----------
    n_blocks
        Of every stage.
    """

    def __init__(self, n_blocks: tuple[int, int, int, int], n_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n_in = 64
        for stage, n in enumerate(n_blocks):
            n_middle, blocks = 64 << stage, []
            for block in range(n):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(n_in, n_middle, stride))
                n_in = EXPANSION * n_middle
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet50() -> ResNet:
    """For images of 224 x 224, 25.6 M weights."""
    return ResNet((3, 4, 6, 3))
