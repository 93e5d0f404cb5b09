"""The Inception network of FID: Inception-v3 as TensorFlow's model of 2015-12-05 computes it (Szegedy et al. 2015).

It differs from torchvision's in its average pooling, which leaves out the padding, in the maximum pooling of its last
block, and in 1,008 classes. The names of the weights are those of pytorch-fid's and torch-fidelity's files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError

SIDE = 299
FEATURES = 2048
SPATIAL_CHANNELS = 7  # of the 17x17 places of the 1x1 branch of TensorFlow's mixed_6: sFID (Nash et al. 2021)
RECOGNISED = "Conv2d_1a_3x3.conv.weight"  # the first name in a file of weights
_CLASSIFIER = ("fc.", "AuxLogits.")  # not used here


class Conv(NamedTuple):
    """A convolution by the name of its weights. Without a stride it keeps the size."""

    name: str
    outputs: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


Step = Conv | tuple[Conv, ...] | str  # a tuple: side by side, concatenated; a word: a pooling
Branches = tuple[tuple[Step, ...], ...]


def _block_a(pooled: int) -> Branches:
    """35x35 places."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5)),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3)),
        ("average", Conv("branch_pool", pooled)),
    )


def _block_c(width: int) -> Branches:
    """17x17 places; 7x7 convolutions as 1x7 after 7x1."""
    across, down = (1, 7), (7, 1)
    double = (("2", width, down), ("3", width, across), ("4", width, down), ("5", 192, across))
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, across), Conv("branch7x7_3", 192, down)),
        (Conv("branch7x7dbl_1", width), *(Conv(f"branch7x7dbl_{i}", n, kernel) for i, n, kernel in double)),
        ("average", Conv("branch_pool", 192)),
    )


def _block_e(pooling: str) -> Branches:
    """8x8 places, 2,048 channels."""

    def fork(name: str) -> tuple[Conv, Conv]:
        """A 3x3 convolution as 1x3 and 3x1 side by side."""
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")),
        (pooling, Conv("branch_pool", 192)),
    )


_BLOCK_B: Branches = (
    (Conv("branch3x3", 384, 3, 2),),
    (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3, 2)),
    ("reduce",),
)
_BLOCK_D: Branches = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, 2)),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, 3, 2),
    ),
    ("reduce",),
)
_BLOCKS: tuple[tuple[str, int, Branches], ...] = (  # name, channels that come in, branches
    ("Mixed_5b", 192, _block_a(32)),
    ("Mixed_5c", 256, _block_a(64)),
    ("Mixed_5d", 288, _block_a(64)),
    ("Mixed_6a", 288, _BLOCK_B),
    ("Mixed_6b", 768, _block_c(128)),
    ("Mixed_6c", 768, _block_c(160)),
    ("Mixed_6d", 768, _block_c(160)),
    ("Mixed_6e", 768, _block_c(192)),
    ("Mixed_7a", 768, _BLOCK_D),
    ("Mixed_7b", 1280, _block_e("average")),
    ("Mixed_7c", FEATURES, _block_e("maximum")),
)


class NormedConv(nn.Module):
    """A convolution without bias, batch normalization, ReLU."""

    def __init__(self, inputs: int, spec: Conv, padded: bool = True):
        super().__init__()
        kernel = spec.kernel if isinstance(spec.kernel, tuple) else (spec.kernel, spec.kernel)
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and spec.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, spec.outputs, kernel, spec.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(spec.outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, concatenated over channels."""

    def __init__(self, inputs: int, branches: Branches):
        super().__init__()
        self.branches = branches
        for steps in branches:
            channels = inputs
            for step in steps:
                made = _convs(step)
                for spec in made:
                    self.add_module(spec.name, NormedConv(channels, spec))
                channels = sum(spec.outputs for spec in made) or channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        return torch.cat([self._branch(x, steps) for steps in self.branches], 1)

    def _branch(self, x: Tensor, steps: Sequence[Step]) -> Tensor:
        for step in steps:
            x = _pooled(x, step) if isinstance(step, str) else self._convolved(x, _convs(step))
        return x

    def _convolved(self, x: Tensor, specs: Sequence[Conv]) -> Tensor:
        return torch.cat([getattr(self, spec.name)(x) for spec in specs], 1)


class Inception(nn.Module):
    """Images (B, 3, 299, 299), about in [-1, 1], to the features of FID (B, 2048) and those of sFID (B, 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = NormedConv(3, Conv("", 32, 3, 2))
        self.Conv2d_2a_3x3 = NormedConv(32, Conv("", 32, 3), padded=False)
        self.Conv2d_2b_3x3 = NormedConv(32, Conv("", 64, 3))
        self.Conv2d_3b_1x1 = NormedConv(64, Conv("", 80))
        self.Conv2d_4a_3x3 = NormedConv(80, Conv("", 192, 3), padded=False)
        for name, inputs, branches in _BLOCKS:
            self.add_module(name, Mixed(inputs, branches))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means over places of the last block, and the first channels of mixed_6 at each place, row by row."""
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        spatial = x
        for name, *_ in _BLOCKS:
            x = getattr(self, name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order
        return x.mean((2, 3)), spatial


def of_weights(weights: Mapping[str, Tensor], where: str) -> Inception:
    """The network with the weights of a file `where`. The classifier at its end isn't needed.

    Raises UserError for the weights of another network, such as torchvision's classifier of 1,000 classes, which has
    the same names.
    """
    classes = weights.get("fc.weight", torch.empty(1008, 0)).shape[0]
    if classes != 1008 or any(name.startswith("AuxLogits.") for name in weights):
        raise UserError(
            f"{where} holds torchvision's Inception, whose distances aren't FID: take pytorch-fid's or "
            "torch-fidelity's file, of 1,008 classes."
        )
    network = Inception()
    own = {name: value.float() for name, value in weights.items() if not name.startswith(_CLASSIFIER)}
    wrong = network.load_state_dict({**_counters(network), **own}, strict=False)
    if wrong.missing_keys or wrong.unexpected_keys:
        raise UserError(
            f"{where} isn't a complete file of Inception's weights ({len(wrong.missing_keys)} missing, "
            f"{len(wrong.unexpected_keys)} unknown); fetch it again."
        )
    return network.eval().requires_grad_(False)


def read_weights(path: Path) -> Inception:
    """The network with the weights of a .pth file. Raises UserError if it can't be read."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise anything
        first = " ".join(str(error).strip().splitlines()[:1])
        raise UserError(f"{path} can't be read as weights ({first}); fetch it again.") from None
    if not isinstance(weights, dict) or RECOGNISED not in weights:
        raise UserError(f"{path} holds no weights of Inception; take pytorch-fid's or torch-fidelity's file.")
    return of_weights(weights, str(path))


def _convs(step: Step) -> tuple[Conv, ...]:
    if isinstance(step, str):
        return ()
    return (step,) if isinstance(step, Conv) else step


def _pooled(x: Tensor, pooling: str) -> Tensor:
    if pooling == "average":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 2) if pooling == "reduce" else F.max_pool2d(x, 3, 1, 1)


def _counters(network: nn.Module) -> dict[str, Tensor]:
    """Batch normalization's counters, which old files lack and nothing reads."""
    return {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
