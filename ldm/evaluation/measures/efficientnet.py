"""EfficientNet-Lite0, whose ImageNet weights come as a package of their own: features of natural images, offline."""

import torch.nn.functional as F
from torch import Tensor, nn

# expansion, channels, blocks, stride, kernel (Tan and Le 2019, table 1; Lite: no squeeze-and-excitation, ReLU6)
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
FEATURES = 1280


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does it: at stride 2 the odd pixel goes to the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride)); odd padding goes to the right and bottom."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        sides = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (input.shape[3], input.shape[2])]
        padded = F.pad(input, [part for side in sides for part in (side // 2, side - side // 2)])
        return F.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, 1e-3)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


class Block(nn.Module):
    """An inverted residual: wider by `expansion`, a depthwise convolution, narrow again (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _conv(inputs, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = _conv(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = _conv(width, outputs, 1), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Expands channels, convolves each by itself, and projects back: an inverted residual (MobileNetV2)."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W), scaled as (x - 127) / 128 of 0..255, to 1,280 features (B, 1280); `classify` to ImageNet's
    1,000 logits.

    Trained at 224 x 224; the features are means over positions, so other sizes work too. The names are the weights'.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList()
        inputs = 32
        for expansion, outputs, repeats, stride, kernel in STAGES:
            for i in range(repeats):
                self._blocks.append(Block(inputs, outputs, expansion, kernel=kernel, stride=stride if i == 0 else 1))
                inputs = outputs
        self._conv_head, self._bn1 = _conv(inputs, FEATURES, 1), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, 1280)."""
        h = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean((2, 3))  # (B, 1280)

    def classify(self, x: Tensor) -> Tensor:
        """ImageNet's logits (B, 1000) of images as `forward` takes them."""
        return self._fc(self(x))
