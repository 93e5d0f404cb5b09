"""The patch discriminator of an adversarial first stage."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ldm.common.errors import UserError
from ldm.networks.layers import groups_of

LOSS_SCALE = 2.0**12  # a power of 2: in float32 it changes nothing


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): convolutions of stride 2 whose outputs each judge a patch as real (above 0) or not.

    `layers` is the number of halvings. The width starts at `channels` and doubles with each, up to 8 times as wide. It
    has group norms instead of batch norms, so that the output for an image doesn't depend on the rest of the batch.
    """

    def __init__(self, in_channels: int, channels: int = 64, layers: int = 3):
        super().__init__()
        if channels % 8 or layers < 1:
            raise UserError(
                f"a discriminator of {channels} channels and {layers} layers: give a multiple of 8 channels, "
                "and at least 1 layer."
            )
        widths = [min(2**i, 8) * channels for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            norm = nn.GroupNorm(groups_of(widths[i]), widths[i])
            blocks += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False), norm, nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(widths[-1], 1, 4, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """`images` (B, C, H, W) -> a logit for each patch, (B, 1, h, w)."""
        return self.conv_out(self.body(images))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, (max(0, 1 - D(real)) + max(0, 1 + D(fake))) / 2 (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def smallest_side(layers: int) -> int:
    """The smallest side of an image, in pixels, of which `layers` halvings leave the 3 pixels that the last two
    convolutions need."""
    return 3 * 2**layers


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|grad reconstruction| / (|grad adversarial| + 1e-4) at the decoder's last layer, at most 1e4.

    With this weight both losses have gradients of the same size (Esser et al. 2021, eq. 7; Rombach et al. 2022,
    appendix G). No gradient flows through it. The losses are those of this process's part of the batch; gradients are
    averaged over all processes, so each of them has to call it.
    """
    with torch.autocast(last_layer.device.type, enabled=False):
        gradients = torch.stack([_gradient(loss, last_layer) for loss in (reconstruction, adversarial)])
    if distributed.is_initialized():
        distributed.all_reduce(gradients)
        gradients = gradients / distributed.get_world_size()
    own, other = gradients.flatten(1).norm(dim=1)
    return (own / (other + 1e-4)).clamp(0, 1e4)


def _gradient(loss: Tensor, at: Tensor) -> Tensor:
    """The gradient of a mean over pixels. The loss is scaled for it, because in float16 the gradient would round to
    0."""
    scaled = torch.autograd.grad(loss, at, torch.full_like(loss, LOSS_SCALE), retain_graph=True)[0]
    return scaled / LOSS_SCALE
