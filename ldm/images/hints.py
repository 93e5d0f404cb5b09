"""Kinds of control images for ControlNets: made from batches in training, and read from files in generation.

A control image is (C, H, W) in [0, 1]. It is in RGB wherever possible, so that files and other tools can hold it.
"""

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import build, lookup, register
from ldm.images.canny import canny, luminance
from ldm.images.files.reading import open_map
from ldm.images.files.unreadable import BadImage
from ldm.images.preprocess import Preprocess

KINDS = {"canny": "Canny", "map": "MapHint", "mask": "MaskHint", "grey": "Grey", "colour": "Colour"}


class Hint:
    """A kind of control image with `channels`, made from the entry `column` of a batch."""

    column = "image"
    channels = 3

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that depend on the training data; `options` are those that the user gives."""
        return {}

    def __call__(self, values: Tensor) -> Tensor:
        """The control images (B, channels, H, W) of a batch's column."""
        raise NotImplementedError

    def on_host(self, values: Tensor) -> Tensor:
        """Values for `__call__` that replace the column, computed on the host together with the batch.

        It is for kinds that would otherwise make the host wait for the device.
        """
        return values

    def read(self, item: Any, preprocess: Preprocess) -> Tensor:
        """A control image (channels, H, W) from an image, a file or an array, at `preprocess`'s size and crop."""
        height, width = preprocess.height, preprocess.width
        values = Preprocess(3, height, width, resize=preprocess.resize, background=[0.0]).array(item)
        return _matching(torch.from_numpy(values).float() / 255, self.channels)

    def show(self, hints: Tensor) -> Tensor:
        """Control images as images for display, (B, 1 or 3, H, W) in [-1, 1]."""
        return hints[:, : 1 if hints.shape[1] < 3 else 3] * 2 - 1


@register
class Canny(Hint):
    """White edges on black (`ldm.images.canny`)."""

    def __init__(self, low: float = 0.2, high: float = 0.5, sigma: float = 1.0):
        if not 0 <= low <= high or sigma <= 0:
            raise UserError(
                f"canny: low={low}, high={high}, sigma={sigma}; it takes 0 <= low <= high and sigma above 0."
            )
        self.low, self.high, self.sigma = low, high, sigma

    def __call__(self, values: Tensor) -> Tensor:
        edges = values if values.dtype == torch.bool else self.on_host(values)
        return edges.float().expand(-1, 3, -1, -1)  # (B, 3, H, W)

    def on_host(self, values: Tensor) -> Tensor:
        """Edges (B, 1, H, W) bool. How far edges are followed depends on the values, so on a device the host would
        wait."""
        return canny(values, self.low, self.high, self.sigma) > 0


@register
class Grey(Hint):
    """The image in grey."""

    def __call__(self, values: Tensor) -> Tensor:
        return luminance(values).clamp(0, 1).expand(-1, 3, -1, -1)  # (B, 3, H, W)


@register
class Colour(Hint):
    """The image's colours, averaged in `cells` x `cells` cells."""

    def __init__(self, cells: int = 8):
        if cells < 1:
            raise UserError(f"colour: cells={cells}; give at least 1.")
        self.cells = cells

    def __call__(self, values: Tensor) -> Tensor:
        unit = _rgb(values.float() * 0.5 + 0.5)
        fields = F.adaptive_avg_pool2d(unit, self.cells)  # (B, 3, cells, cells)
        return F.interpolate(fields, size=values.shape[2:], mode="nearest").clamp(0, 1)


@register
class MaskHint(Hint):
    """The data's mask, white on black."""

    column = "mask"

    def __call__(self, values: Tensor) -> Tensor:
        return values.float().expand(-1, 3, -1, -1)  # (B, 3, H, W)


@register
class MapHint(Hint):
    """The data's map of `classes` ids: one channel for each class, or if `coloured` RGB with one colour for
    each, as in other tools.

    It is read from maps of ids (grey values or palette indices), and if `coloured` from RGB too.
    """

    column = "map"

    def __init__(self, classes: int, coloured: bool = False):
        self.classes, self.coloured = classes, coloured
        self.channels = 3 if coloured else classes

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes in the data's maps."""
        return {"classes": len(table.map_classes) or int(np.max(table.columns["map"])) + 1}

    def __call__(self, values: Tensor) -> Tensor:
        values = self.on_host(values) if values.device.type == "cpu" else values
        if self.coloured:
            return self._palette(values.device)[values.long()].movedim(-1, 1)  # (B, 3, H, W)
        ids = torch.arange(self.classes, device=values.device)[:, None, None]
        return (values[:, None] == ids).float()  # (B, classes, H, W)

    def on_host(self, values: Tensor) -> Tensor:
        """The ids (B, H, W) themselves. Raises UserError for an id that is too high."""
        if (highest := int(values.max())) >= self.classes:
            raise UserError(f"the map has id {highest}; this ControlNet knows 0 to {self.classes - 1}.")
        return values

    def read(self, item: Any, preprocess: Preprocess) -> Tensor:
        """The control image (channels, H, W) for a map of ids, or with `coloured` for an image in these colours."""
        try:
            ids = open_map(item)
        except BadImage:
            if self.coloured:
                return super().read(item, preprocess)
            raise
        return self(torch.from_numpy(preprocess.resize_map(ids.astype(np.uint8)).copy())[None])[0]

    def show(self, hints: Tensor) -> Tensor:
        """The classes in distinct colours, (B, 3, H, W) in [-1, 1]."""
        return super().show(hints if self.coloured else self._palette(hints.device)[hints.argmax(1)].movedim(-1, 1))

    def _palette(self, device: torch.device) -> Tensor:
        """Colours (classes, 3): black for 0, then hues a golden section apart, which stay distinct however many."""
        hues = [
            colorsys.hsv_to_rgb(i * 0.618034 % 1, (1.0, 0.6)[i % 2], (1.0, 0.7, 0.85)[i % 3])
            for i in range(self.classes)
        ]
        return send(torch.tensor([(0.0, 0.0, 0.0), *hues[1:]]), device)


@register
class ColumnHint(Hint):
    """A column of the data that holds control images, by default `control`."""

    def __init__(self, column: str = "control", channels: int = 3):
        self.column, self.channels = column, channels

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The number of channels of the data's column. Raises UserError if it doesn't hold images."""
        column = options["column"]
        shape = np.shape(table.columns[column])
        if len(shape) not in (3, 4):
            raise UserError(f"control={column}: the data's '{column}' doesn't hold images; its shape is {shape}.")
        return {"channels": shape[1] if len(shape) == 4 else 1}

    def __call__(self, values: Tensor) -> Tensor:
        if values.is_floating_point():
            return values * 0.5 + 0.5  # a batch has `control` in [-1, 1]
        return (values if values.ndim == 4 else values[:, None]).float() / 255


def hint_for(control: str, table: Any, options: Mapping[str, Any] | None = None) -> Hint:
    """The kind of control image called `control`, or the column of this name in the data of `table`.

    Raises UserError if the data lack the column from which it is made.
    """
    if control not in KINDS and control not in table.columns:
        known = (*KINDS, *table.columns)
        raise UserError(
            f"control={control} is neither a kind of control image nor a column of the data."
            f"{did_you_mean(control, known)} "
            f"Kinds: {', '.join(KINDS)}; columns: {', '.join(table.columns) or 'none'}."
        )
    spec = {"class": KINDS.get(control, "ColumnHint"), **(options or {})}
    if control not in KINDS:
        spec["column"] = control
    kind = lookup(spec["class"])
    if control in KINDS and kind.column != "image" and kind.column not in table.columns:
        has = ", ".join(["image", *table.columns])
        raise UserError(
            f"control={control} is made from the column '{kind.column}', which the data don't have; they have {has}."
        )
    return build(spec, "finetune.options", **kind.derive(table, spec))


def _rgb(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as (B, 3, H, W): the first three channels, or the first one three times."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def _matching(image: Tensor, channels: int) -> Tensor:
    """An RGB image (3, H, W) with 1 or 3 channels. Raises UserError for other numbers."""
    if channels == 3:
        return image
    if channels == 1:
        return image.mean(0, keepdim=True)  # (1, H, W)
    raise UserError(f"this control image has {channels} channels, unlike any image file: give a tensor in [0, 1].")
