"""Where in an image the loss counts, by a column of the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.ranks import rank
from ldm.data.storage.table import Table
from ldm.diffusion.weighting import weighted_mean

COLUMNS = ("mask", "loss_mask")
_LOOKED_AT = 1000  # masks of which the run says how much they hide


@dataclass(frozen=True)
class LossMask:
    """The mask of the loss: a column of the data, and the weight `outside` of where it is black. White has weight 1."""

    column: str
    outside: float = 0.0

    def places(self, batch: Mapping[str, Any]) -> Tensor:
        """The weight of each pixel, (B, 1, H, W), between `outside` and 1."""
        return self.outside + (1 - self.outside) * batch[self.column]


def pooled(places: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """The weights of pixels (B, 1, H, W) as those of latents of `size` (h, w): means over the pixels that each covers.

    A latent counts nothing only if all of its pixels are hidden.
    """
    return F.adaptive_avg_pool2d(places, (int(size[0]), int(size[1])))


def sample_weights(places: Tensor) -> Tensor:
    """The weight of each sample, (B,): that of its most important pixel, so 1 if any pixel is white."""
    return places.flatten(1).amax(1)


def mean_counted(each: Tensor, places: Tensor | None) -> Tensor:
    """The mean of `each` (B,) over the samples by their weights: one that is hidden entirely has weight 0.

    It is 0, with a gradient of 0, if all are hidden. Of several processes, each averages over its own samples.
    """
    if places is None:
        return each.mean()
    weights = sample_weights(places)
    total = weights.sum()
    counting = torch.where(weights > 0, each, torch.zeros_like(each))
    return (counting * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def mean_of_places(values: Tensor, places: Tensor | None) -> Tensor:
    """The mean of `values` (B, C, h, w): of each sample over its places by their weights (B, 1, h, w), then over the
    samples by theirs."""
    return values.mean() if places is None else mean_counted(weighted_mean(values, places), places)


def columns_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the data that a batch must have for the mask of the loss."""
    return (config["loss_mask"],) if config.get("loss_mask") else ()


def loss_mask_of(config: Mapping[str, Any]) -> LossMask | None:
    """The mask of the loss that the config names; None if it names none."""
    chosen = config.get("loss_mask")
    return LossMask(chosen, float(config.get("unmasked_weight") or 0.0)) if chosen else None


def check(config: Mapping[str, Any], tables: tuple[Table, Table]) -> None:
    """Prints how much of the images counts. Raises UserError for a mask that the data don't have, or that hides all."""
    chosen = config.get("loss_mask")
    if not chosen:
        if config.get("unmasked_weight"):
            raise UserError(
                "unmasked_weight= is the weight outside of a mask: choose the mask's column with loss_mask=mask."
            )
        return
    if chosen not in COLUMNS:
        raise UserError(f"loss_mask={chosen} isn't a column for loss masks.{did_you_mean(str(chosen), COLUMNS)}")
    for table in tables:
        if chosen not in table.columns:
            has = ", ".join(table.columns) or "images alone"
            raise UserError(
                f"loss_mask={chosen}: the data have no such column (they have {has}); put masks beside the images "
                "(docs/data.md), white where the loss counts."
            )
    sentence = _described(tables[0], chosen)
    if rank() == 0:
        print(sentence, flush=True)


def _described(table: Table, column: str) -> str:
    """How much counts, in words. Raises UserError if nothing does."""
    parts = getattr(table, "buckets", [table])
    shares = torch.tensor(np.concatenate([_shares(part, column) for part in parts]))
    hidden = int((shares == 0).sum())
    if hidden == len(shares):
        raise UserError(
            f"loss_mask={column}: the masks are black everywhere; they have to be white where the loss counts."
        )
    also = f"; {hidden} of {len(shares)} images are hidden entirely and don't count" if hidden else ""
    return f"the loss counts where {column} is white: {float(shares.mean()):.0%} of the pixels{also}"


def _shares(table: Table, column: str) -> np.ndarray:
    """The share of white (n,) in some masks of a table, evenly spaced."""
    n = min(len(table), _LOOKED_AT)
    rows = np.arange(n) * len(table) // n
    masks: Any = table.columns[column]
    return np.array([float(np.asarray(masks[row]).mean()) / 255 for row in rows])
