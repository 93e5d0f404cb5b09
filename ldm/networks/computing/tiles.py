"""Images encoded or decoded in overlapping tiles, whose results are blended."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's side


def blended(run: Callable[[Tensor], Tensor], x: Tensor, tile: int, factor: int, encodes: bool) -> Tensor:
    """The result of `run` for tiles of `x` (B, C, H, W), with ramps as weights where they overlap.

    It is (B, C', H', W') in float32. `tile` is the side of a tile in latents, `factor` the side of a latent in pixels.
    If `encodes` is true `x` is an image, else latents.
    """
    size_in, size_out = (factor, 1) if encodes else (1, factor)  # of a latent's side, in x and in the result
    height, width = x.shape[2] // size_in, x.shape[3] // size_in
    overlap = int(tile * OVERLAP) * size_out
    total: Tensor | None = None
    weights = torch.zeros(height * size_out, width * size_out, device=x.device)
    for top, rows in spans(height, tile):
        down = ramp(rows * size_out, overlap, top > 0, after=top + rows < height, device=x.device)
        for left, columns in spans(width, tile):
            right = ramp(columns * size_out, overlap, left > 0, after=left + columns < width, device=x.device)
            part = run(x[:, :, *_area((top, rows), (left, columns), size_in)]).float()
            if total is None:
                total = part.new_zeros(*part.shape[:2], height * size_out, width * size_out)
            weight = torch.outer(down, right)
            here = _area((top, rows), (left, columns), size_out)
            total[:, :, *here] += weight * part
            weights[here] += weight
    assert total is not None
    return total / weights


def _area(rows: tuple[int, int], columns: tuple[int, int], scale: int) -> tuple[slice, slice]:
    """Where a tile lies in a map with `scale` positions for each side of a latent; `rows` and `columns` are (start,
    length) in latents."""
    (top, height), (left, width) = rows, columns
    return slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Start and length of each of the tiles that cover `length` positions evenly, overlapping by at least OVERLAP."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - int(tile * OVERLAP)) // (tile - int(tile * OVERLAP)))
    return [(i * (length - tile) // (count - 1), tile) for i in range(count)]


def ramp(length: int, overlap: int, before: bool, after: bool, device: torch.device) -> Tensor:
    """Weights (length,) of the positions of a tile: rising over the overlap if there is a tile `before`, falling if
    there is one `after`."""
    position = torch.arange(length, device=device)
    weight = torch.ones(length, device=device)
    if before:
        weight = torch.minimum(weight, (position + 1) / (overlap + 1))
    if after:
        weight = torch.minimum(weight, (length - position) / (overlap + 1))
    return weight
