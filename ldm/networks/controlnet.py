"""ControlNet (Zhang et al. 2023): a control image tells a frozen network what goes where.

For the U-Net with the state-dict names of diffusers, for the DiT after PixArt-delta. A ControlNet computes residuals,
which `UNet.forward` and `DiT.forward` add to what they compute.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise, zip_longest
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register, spec_of
from ldm.networks.cond import Cond
from ldm.networks.dit import DiT, Patched
from ldm.networks.layers import format_on, zero_
from ldm.networks.unet import Encoder, UNet, skip_widths

HINT_WIDTHS = (16, 32, 96, 256)  # Stable Diffusion's, for a factor of 8; further levels are as wide as the last
SILU_POWER = 0.356  # the mean of silu(x)^2 for normal x
_COPIED = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "mid_block")
_PLAIN = ("in_channels", "concat_channels", "context_dim", "vector_dim", "patch", "widths")
_DIT_COPIED = ("conv_in", "time_embedding", "class_embedding")
_DIT_PLAIN = ("in_channels", "concat_channels", "context_dim", "vector_dim", "patch", "channels")


class HintEncoder(nn.Module):
    """Encodes a control image, `factor` times as large as the features, with two convolutions for each prime of
    `factor`.

    Unlike the original's, its last convolution doesn't start at zero. The ControlNet's outputs do, which suffices for
    the base's images to be unchanged at first, and gradients reach every layer from the second step on.
    """

    def __init__(self, channels: int, out_channels: int, factor: int, widths: Sequence[int] | None = None):
        """`widths`, one more than `factor` has primes, are those of the convolutions; by default HINT_WIDTHS."""
        super().__init__()
        strides = primes(factor)
        widths = list(widths or (*HINT_WIDTHS, *HINT_WIDTHS[-1:] * len(strides))[: len(strides) + 1])
        if len(widths) != len(strides) + 1:
            raise UserError(f"hint_widths={widths}: a factor of {factor} takes {len(strides) + 1} widths.")
        self.widths = widths
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for (a, b), stride in zip(pairwise(widths), strides, strict=True):
            self.blocks.append(nn.Conv2d(a, a, 3, padding=1))
            kernel = stride + 1 - stride % 2  # odd, and every position is read
            self.blocks.append(nn.Conv2d(a, b, kernel, stride, padding=kernel // 2))
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self._start_at_unit_scale()

    def _start_at_unit_scale(self) -> None:
        """Sets weights to Kaiming's variance for SiLU and biases to zero, so that a pixel of norm one gives features
        of about one. Six layers in PyTorch's default initialisation would shrink it to 1e-4, and a one-hot map would
        be ignored."""
        first, *convs = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        nn.init.normal_(first.weight, std=first.kernel_size[0] ** -1.0)
        for conv in convs:
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=(fan_in * SILU_POWER) ** -0.5)
        for conv in (first, *convs):
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, hint: Tensor) -> Tensor:
        """`hint` (B, channels, H, W) -> (B, out_channels, H/f, W/f)."""
        h = F.silu(self.conv_in(hint.contiguous(memory_format=format_on(hint.device))))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)


@register
class ControlNet(Encoder):
    """A trainable copy of `network`'s encoder and middle that also reads a control image.

    Its features are added to the frozen network's skips and middle through 1x1 convolutions that start at zero, so at
    first nothing changes. A side of the control image is `factor` times that of the features: the autoencoder's factor
    times the network's patch. `hint_channels` are the channels of the control image, `hint_widths` those of its
    encoder, one more than `factor` has primes.
    """

    def __init__(
        self, network: UNet, hint_channels: int = 3, factor: int = 8, hint_widths: Sequence[int] | None = None
    ):
        super().__init__()
        if not isinstance(network, UNet):
            raise UserError(
                f"a ControlNet copies the encoder of a UNet; the base's network is {type(network).__name__}."
            )
        copy_parts(self, network, _PLAIN, _COPIED)
        self.hint_channels, self.factor = hint_channels, factor
        self.controlnet_cond_embedding = HintEncoder(hint_channels, self.widths[0], factor, hint_widths)
        self.hint_widths = self.controlnet_cond_embedding.widths
        outputs = [zero_(nn.Conv2d(width, width, 1)) for width in skip_widths(network)]
        self.controlnet_down_blocks = nn.ModuleList(outputs)
        self.controlnet_mid_block = zero_(nn.Conv2d(self.widths[-1], self.widths[-1], 1))

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond, hint: Tensor, weights: Tensor | None = None
    ) -> list[Tensor]:
        """The `residuals` for `UNet.forward` with the same `x` (B, C, h, w), `c_noise` (B,) and `cond`.

        `hint` (B, hint_channels, H, W) is the control image in [0, 1], and `weights` (B, outputs) scale the residuals.
        """
        features = self.controlnet_cond_embedding(hint)  # (B, widths[0], h, w)
        middle, skips = self.encode(x, self.embed(c_noise, cond), cond, features)
        residuals = [out(skip) for out, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return weighted([*residuals, self.controlnet_mid_block(middle)], weights)

    @property
    def outputs(self) -> int:
        """The number of residuals."""
        return len(self.controlnet_down_blocks) + 1

    def misfits(self, network: Any) -> list[str]:
        """The reasons why this can't be put on `network`; empty if it can. A ControlNet that reads only latents
        also fits a network that reads more, such as an inpainting model."""
        if not isinstance(network, UNet):
            return [f"the network is a {type(network).__name__}, not a UNet"]
        names = ["concat_channels"] if self.concat_channels else []
        reasons = differences(self, network, [*names, "context_dim", "in_channels", "patch"])
        if skip_widths(self) != skip_widths(network):
            reasons.append(f"its levels are {skip_widths(self)} wide, but the network's are {skip_widths(network)}")
        return reasons

    context_dim: int | None
    vector_dim: int | None
    _spec: dict[str, Any]


@register
class DiTControlNet(Patched):
    """A ControlNet for a DiT (Chen et al. 2024, PixArt-delta, section 3.3).

    Trainable copies of the first `blocks` blocks, by default half of them, also read the control image. The output of
    each is added to that of the frozen block it copies, through a linear layer that starts at zero. `factor`,
    `hint_channels` and `hint_widths` are those of `ControlNet`.
    """

    def __init__(
        self,
        network: DiT,
        hint_channels: int = 3,
        factor: int = 8,
        hint_widths: Sequence[int] | None = None,
        blocks: int | None = None,
    ):
        super().__init__()
        if not isinstance(network, DiT):
            raise UserError(f"a DiTControlNet copies blocks of a DiT; the base's network is {type(network).__name__}.")
        blocks = (len(network.blocks) + 1) // 2 if blocks is None else blocks
        if not 1 <= blocks <= len(network.blocks):
            raise UserError(f"blocks={blocks}: give 1 to {len(network.blocks)}, the number of the base's blocks.")
        copy_parts(self, network, _DIT_PLAIN, _DIT_COPIED)
        self.blocks = nn.ModuleList([deepcopy(block).requires_grad_(True) for block in network.blocks[:blocks]])
        self.hint_channels, self.factor = hint_channels, factor
        self.controlnet_cond_embedding = HintEncoder(hint_channels, self.channels, factor, hint_widths)
        self.controlnet_blocks = nn.ModuleList([zero_(nn.Linear(self.channels, self.channels)) for _ in range(blocks)])

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond, hint: Tensor, weights: Tensor | None = None
    ) -> list[Tensor]:
        """The `residuals` for `DiT.forward`, (B, N, D) each. The arguments are those of `ControlNet.forward`."""
        h, _ = self.tokens(x, cond)
        h = h + self.controlnet_cond_embedding(hint).flatten(2).transpose(1, 2)  # (B, N, D)
        embedding = self.embed(c_noise, cond)
        residuals = []
        for block, out in zip(self.blocks, self.controlnet_blocks, strict=True):
            h = block(h, embedding, cond.tokens, cond.mask)
            residuals.append(out(h))
        return weighted(residuals, weights)

    @property
    def outputs(self) -> int:
        """The number of residuals."""
        return len(self.blocks)

    def misfits(self, network: Any) -> list[str]:
        """The reasons why this can't be put on `network`; empty if it can."""
        if not isinstance(network, DiT):
            return [f"the network is a {type(network).__name__}, not a DiT"]
        reasons = differences(self, network, ("channels", "concat_channels", "context_dim", "in_channels", "patch"))
        if len(self.blocks) > len(network.blocks):
            reasons.append(f"it controls {len(self.blocks)} blocks, but the network has {len(network.blocks)}")
        return reasons

    context_dim: int | None
    vector_dim: int | None
    _spec: dict[str, Any]


AnyControlNet = ControlNet | DiTControlNet


def controlnet_for(network: Any, hint_channels: int, factor: int) -> AnyControlNet:
    """A new ControlNet of the kind that fits `network`. Raises UserError for a network other than UNet and DiT."""
    if isinstance(network, UNet):
        return ControlNet(network, hint_channels, factor)
    if isinstance(network, DiT):
        return DiTControlNet(network, hint_channels, factor)
    raise UserError(f"a ControlNet copies a part of a UNet or a DiT; the base's network is {type(network).__name__}.")


def copy_parts(net: Any, network: nn.Module, plain: Sequence[str], copied: Sequence[str]) -> None:
    """Gives `net` the attributes `plain` of `network`, and trainable copies of its parts `copied`.

    The spec of `net` then holds that of the network instead of the network itself, which would stay in memory.
    """
    object.__setattr__(net, "_spec", net._spec | {"network": spec_of(network)})
    for name in plain:
        setattr(net, name, getattr(network, name))
    for name in copied:
        part = getattr(network, name)
        setattr(net, name, part if part is None else deepcopy(part).requires_grad_(True))


def weighted(residuals: list[Tensor], weights: Tensor | None) -> list[Tensor]:
    """Residuals (B, ...), each multiplied by its column of `weights` (B, outputs); unchanged if `weights` is None."""
    if weights is None:
        return residuals
    return [r * w.view(-1, *[1] * (r.ndim - 1)) for r, w in zip(residuals, weights.unbind(1), strict=True)]


def added(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """The sums of two ControlNets' residuals. A DiT's may have fewer residuals than the other."""
    sums = []
    for x, y in zip_longest(a, b):
        if x is None or y is None:
            sums.append(y if x is None else x)
        else:
            sums.append(x + y)
    return sums


def differences(net: Any, network: Any, names: Sequence[str]) -> list[str]:
    """The attributes among `names` in which a ControlNet and a network differ, in words for a message.

    `vector_dim` is compared only if the ControlNet has one.
    """
    names = [*names, "vector_dim"] if net.vector_dim else names
    pairs = [(name, getattr(net, name), getattr(network, name)) for name in names]
    return [f"{name} is {own}, but the network's is {theirs}" for name, own, theirs in pairs if own != theirs]


class Controlled(nn.Module):
    """A network with ControlNets on it, called by `names`; it is used like any other network.

    It adds up the residuals of those ControlNets whose control images are in `cond.control`, weighted by
    `cond.control_weights`. Without control images it computes the same as the network alone.
    """

    def __init__(self, network: UNet | DiT):
        super().__init__()
        self.network, self.names = network, list[str]()
        self.controlnets: Any = nn.ModuleList()

    def add(self, name: str, net: AnyControlNet) -> None:
        """Puts the ControlNet `net` on under `name`, the key of its control images in `Cond.control`."""
        self.names.append(name)
        self.controlnets.append(net)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """`x` (B, C, h, w), `c_noise` (B,) -> (B, out, h, w), as from the network itself."""
        cond = cond or Cond()
        total: list[Tensor] | None = None
        for name, net in zip(self.names, self.controlnets, strict=True):
            if name in cond.control:
                residuals = net(x, c_noise, cond, cond.control[name], cond.control_weights.get(name))
                total = residuals if total is None else added(total, residuals)
        return self.network(x, c_noise, cond, total)


def primes(number: int) -> list[int]:
    """The prime factors of `number` in rising order; none for 1."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found
