"""Super-resolution as a condition: the network reads the image at a lower resolution."""

from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.randomness import normal, uniform
from ldm.common.registry import register
from ldm.conditioning.part import EncodeFn, Part
from ldm.networks import Cond
from ldm.networks.layers import timestep_embedding

PURE_NOISE = 1.0  # the noise level at which nothing of the image is left
FEATURES = 32


@register
class LowRes(Part):
    """The image at 1 / `scale` of its sides, concatenated with the latent, with noise of a known level added to it.

    In training the low resolution is an average of pixels, and noise of a random level up to `max_level` is added:
    x -> sqrt(1 - level^2) x + level noise. The network also reads the level (conditioning augmentation: Ho et al. 2021,
    Cascaded Diffusion Models, section 4; Saharia et al. 2022, Imagen, section 2.4). So it copes with images that differ
    slightly from the data, above all with the output of another model. In sampling the level is `level`.

    The low resolution is brought to the size of the latent without loss: it is enlarged (bicubic) if the latent is
    finer, then pixels are moved into channels. With `encoded` it is enlarged to the size of the image and encoded by
    the first stage. On pixels, or with `encoded`, it only lacks details, and with `residual` the difference from it is
    diffused (Li et al. 2022, SRDiff, section 3.1): before the first training step the model already enlarges as
    bicubic interpolation does. The null condition has level 1 and an image of zeros. `channels`, `size`, `factor` and
    `latent_channels` are derived from the data and the first stage.
    """

    column = "low"
    follows_guidance = False
    sources = ("image",)
    vector_dim = FEATURES

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        factor: int = 1,
        latent_channels: int | None = None,
        size: list[int] | None = None,
        encoded: bool = False,
        residual: bool = True,
        level: float = 0.05,
        max_level: float = 0.3,
        drop_prob: float = 0.0,
    ):
        super().__init__(drop_prob)
        if scale < 2:
            raise UserError(f"conditioner: scale={scale} doesn't enlarge anything: give 2 or more.")
        if not 0 <= level <= max_level < 1:
            raise UserError(
                f"conditioner: level={level}, max_level={max_level}: give numbers with 0 <= level <= max_level < 1."
            )
        if encoded and not latent_channels:
            raise UserError("conditioner: encoded=true needs the first stage's latent_channels.")
        self.channels, self.scale, self.factor = channels, scale, factor
        self.size = (size[0], size[1]) if size else None
        self.encoded, self.level, self.max_level = encoded, level, max_level
        common = gcd(scale, factor)
        self.enlarge, self.shuffle = scale // common, factor // common
        self.residual = residual and (encoded or (factor == 1 and latent_channels == channels))
        self.planes = (latent_channels or 0) if encoded else channels * self.shuffle**2
        self.concat_channels = self.planes
        self.embedding = nn.Linear(FEATURES, FEATURES)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Channels and size of the data's images. Raises UserError if `scale` doesn't divide the size."""
        height, width = table.images.shape[2:]
        scale = options.get("scale", 2)
        if isinstance(scale, int) and scale > 0 and (height % scale or width % scale):
            raise UserError(
                f"conditioner: images of {height}x{width} can't be reduced by {scale}: give a scale= that divides both."
            )
        return {"channels": int(table.images.shape[1]), "size": [height, width]}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The first stage's factor and number of channels."""
        return {"factor": first_stage.factor, "latent_channels": first_stage.latent_channels}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image at low resolution, and the level of the noise that is added to it."""
        return ("low_res", "noise_level")

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Tensor:
        """The planes that are concatenated with the latent, and the noise level as a plane: (B, planes + 1, h, w)."""
        position = batch["position"]
        if "low_res" in batch:
            low = batch["low_res"]
            level = batch.get("noise_level", low.new_full((len(low),), self.level))  # (B,)
        elif "image" not in batch:
            raise UserError("noise_level is the noise of the image to enlarge: give image= too.")
        else:
            low = smaller(batch["image"], self.scale)  # (B, C, H / scale, W / scale)
            level = self.max_level * uniform(seed, "low resolution's level", position)
        level = level.float()[:, None, None, None]
        noise = normal(seed, "low resolution's noise", position, tuple(low.shape[1:]))
        low = (1 - level**2).sqrt() * low + level * noise
        planes = self._planes(low, encode)
        return torch.cat([planes, level.expand(-1, 1, *planes.shape[2:])], 1)

    def _planes(self, low: Tensor, encode: EncodeFn) -> Tensor:
        if self.encoded:
            return encode(F.interpolate(low, scale_factor=self.scale, mode="bicubic").clamp(-1, 1))
        if self.enlarge > 1:
            low = F.interpolate(low, scale_factor=self.enlarge, mode="bicubic")
        return F.pixel_unshuffle(low, self.shuffle)  # (B, C shuffle^2, h, w)

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The batch's images at low resolution."""
        return {"low_res": smaller(batch["image"], self.scale)}

    def parse(self, values: Any) -> Tensor:
        """Images (C, h, w) in [-1, 1] -> (B, C, h, w), or noise levels -> (B,). Raises UserError for other levels."""
        tensors = torch.stack([torch.as_tensor(value).float() for value in values])
        if tensors.ndim == 1 and (tensors.min() < 0 or tensors.max() > PURE_NOISE):
            raise UserError("noise_level has to lie between 0 (none) and 1 (nothing of the image is left).")
        return tensors

    def null_values(self, n: int) -> Tensor:
        """No image and level 1, (n, planes + 1, h, w), for the size of the training data."""
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        """The null condition, (n, planes + 1, h, w): zeros, and noise level 1. `size` is (height, width) of the
        images."""
        size = size or self.size
        if size is None:
            raise UserError("the image's size is unknown: give size=(height, width).")
        null = torch.zeros(n, self.planes + 1, size[0] // self.factor, size[1] // self.factor)
        null[:, -1] = PURE_NOISE
        return null

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """What `prepare` computes, (B, planes + 1, h, w) -> `concat` (B, planes, h, w), and `vector` for the level."""
        if drop is not None:
            null = torch.zeros_like(values)
            null[:, -1] = PURE_NOISE
            values = torch.where(drop[:, None, None, None], null, values)
        planes, level = values[:, :-1], values[:, -1, 0, 0]  # (B, ., h, w), (B,)
        vector = self.embedding(timestep_embedding(1000 * level, FEATURES))  # (B, FEATURES)
        return Cond(vector=vector, concat=planes, base=planes if self.residual else None)


def smaller(images: Tensor, scale: int) -> Tensor:
    """Images (B, C, H, W) averaged over `scale` x `scale` pixels: (B, C, H / scale, W / scale)."""
    return F.avg_pool2d(images, scale)
