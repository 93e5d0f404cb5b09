"""Super-resolution as a condition: the network is shown the image at a lower resolution."""

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

NOTHING = 1.0  # the level of noise at which nothing of the image is left
FEATURES = 32


@register
class LowRes(Part):
    """The image at 1 / `scale` of its sides, joined to the latent, with noise of a known level added to it.

    Training makes the low resolution by averaging, and noise of a random level up to `max_level`, of which the network
    is told (conditioning augmentation: Ho et al. 2021, Cascaded Diffusion Models, section 4; Saharia et al. 2022,
    Imagen, section 2.4): x -> sqrt(1 - level^2) x + level noise. So it takes what isn't quite like the data, the output
    of another model above all. Sampling adds `level`.

    It reaches the latent's resolution without loss: enlarged (bicubic) where the latent is finer, then by moving pixels
    into channels. With `encoded` it is enlarged to the image's size and goes through the first stage. On
    pixels, or `encoded`, it then is what is to be drawn but for details, and only the difference is diffused
    (`residual`; Li et al. 2022, SRDiff, section 3.1): before the first step of training it already enlarges as bicubic
    does. Null is level 1 and nothing else. `channels`, `size`, `factor` and `latent_channels` are read off data and
    first stage.
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
            raise UserError(f"conditioner: scale={scale} makes nothing larger; take 2 or more.")
        if not 0 <= level <= max_level < 1:
            raise UserError(f"conditioner: level={level}, max_level={max_level}: need 0 <= level <= max_level < 1.")
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
        height, width = table.images.shape[2:]
        scale = options.get("scale", 2)
        if isinstance(scale, int) and scale > 0 and (height % scale or width % scale):
            raise UserError(f"conditioner: images of {height}x{width} can't be made {scale} times smaller evenly.")
        return {"channels": int(table.images.shape[1]), "size": [height, width]}

    @classmethod
    def derive_latent(cls, first_stage: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"factor": first_stage.factor, "latent_channels": first_stage.latent_channels}

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("low_res", "noise_level")

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Tensor:
        """(B, C + 1, h, w): the planes that are joined to the latent, and the level of noise."""
        position = batch["position"]
        if "low_res" in batch:
            low = batch["low_res"]
            level = batch.get("noise_level", low.new_full((len(low),), self.level))  # (B,)
        elif "image" not in batch:
            raise UserError("noise_level is of the image that is to be enlarged: give image= too.")
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
        return {"low_res": smaller(batch["image"], self.scale)}

    def parse(self, values: Any) -> Tensor:
        tensors = torch.stack([torch.as_tensor(value).float() for value in values])
        if tensors.ndim == 1 and (tensors.min() < 0 or tensors.max() > NOTHING):
            raise UserError("noise_level has to lie between 0 (none) and 1 (nothing of the image is left).")
        return tensors

    def null_values(self, n: int) -> Tensor:
        return self.null_sized(n, None)

    def null_sized(self, n: int, size: tuple[int, int] | None) -> Tensor:
        size = size or self.size
        if size is None:
            raise UserError("the image's size isn't known: give size=(height, width).")
        nothing = torch.zeros(n, self.planes + 1, size[0] // self.factor, size[1] // self.factor)
        nothing[:, -1] = NOTHING
        return nothing

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        if drop is not None:
            nothing = torch.zeros_like(values)
            nothing[:, -1] = NOTHING
            values = torch.where(drop[:, None, None, None], nothing, values)
        planes, level = values[:, :-1], values[:, -1, 0, 0]  # (B, ., h, w), (B,)
        vector = self.embedding(timestep_embedding(1000 * level, FEATURES))  # (B, FEATURES)
        return Cond(vector=vector, concat=planes, base=planes if self.residual else None)


def smaller(images: Tensor, scale: int) -> Tensor:
    """The mean of `scale` x `scale` pixels: (B, C, H / scale, W / scale)."""
    return F.avg_pool2d(images, scale)
