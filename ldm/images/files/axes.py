"""Which axes of an array are rows, columns and channels."""

import math
from collections.abc import Sequence

import numpy as np
from einops import rearrange

from ldm.images.files.unreadable import BadImage

SURE = 4  # an axis of up to this length may hold the channels even if rows or columns are fewer


def channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C). If both the first and the last axis fit, the last has the channels.

    Raises BadImage for other numbers of axes.
    """
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise BadImage(f"has shape {array.shape}; an image has (H, W), (H, W, C) or (C, H, W)")
    if array.shape[2] != channels and array.shape[0] in (1, channels):
        return rearrange(array, "c h w -> h w c")
    return array


def shape_of_array(shape: Sequence[int], channels: int | None = None) -> tuple[int, int]:
    """Height and width of (H, W), (H, W, C) or (C, H, W).

    Of the first and the last axis the one of length `channels`, otherwise the shorter one, has the channels. Raises
    BadImage if there would be at least as many channels as rows or columns.
    """
    if len(shape) not in (2, 3):
        raise BadImage(f"has shape {tuple(shape)}; an image has (H, W), (H, W, C) or (C, H, W)")
    first, last = shape[0], shape[-1]
    if len(shape) == 2 or last == channels:
        return shape[0], shape[1]
    count, height, width = (first, shape[1], last) if first < last or first == channels else (last, first, shape[1])
    if count > SURE and count != channels and count >= min(height, width):
        either = f"{first}, the first axis, or {last}, the last" if first != last else f"{last}, the last axis"
        raise BadImage(
            f"has shape {tuple(shape)}, and any of its axes may be the channels: give their number as data.channels= "
            f"({either})"
        )
    return height, width


def check_channels(shape: Sequence[int], channels: int | None) -> None:
    """Raises BadImage for a TIFF (H, W) or (H, W, C) with so many pages that they may not be channels."""
    if len(shape) not in (2, 3):
        raise BadImage(f"has shape {tuple(shape)}; an image has (H, W) or (H, W, C)")
    count = math.prod(shape[2:])
    if count > SURE and count != channels and count >= min(shape[:2]):
        raise BadImage(
            f"holds {count} channels or pages of {shape[0]}x{shape[1]}: set data.channels={count} if they are "
            "channels, or save one page of each file alone"
        )
