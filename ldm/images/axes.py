"""Which axes of an array are rows, columns and channels."""

import math
from collections.abc import Sequence

import numpy as np

from ldm.images.unknown import BadImage

SURE = 4  # as many channels may be more than rows


def channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C); where both ends fit, the last axis is taken for the channels."""
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise BadImage(f"has shape {array.shape}; an image has (H, W), (H, W, C) or (C, H, W)")
    if array.shape[2] != channels and array.shape[0] in (1, channels):
        return array.transpose(1, 2, 0)
    return array


def shape_of_array(shape: Sequence[int], channels: int | None = None) -> tuple[int, int]:
    """Height and width of (H, W), (H, W, C) or (C, H, W): the end of that many channels, else the shorter end, is the
    channels'. Raises BadImage where these would be as many as an image's rows or columns, or more."""
    if len(shape) not in (2, 3):
        raise BadImage(f"has shape {tuple(shape)}; an image has (H, W), (H, W, C) or (C, H, W)")
    first, last = shape[0], shape[-1]
    if len(shape) == 2 or last == channels:
        return shape[0], shape[1]
    count, height, width = (first, shape[1], last) if first < last or first == channels else (last, first, shape[1])
    if count > SURE and count != channels and count >= min(height, width):
        either = f"{first}, the first axis, or {last}, the last" if first != last else f"{last}, the last axis"
        raise BadImage(
            f"has shape {tuple(shape)}, in which channels can't be told from rows and columns: say by data.channels= "
            f"how many there are ({either})"
        )
    return height, width


def check_channels(shape: Sequence[int], channels: int | None) -> None:
    """Raises BadImage for a TIFF's (H, W) or (H, W, C) whose pages are too many to be taken for channels unsaid."""
    if len(shape) not in (2, 3):
        raise BadImage(f"has shape {tuple(shape)}; an image has (H, W) or (H, W, C)")
    count = math.prod(shape[2:])
    if count > SURE and count != channels and count >= min(shape[:2]):
        raise BadImage(
            f"holds {count} channels or pages of {shape[0]}x{shape[1]}: say data.channels={count} if they are "
            "channels, or save one page of each alone"
        )
