"""Sizes, channels and bits of images, read from the heads of their files."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence

from ldm.common.errors import UserError
from ldm.data.preparing.decode import Split, big_files, in_order
from ldm.data.reading.findings import plural
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store
from ldm.data.storage.buckets import Shape
from ldm.images import probe

Head = tuple[int, int, int, int]  # height, width, channels, bits
Heads = dict[tuple[str, str], Head]  # by the store's place and the image's path
_SMALL = 2**16  # bytes: files that are read as a whole, as seeking in a zip's members is slow


class SizesDiffer(UserError):
    """The images have several sizes and none is chosen; `sizes` are (height, width) of each."""

    def __init__(self, message: str, sizes: Sequence[Shape] = ()):
        super().__init__(message)
        self.sizes = sizes


def read_heads(splits: Sequence[Split], channels: int | None) -> Heads:
    """The heads of all images that can be read; `channels` as the user gives them. Raises UserError if none can."""

    def head(pair: tuple[Store, Sample]) -> tuple[tuple[str, str], Head] | None:
        """The head of one image, with the image's store and path as its key; None if it can't be read."""
        store, sample = pair
        try:
            is_small = store.entries.get(sample.image, (0, 0))[0] < _SMALL
            with io.BytesIO(store.read(sample.image)) if is_small else store.open(sample.image) as file:
                return (store.where, sample.image), probe(file, channels)
        except Exception:  # whatever it is, it is counted when it is decoded
            return None

    pairs = [(store, sample) for store, samples in splits for sample in samples]
    threads = any(big_files(store, samples) for store, samples in splits)
    heads = dict(found for found in in_order(head, pairs, threads=threads) if found)
    if not heads:
        store, sample = pairs[0]
        images = f"{plural(len(pairs), 'image')} in {store.where}"
        raise UserError(f"none of the {images} can be read: {_error_of(store, sample, channels)}.")
    return heads


def common_channels(heads: Sequence[Head]) -> int:
    """The number of channels for all images: that of colour if some are colour and some grey; above 3, the most
    frequent number."""
    counts = Counter(channels for _, _, channels, _ in heads)
    return max(counts) if max(counts) <= 3 else counts.most_common(1)[0][0]


def common_size(heads: Mapping[tuple[str, str], Head]) -> Shape:
    """The size of all images. Raises UserError if they differ."""
    sizes: dict[Shape, str] = {}
    for (_, path), (height, width, *_) in heads.items():
        sizes.setdefault((height, width), path)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise SizesDiffer(
            f"the images have {len(sizes)} sizes ({first} is {a[0]}x{a[1]}, {second} {b[0]}x{b[1]}, height x width); "
            "set data.size to one number or [height, width].",
            [(height, width) for height, width, *_ in heads.values()],
        )
    return next(iter(sizes))


def _error_of(store: Store, sample: Sample, channels: int | None) -> str:
    """Why an image's head can't be read."""
    try:
        with store.open(sample.image) as file:
            probe(file, channels)
        return f"{sample.image} is one"
    except Exception as error:
        return f"{sample.image}: {error}"
