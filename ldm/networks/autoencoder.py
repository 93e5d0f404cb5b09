"""The convolutional autoencoders of stage one, and AutoencoderKL, with the state-dict names of diffusers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.networks.attention import PixelAttention
from ldm.networks.first_stages.base import Autoencoder
from ldm.networks.gaussian import Gaussian
from ldm.networks.layers import Downsample, ResnetBlock, Upsample, format_on, groups_of, silu, zero_

START_LOGVAR = -5.0


class MidBlock(nn.Module):
    """The blocks at the lowest resolution: residual block, attention if there is any, residual block."""

    def __init__(self, channels: int, attention: bool, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups=groups, eps=1e-6) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)]) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, h, w) -> (B, C, h, w)."""
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Stage(nn.Module):
    """The residual blocks of one resolution, and the step to the next."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, groups: int, resize: Downsample | Upsample | None
    ):
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList(
            [ResnetBlock(a, b, groups=groups, eps=1e-6) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.downsamplers = nn.ModuleList([resize]) if isinstance(resize, Downsample) else None
        self.upsamplers = nn.ModuleList([resize]) if isinstance(resize, Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, channels, h, w) -> (B, out_channels, ...), at half or twice the size if there is a step."""
        for resnet in self.resnets:
            x = resnet(x)
        for resize in self.downsamplers or self.upsamplers or ():
            x = resize(x)
        return x


class Encoder(nn.Module):
    """Convolutions from an image to the moments of its latent, in levels of falling resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: list[int], blocks: int, attention: bool, groups: int
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resize = Downsample(width, asymmetric=True) if i < len(widths) - 1 else None
            self.down_blocks.append(Stage(widths[max(i - 1, 0)], width, blocks, groups=groups, resize=resize))
        self.mid_block = MidBlock(widths[-1], attention, groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in_channels, H, W) -> (B, out_channels, h, w), each further level halving the size."""
        h = self.conv_in(x)
        for stage in self.down_blocks:
            h = stage(h)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """Convolutions from a latent to an image, in levels of rising resolution.

    If `compiled` is set, `compiled(decoder, z)` replaces `features`. `conv_out` isn't part of it: an adversarial loss
    is balanced by the gradient at its weights, which would run the whole of a compiled network again.
    """

    compiled: Any = None

    def __init__(
        self, in_channels: int, out_channels: int, widths: list[int], blocks: int, attention: bool, groups: int
    ):
        super().__init__()
        rising = widths[::-1]
        self.conv_in = nn.Conv2d(in_channels, rising[0], 3, padding=1)
        self.mid_block = MidBlock(rising[0], attention, groups)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(rising):
            resize = Upsample(width) if i < len(rising) - 1 else None
            self.up_blocks.append(Stage(rising[max(i - 1, 0)], width, blocks, groups=groups, resize=resize))
        self.conv_norm_out = nn.GroupNorm(groups, rising[-1], 1e-6)
        self.conv_out = nn.Conv2d(rising[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """`z` (B, in_channels, h, w) -> (B, out_channels, H, W)."""
        return self.conv_out(self.features(z) if self.compiled is None else self.compiled(self, z))

    def features(self, z: Tensor) -> Tensor:
        """Latents (B, z, h, w) -> the features that `conv_out` reads, (B, widths[0], H, W)."""
        h = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            h = stage(h)
        return silu(self.conv_norm_out(h))


class ConvAutoencoder(Autoencoder):
    """An autoencoder of an `Encoder` and a `Decoder`, with 1x1 convolutions between them and the latents.

    `moments` is the number of channels that describe the posterior; `hidden` are those between the networks and the 1x1
    convolutions: of the encoder, by default as many as moments, and of the decoder, by default as many as latents. The
    other arguments are those of `AutoencoderKL`.
    """

    ENCODING: tuple[str, ...] = ("encoder", "quant_conv", "shortcut_in")
    DECODING: tuple[str, ...] = ("decoder", "post_quant_conv", "shortcut_out")

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        *,
        moments: int,
        channels: int | Sequence[int],
        multipliers: Sequence[float],
        blocks: int,
        stem: int,
        attention: bool,
        shortcut: bool,
        groups: int | None,
        quant_convs: bool,
        hidden: int | None = None,
    ):
        super().__init__()
        widths = [round(channels * m) for m in multipliers] if isinstance(channels, int) else list(channels)
        if min(in_channels, latent_channels, *widths, blocks) < 1 or not widths:
            raise UserError(
                f"vae: {latent_channels} latent channels, widths {widths} and {blocks} blocks make no network; each "
                "has to be at least 1."
            )
        groups = groups or groups_of(widths[0])
        if bad := [w for w in widths if w % groups]:
            raise UserError(f"vae: widths {bad} can't be split into {groups} groups; choose other vae.channels.")
        if stem < 1 or stem & (stem - 1):
            raise UserError(f"vae.stem={stem} isn't a power of two: give 1, 2 or 4.")
        self.in_channels, self.latent_channels, self.stem = in_channels, latent_channels, stem
        self.factor = stem * 2 ** (len(widths) - 1)
        pixels, out, back = in_channels * stem**2, hidden or moments, hidden or latent_channels
        self.encoder = Encoder(pixels, out, widths, blocks=blocks, attention=attention, groups=groups)
        self.decoder = Decoder(back, pixels, widths, blocks=blocks + 1, attention=attention, groups=groups)
        self.quant_conv = nn.Conv2d(out, moments, 1) if quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, back, 1) if quant_convs else nn.Identity()
        patch = in_channels * self.factor**2
        self.shortcut_in = nn.Conv2d(patch, moments, 1) if shortcut else None
        self.shortcut_out = nn.Conv2d(latent_channels, patch, 1) if shortcut else None

    def moments(self, images: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The numbers (B, M, H/f, W/f) that describe q(z | x). `encoder` replaces the model's own."""
        x = F.pixel_unshuffle(images, self.stem) if self.stem > 1 else images  # (B, C s^2, H/s, W/s)
        x = x.contiguous(memory_format=format_on(x.device))
        moments = self.quant_conv((encoder or self.encoder)(x))
        if self.shortcut_in is not None:
            moments = moments + self.shortcut_in(F.pixel_unshuffle(images, self.factor))
        return moments

    def pixels(self, latents: Tensor, decoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images (B, C, H, W) of `latents` (B, z, h, w), computed at once. `decoder` replaces the model's own."""
        z = latents.contiguous(memory_format=format_on(latents.device))
        x = (decoder or self.decoder)(self.post_quant_conv(z))
        images = F.pixel_shuffle(x, self.stem) if self.stem > 1 else x  # (B, C, H, W)
        if self.shortcut_out is not None:
            images = images + F.pixel_shuffle(self.shortcut_out(z), self.factor)
        return images

    def encoding_form(self) -> dict[str, Any]:
        """What latents depend on beside the weights: the stem and the norms' groups."""
        return super().encoding_form() | {"stem": self.stem, "groups": self.encoder.conv_norm_out.num_groups}

    @property
    def width(self) -> int:
        """The channels of the encoder's last maps."""
        return self.encoder.conv_out.in_channels

    @property
    def starts_from_images(self) -> bool:
        """Whether there are shortcuts, which start from principal components."""
        return self.shortcut_in is not None

    def start_from(self, images: Tensor) -> None:
        """`start_from_principal_components`."""
        self.start_from_principal_components(images)

    @torch.no_grad()
    def start_from_principal_components(self, images: Tensor) -> None:
        """Sets the shortcuts to the linear autoencoder of `images` (B, C, H, W) that is best in mean squared error.

        The principal components of f x f patches, scaled to variance 1, are the first latents, and the networks
        parallel to the shortcuts learn the remainder. This saves a short run about half of its time.
        """
        if self.shortcut_in is None or self.shortcut_out is None:
            return
        patches = F.pixel_unshuffle(images, self.factor).movedim(1, -1).flatten(0, -2)  # (N, C f^2)
        mean = patches.mean(0)
        variance, basis = torch.linalg.eigh((patches - mean).T.cov())  # rising
        z = self.latent_channels
        variance, basis = variance[-z:].flip(0).clamp(min=1e-6), basis[:, -z:].flip(1)  # (z,), (C f^2, z)
        whiten = (basis / variance.sqrt()).T  # (z, C f^2)
        self.shortcut_in.weight.zero_()
        self.shortcut_in.weight[:z].copy_(whiten[..., None, None])
        assert self.shortcut_in.bias is not None and self.shortcut_out.bias is not None
        self.shortcut_in.bias.fill_(START_LOGVAR)[:z].copy_(-whiten @ mean)
        self.shortcut_out.weight.copy_((basis * variance.sqrt())[..., None, None])
        self.shortcut_out.bias.copy_(mean)
        zero_(self._last_of_encoder)
        zero_(self.decoder.conv_out)

    @property
    def _last_of_encoder(self) -> nn.Conv2d:
        return self.quant_conv if isinstance(self.quant_conv, nn.Conv2d) else self.encoder.conv_out

    @property
    def last_layer(self) -> Tensor:
        """The weight at which an adversarial loss is balanced against the reconstruction."""
        return self.decoder.conv_out.weight


@register
class AutoencoderKL(ConvAutoencoder):
    """The variational autoencoder of latent diffusion (Kingma and Welling 2014; Rombach et al. 2022, section 3.1).

    It maps images to normal distributions of latents, and latents back to images. `channels` is the base width,
    multiplied by `multipliers` for each level, or a list with the width of each level; each further level halves the
    size. A `stem` of s moves s x s pixels into channels before the first convolution and back after the last one,
    without arithmetic (Shi et al. 2016): on a CPU it more than halves the cost of a step. The whole factor is
    stem * 2^(levels - 1). Without `quant_convs` there are no 1x1 convolutions between the networks and the latents, as
    in Stable Diffusion 3 and Flux.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        *,
        channels: int | Sequence[int] = 64,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 1,
        stem: int = 1,
        attention: bool = False,
        shortcut: bool = False,
        groups: int | None = None,
        quant_convs: bool = True,
    ):
        super().__init__(
            in_channels,
            latent_channels,
            moments=2 * latent_channels,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            stem=stem,
            attention=attention,
            shortcut=shortcut,
            groups=groups,
            quant_convs=quant_convs,
        )
        # A small spread at first: the decoder must learn to read latents before the KL term drowns them in noise.
        nn.init.constant_(self._last_of_encoder.bias[latent_channels:], START_LOGVAR)  # type: ignore[index]

    def posterior(self, moments: Tensor) -> Gaussian:
        """q(z | x) from mean and log-variance stacked over channels, (B, 2z, h, w)."""
        return Gaussian.from_moments(moments)
