"""An image in overlapping tiles, each coded by itself, and blended."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's side


def blended(run: Callable[[Tensor], Tensor], x: Tensor, tile: int, factor: int, encodes: bool) -> Tensor:
    """`run` of tiles of `x` (B, C, H, W), weighted by ramps where they overlap: (B, C', H', W') in float32.

    `tile` is a tile's side in latents, `factor` how many pixels a latent has a side; `encodes`: x is an image, else
    latents.
    """
    given, made = (factor, 1) if encodes else (1, factor)  # places for each latent, of x and of what is made
    height, width = x.shape[2] // given, x.shape[3] // given
    total: Tensor | None = None
    weights = torch.zeros(height * made, width * made, device=x.device)
    for top, rows in spans(height, tile):
        for left, columns in spans(width, tile):
            part = run(x[:, :, top * given : (top + rows) * given, left * given : (left + columns) * given]).float()
            if total is None:
                total = part.new_zeros(*part.shape[:2], height * made, width * made)
            weight = torch.outer(
                ramp(rows * made, int(tile * OVERLAP) * made, top > 0, after=top + rows < height, device=x.device),
                ramp(
                    columns * made, int(tile * OVERLAP) * made, left > 0, after=left + columns < width, device=x.device
                ),
            )
            here = slice(top * made, (top + rows) * made), slice(left * made, (left + columns) * made)
            total[:, :, *here] += weight * part
            weights[here] += weight
    assert total is not None
    return total / weights


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin that cover `length` places, evenly and with an overlap of at least OVERLAP, and how long they
    are."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - int(tile * OVERLAP)) // (tile - int(tile * OVERLAP)))
    return [(i * (length - tile) // (count - 1), tile) for i in range(count)]


def ramp(length: int, overlap: int, before: bool, after: bool, device: torch.device) -> Tensor:
    """Weights (length,) of a tile's places: rising over the overlap where there is a tile before, falling where one
    follows."""
    place = torch.arange(length, device=device)
    weight = torch.ones(length, device=device)
    if before:
        weight = torch.minimum(weight, (place + 1) / (overlap + 1))
    if after:
        weight = torch.minimum(weight, (length - place) / (overlap + 1))
    return weight
