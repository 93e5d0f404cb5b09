"""How an autoencoder encodes and decodes: in which precision, in slices of a batch, in strips or tiles of an image."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.networks.computing import strips, tiles
from ldm.networks.computing.compiled import compiler_of
from ldm.networks.computing.finite import is_finite
from ldm.networks.computing.precision import check_precision, dtype_of, lowered, name_of, twin
from ldm.networks.gaussian import Gaussian
from ldm.networks.identity import Identity

SLICE_PIXELS = 2**20  # the most pixels of a batch that are coded at once: they already fill a GPU
LEAST_TILE = 16
STATISTICS = ("image", "tile")
_log = logging.getLogger("ldm")


@dataclass(frozen=True)
class Coding:
    """Encodes and decodes for a first stage. Images and moments are float32, whatever the network computes in.

    A result that isn't finite in float16 is computed again in float32, and later ones in float32 from the start.
    Images of more than `tile` x `tile` pixels go through the network in parts of about that size. With
    `tile_statistics="image"` these are strips of rows in every layer: norms use the statistics of the whole image, and
    the result is that of the whole image. With "tile" they are overlapping tiles, each with its own norms, whose
    results are blended.

    With `compile`, true or a backend of torch.compile, networks run compiled, except in strips.
    """

    precision: str = "float32"
    tile: int | None = None
    tile_statistics: str = "image"
    compile: Any = False  # a Compiler or None, once it is made
    overflowed: set[str] = field(default_factory=set, compare=False, repr=False)  # the halves that did, in float16

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", check_precision(self.precision))
        object.__setattr__(self, "compile", compiler_of(self.compile))
        if self.tile is not None and not (isinstance(self.tile, int) and self.tile >= LEAST_TILE):
            raise UserError(f"tile={self.tile}: give the side of a tile in pixels, at least {LEAST_TILE}.")
        if self.tile_statistics not in STATISTICS:
            hint = did_you_mean(str(self.tile_statistics), STATISTICS)
            raise UserError(f"tile_statistics={self.tile_statistics} is unknown.{hint}")

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type in which networks on `device` compute: see `dtype_of`."""
        return dtype_of(self.precision, device)

    def facts(self, device: torch.device) -> dict[str, str]:
        """What differs from computing everything at once in float32, for `Described`."""
        facts: dict[str, str] = {}
        if self.precision != "float32":
            chosen = " (auto)" if self.precision == "auto" else ""
            facts["computes in"] = name_of(self.dtype(device)) + chosen
        if self.tile is not None:
            facts["tiles"] = f"{self.tile}, statistics of the {self.tile_statistics}"
        if self.compile is not None:
            facts["compiled by"] = self.compile.backend
        return facts

    def network(self, network: Any, name: str = "denoiser") -> Any:
        """The twin of a denoiser's network that does the computing: in the set precision, and compiled if `compile` is
        set.
        """
        dtype = self.dtype(next(network.parameters()).device)
        if self.compile is None:
            return lowered(network, dtype)
        own = twin(network, dtype)
        self.compile.denoiser(own, name)
        return own

    def _half(self, stage: Any, half: str, dtype: torch.dtype) -> Any:
        """The twin of the autoencoder `stage` that does the computing, with `half` ("encoder" or "decoder") compiled if
        the options say so."""
        if self.compile is None:
            return lowered(stage, dtype)
        own = twin(stage, dtype)
        self.compile(getattr(own, half), half)
        return own

    def encode(self, stage: Any, images: Tensor) -> Gaussian:
        """`images` (B, C, H, W) -> q(z | x) over (B, z, h, w)."""
        if isinstance(stage, Identity):
            return stage.encode(images)
        return stage.posterior(self._coded(stage, "encoder", images))

    def decode(self, stage: Any, latents: Tensor) -> Tensor:
        """`latents` (B, z, h, w) -> images (B, C, H, W)."""
        if not isinstance(stage, Identity):
            return self._coded(stage, "decoder", stage.quantised(latents))
        if self.dtype(latents.device) == torch.float16:
            _check(latents)
        return latents

    def _coded(self, stage: Any, half: str, given: Tensor) -> Tensor:
        dtype = self.dtype(given.device)
        if dtype != torch.float16:
            return self._sliced(self._half(stage, half, dtype), half, given, dtype)
        if half not in self.overflowed:
            result = self._sliced(self._half(stage, half, dtype), half, given, dtype)
            if is_finite(result):
                return result
        result = self._sliced(self._half(stage, half, torch.float32), half, given, torch.float32)
        _check(result)
        if half not in self.overflowed:
            _log.warning("the autoencoder's %s overflows in float16, so it is computed in float32", half)
            self.overflowed.add(half)
        return result

    def _sliced(self, stage: Any, half: str, given: Tensor, dtype: torch.dtype) -> Tensor:
        pixels = given.shape[2] * given.shape[3] * (stage.factor**2 if half == "decoder" else 1)
        tiled = self.tile is not None and pixels > self.tile**2
        run = self._tiled(stage, half) if tiled else _whole(stage, half)
        slices = given.split(1 if tiled else max(1, SLICE_PIXELS // max(1, pixels)))
        done = [_in(dtype, run, some) for some in slices]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _tiled(self, stage: Any, half: str) -> Callable[[Tensor], Tensor]:
        assert self.tile is not None
        if self.tile_statistics == "tile":
            side, encodes, run = max(2, self.tile // stage.factor), half == "encoder", _whole(stage, half)
            return lambda x: tiles.blended(run, x, side, factor=stage.factor, encodes=encodes)
        area = (self.tile // stage.stem) ** 2  # stem x stem pixels are one position of the networks' maps
        if half == "encoder":
            return lambda x: stage.moments(x, strips.encoder(stage, area))
        return lambda x: stage.pixels(x, strips.decoder(stage, area))


def _whole(stage: Any, half: str) -> Callable[[Tensor], Tensor]:
    """The function of one half of the autoencoder `stage` for whole images or latents."""
    return stage.moments if half == "encoder" else stage.pixels


def _in(dtype: torch.dtype, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return run(x) if dtype == torch.float32 else run(x.to(dtype)).float()


def _check(result: Tensor) -> None:
    if not is_finite(result):
        raise UserError(
            "the network overflows in float16, so its result isn't finite: use precision=bfloat16 or float32."
        )
