"""Warnings about images that may not have been decoded as intended, by the pixels of a few: depth, and arrays' axes."""

import re
from collections.abc import Sequence

import numpy as np

from ldm.data.reading.findings import examples, plural
from ldm.data.reading.paths import evenly_spaced
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store
from ldm.images import SURE, Preprocess, open_image

_LOOKED_AT = 16  # images
_DEPTHS = (8, 10, 12, 14)  # bits that cameras and scanners store in 16
_PNG, _DEPTH, _TYPES = b"\x89PNG\r\n\x1a\n", 24, (2, 4, 6)  # IHDR's place for the depth; types with colour or alpha
_PPM = re.compile(rb"P[36]\s(\s|#[^\n]*\n)*\d+\s+\d+\s+(\d+)\s")  # in colour, and its highest value
_NPY, _AXES = b"\x93NUMPY", 3


def pixel_warnings(store: Store, samples: Sequence[Sample], preprocess: Preprocess, channels: int | None) -> list[str]:
    """Warnings about images that `preprocess` decodes; `channels` as the user gives them."""
    looked_at = [sample.image for sample in evenly_spaced(samples, _LOOKED_AT)]
    reduced: list[str] = []  # paths of images reduced to 8 bits
    highest: list[int] = []  # the highest values of images of 16 bits
    cubes: list[tuple[int, ...]] = []  # shapes of arrays of many channels
    for path in looked_at:
        try:
            content = store.read(path)
            values = _deep_values(content) if preprocess.low is None else None
            if preprocess.bits == 8 and _is_deep_colour(content):
                reduced.append(path)
            if values is not None:
                highest.append(int(values.max()))
            if content.startswith(_NPY) and preprocess.channels > SURE:
                cubes.append(np.asarray(open_image(content)).shape)
        except Exception:  # whatever it is, it is counted when it is decoded
            continue
    found = []
    if reduced:
        found.append(_about_reduction(reduced, len(looked_at)))
    if highest and max(highest) < 2 ** _DEPTHS[-1]:
        found.append(_about_depth(max(highest), len(highest)))
    cubes = [shape for shape in cubes if len(shape) == _AXES]
    if cubes and channels is None:
        found.append(_about_axes(cubes[0], preprocess.channels))
    return found


def _deep_values(content: bytes) -> np.ndarray | None:
    """The values of an image of 16 bits; None for others."""
    values = np.asarray(open_image(content))
    return values if values.dtype in (np.uint16, np.int32) else None


def _is_deep_colour(content: bytes) -> bool:
    """Whether an image is a 16-bit PNG or PPM in colour or with alpha, which Pillow reads as 8 bits."""
    if head := _PPM.match(content):
        return int(head[2]) > 255
    return content.startswith(_PNG) and content[_DEPTH] == 16 and content[_DEPTH + 1] in _TYPES


def _about_reduction(paths: Sequence[str], looked_at: int) -> str:
    count = f"{len(paths)} of {looked_at} that were looked at: {examples(paths)}"
    return (
        f"PNGs and PPMs of 16 bits in colour or with alpha are reduced to 8 bits ({count}): data.bits=16 keeps all 16"
    )


def _about_depth(highest: int, looked_at: int) -> str:
    bits = next(bits for bits in _DEPTHS if highest < 2**bits)
    images = f"{plural(looked_at, 'image')} that {'was' if looked_at == 1 else 'were'} looked at"
    message = f"images of 16 bits are nearly black: no value is above {highest} in {images}"
    return f"{message}; if they have {bits} bits, data.low=0 data.high={2**bits - 1} makes the highest value white"


def _about_axes(shape: tuple[int, ...], channels: int) -> str:
    is_first = shape[0] == channels and shape[-1] != channels
    order = "channels x height x width" if is_first else "height x width x channels"
    other = shape[-1] if is_first else shape[0]
    message = f"arrays of {'x'.join(map(str, shape))} are read as {order}, {channels} channels"
    return f"{message}: data.channels={other} reads the other axis as channels"
