"""Convolution, batch normalisation and ReLU, which the heads of convolutional networks are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that in training also takes one value per channel: by its running statistics.

    One image pooled to one cell has no deviation, and torch's own refuses it. With more values the two are the same.
    The statistics are those of the images on one device (release: of all devices).
    """

    def forward(self, cells: Tensor) -> Tensor:
        images, _, height, width = cells.shape
        if not self.training or images * height * width > 1:
            return super().forward(cells)
        return F.batch_norm(cells, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def convolution(inputs: int, outputs: int, *, side: int = 1, dilation: int = 1) -> nn.Sequential:
    """[B, inputs, h, w] → [B, outputs, h, w] by a kernel of side × side cells, normalised and rectified."""
    padding = dilation * (side // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=padding, dilation=dilation, bias=False), BatchNorm(outputs), nn.ReLU()
    )
