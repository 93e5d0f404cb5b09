"""The tiny autoencoder of TAESD, with the state-dict names of diffusers' AutoencoderTiny."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.first_stages.base import Autoencoder


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU around a skip connection, without norms."""

    def __init__(self, channels: int):
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, h, w) -> (B, C, h, w)."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Blocks at falling resolution, from images in [-1, 1] to latents; `blocks` has their number for each level."""

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for i, count in enumerate(blocks):
            first = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(first if i else nn.Conv2d(in_channels, width, 3, padding=1))
            layers += [TinyBlock(width) for _ in range(count)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, H, W) -> (B, z, h, w)."""
        return self.layers((x + 1) / 2)


class TinyDecoder(nn.Module):
    """Blocks at rising resolution, from latents, softly clamped to (-3, 3), to images."""

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
        for count in blocks[:-1]:
            layers += [TinyBlock(width) for _ in range(count)]
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        layers += [TinyBlock(width) for _ in range(blocks[-1])]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """`z` (B, z, h, w) -> (B, C, H, W)."""
        return 2 * self.layers(3 * torch.tanh(z / 3)) - 1


@register
class AutoencoderTiny(Autoencoder):
    """The autoencoder of Bohan's TAESD, which is distilled from a large one: about 1 M parameters a half, no norms.

    Its encoder gives no distribution but a latent, and nothing bounds the latents in training. `channels` is the width
    of both halves, or of the encoder alone if `decoder_channels` is given. `encoder_blocks` and `decoder_blocks` are
    the numbers of blocks of each level, in the order in which an image or a latent passes them.
    """

    REGULARIZER = "none"

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        *,
        channels: int = 64,
        decoder_channels: int | None = None,
        encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        decoder_blocks: Sequence[int] = (3, 3, 3, 1),
    ):
        super().__init__()
        wide = decoder_channels or channels
        if min(in_channels, latent_channels, channels, wide) < 1 or min(*encoder_blocks, *decoder_blocks, 0) < 0:
            raise UserError(f"vae: widths {channels} and {wide} make no network; each has to be at least 1.")
        if len(encoder_blocks) != len(decoder_blocks) or not encoder_blocks:
            raise UserError(
                f"vae: {len(encoder_blocks)} levels of encoder_blocks and {len(decoder_blocks)} of decoder_blocks; "
                "both need the same number, at least 1."
            )
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.factor = 2 ** (len(encoder_blocks) - 1)
        self.encoder = TinyEncoder(in_channels, latent_channels, channels, encoder_blocks)
        self.decoder = TinyDecoder(latent_channels, in_channels, wide, decoder_blocks)
        self.reach = _reach(encoder_blocks, decoder_blocks, self.factor)

    def moments(self, images: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Latents (B, z, H/f, W/f) of `images` (B, C, H, W). `encoder` replaces the model's own."""
        return (encoder or self.encoder)(images)

    def pixels(self, latents: Tensor, decoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images (B, C, H, W) of `latents` (B, z, h, w). `decoder` replaces the model's own."""
        return (decoder or self.decoder)(latents)

    @property
    def width(self) -> int:
        """The channels of the encoder's maps."""
        return self.encoder.layers[-1].in_channels  # type: ignore[return-value]

    @property
    def last_layer(self) -> Tensor:
        """The weight at which an adversarial loss is balanced against the reconstruction."""
        return self.decoder.layers[-1].weight  # type: ignore[return-value]


def _reach(encoder_blocks: Sequence[int], decoder_blocks: Sequence[int], factor: int) -> dict[str, int]:
    """The number of rows on either side that a row of the result depends on: in an image, a multiple of `factor`, and
    in a latent.

    A 3x3 convolution adds one row of its own resolution. Resizing to twice the size adds less than one.
    """
    pixels = 1.0 + factor
    for i, count in enumerate(encoder_blocks):
        pixels += 3 * count * 2**i + (2 ** (i - 1) if i else 0)
    latents = 2.0
    for i, count in enumerate(decoder_blocks):
        latents += (3 * count + 1) / 2**i
    return {"encoder": factor * math.ceil(pixels / factor), "decoder": math.ceil(latents)}
