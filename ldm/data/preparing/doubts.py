"""What may be meant otherwise than it was decoded, by the pixels of a few images: their depth, and an array's axes."""

import re
from collections.abc import Sequence

import numpy as np

from ldm.data.reading.sample import Sample, plural, some
from ldm.data.reading.store import Store
from ldm.images import SURE, Preprocess, open_image

_LOOKED_AT = 16  # images
_DEPTHS = (8, 10, 12, 14)  # bits that instruments keep in 16
_PNG, _DEPTH, _CUT = b"\x89PNG\r\n\x1a\n", 24, (2, 4, 6)  # where IHDR has the depth; types in colour or with alpha
_PPM = re.compile(rb"P[36]\s(\s|#[^\n]*\n)*\d+\s+\d+\s+(\d+)\s")  # in colour, and its highest value
_NPY, _AXES = b"\x93NUMPY", 3


def doubts(store: Store, samples: Sequence[Sample], preprocess: Preprocess, channels: int | None) -> list[str]:
    """What to say of images, decoded by `preprocess`, where `channels` is what the user says of them."""
    few = [sample.image for sample in samples[:: -(-len(samples) // _LOOKED_AT) or 1]]
    cut, tops, axes = [], [], []
    for path in few:
        try:
            content = store.read(path)
            array = _deep(content) if preprocess.low is None else None
            cut += [path] if preprocess.bits == 8 and _is_cut(content) else []
            tops += [int(array.max())] if array is not None else []
            axes += [_shape(content)] if content.startswith(_NPY) and preprocess.channels > SURE else []
        except Exception:  # whatever it is, it is counted when it is decoded
            continue
    found = [_of_cut(cut, len(few))] if cut else []
    found += [_of_depth(max(tops), len(tops))] if tops and max(tops) < 2 ** _DEPTHS[-1] else []
    cubes = [shape for shape in axes if len(shape) == _AXES]
    return [*found, *([_of_axes(cubes[0], preprocess.channels)] if cubes and channels is None else [])]


def _deep(content: bytes) -> np.ndarray | None:
    """The values of an image of 16 bits."""
    values = np.asarray(open_image(content))
    return values if values.dtype == np.uint16 or values.dtype == np.int32 else None


def _is_cut(content: bytes) -> bool:
    """Whether it is a PNG or PPM of 16 bits in colour or with alpha, of which Pillow reads 8."""
    if head := _PPM.match(content):
        return int(head[2]) > 255
    return content.startswith(_PNG) and content[_DEPTH] == 16 and content[_DEPTH + 1] in _CUT


def _shape(content: bytes) -> tuple[int, ...]:
    return np.asarray(open_image(content)).shape


def _of_cut(paths: Sequence[str], looked: int) -> str:
    said = f"PNGs and PPMs of 16 bits in colour or with alpha are reduced to 8 ({len(paths)} of {looked} that were"
    return f"{said} looked at: {some(paths)}): data.bits=16 keeps all"


def _of_depth(top: int, looked: int) -> str:
    bits = next(bits for bits in _DEPTHS if top < 2**bits)
    said = (
        f"images of 16 bits with no value above {top} in {plural(looked, 'image')} that were looked at, so nearly black"
    )
    return f"{said}: if they are of {bits} bits, data.low=0 data.high={2**bits - 1} makes that white"


def _of_axes(shape: tuple[int, ...], channels: int) -> str:
    first = shape[0] == channels and shape[-1] != channels
    read = f"{'channels x height x width' if first else 'height x width x channels'}, {channels} channels"
    other = shape[-1] if first else shape[0]
    return f"arrays of {'x'.join(map(str, shape))} are read as {read}: data.channels={other} reads the other axis so"
