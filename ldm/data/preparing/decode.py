"""From listed samples to a table: decoding on threads, piece by piece, into memory-mapped arrays."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ldm.common.errors import UserError, printable
from ldm.data.reading.caption_files import read_caption
from ldm.data.reading.caption_json import OURS
from ldm.data.reading.sample import Sample, joined, plural
from ldm.data.reading.store import Store
from ldm.data.storage.table import FRAME, REPEATS, Column, Table, new_array
from ldm.images import TRANSPARENT, BadImage, Preprocess, alike, open_image, open_map, open_mask, shape_of

CONTROL_ON_BLACK = "transparency of its control image laid on black: save white lines on black, without transparency"
_CHUNK_BYTES = 2**25
_BIG_FILE = 2**14  # bytes
_SHOW_PROGRESS = 2000  # images
_OTHERS = " Fix them, or take them out, so that others are chosen."
LEAVE = (
    "Give each class an image for either split, or train without classes: data.classes=false, if they are folders, or "
    "data.columns='[text]', if metadata have them."
)
_AT_ONCE = 10  # bad images from which on the run is stopped before all are decoded
_MOST_CLASSES, _SPARSE = 2**14, 10  # as many classes are taken as labels count to; beyond it if a tenth is there
Split = tuple[Store, list[Sample]]
T = TypeVar("T")
R = TypeVar("R")


class Tally:
    """Counts what can't be used, and stops the run when it is more than `max_share` of `total`.

    `notes` counts, in words, what was done to images that are used: a colour profile converted, say. `no_caption` names
    images without one, `several_lines` files of captions.
    """

    def __init__(self, total: int, max_share: float):
        self.total, self.max_share = total, max_share
        self.bad: dict[str, str] = {}
        self.notes: Counter[str] = Counter()
        self.no_caption: list[str] = []
        self.several_lines: list[str] = []

    def add(self, path: str, reason: str) -> None:
        """Notes one bad image."""
        self.bad[path] = reason
        if len(self.bad) > max(_AT_ONCE, self.max_share * self.total):
            self.check()

    def check(self) -> None:
        """Raises UserError above the threshold."""
        if len(self.bad) > self.max_share * self.total:
            some = "; ".join(f"{printable(path)}: {reason}" for path, reason in list(self.bad.items())[:3])
            raise UserError(
                f"{len(self.bad)} of {self.total} images can't be used ({some}{' ...' if len(self.bad) > 3 else ''}). "
                f"Fix them, or allow more than data.max_bad_share={self.max_share}."
            )


@dataclass
class Decoder:
    """What both splits share: the preprocessing, the files that belong to each image, and the classes."""

    preprocess: Preprocess
    control: Preprocess | None
    has: tuple[str, ...]  # columns of the training split
    classes: tuple[str, ...]
    captions: str = ""  # "lines": each line of a caption's file is one; "tags": a list is one
    text: str = OURS  # what NAME.json calls a caption

    @classmethod
    def of(
        cls,
        train: Split,
        val: Split,
        preprocess: Preprocess,
        classes: Sequence[str] = (),
        captions: str = "",
        text: str = OURS,
    ) -> "Decoder":
        """Reads off the training split which columns there are; the validation split has to fit.

        `classes` are the names of the labels 0, 1, ...; without them they are read off the labels.
        """
        rows = train[1]
        has = [key for key in ("label", "map", "mask", "control") if any(getattr(row, key) is not None for row in rows)]
        if any(row.text is not None or row.caption is not None for row in rows):
            has.append("text")
        if "label" in has:
            _check_labels(rows, val[1])
            classes = tuple(classes) or _classes(rows, val[1])
        control = _control(train, preprocess) if "control" in has else None
        return cls(preprocess, control, tuple(has), tuple(classes) if "label" in has else (), captions, text)

    def table(self, split: Split, folder: Path, key: str, tally: Tally, of: str = "") -> Table:
        """Decodes a split into `folder`; bad images are left out and counted. `of` says what the split is for."""
        store, rows = split
        arrays = self._arrays(folder, len(rows))
        kept: list[Sample] = []
        for sample, (decoded, notes) in self._decode(store, rows):
            if isinstance(decoded, BadImage):
                tally.add(sample.image, str(decoded))
                continue
            tally.notes.update(notes)
            for name, value in decoded.items():
                arrays[name][len(kept)] = value
            kept.append(sample)
        if not kept:
            tally.check()
            what = f"{plural(len(rows), 'image')}{of and ' '}{of} in {store.where}"
            raise UserError(f"of the {what} none can be used ({rows[0].image}: {tally.bad[rows[0].image]}).{_OTHERS}")
        apart = ("images", FRAME)
        columns: dict[str, Column] = {name: array[: len(kept)] for name, array in arrays.items() if name not in apart}
        if "label" in self.has:
            numbers = {name: i for i, name in enumerate(self.classes)}
            columns["label"] = np.array([numbers[str(sample.label)] for sample in kept], np.int64)
        if "text" in self.has:
            columns["text"] = self._texts(store, kept, tally)
        if any(sample.repeats > 1 for sample in rows):
            columns[REPEATS] = np.array([sample.repeats for sample in kept], np.int64)
        images = arrays["images"][: len(kept)]
        names, frames = [sample.image for sample in kept], arrays[FRAME][: len(kept)]
        return Table(images, columns, self.preprocess, key, names, self.classes, frames=frames)

    def _texts(self, store: Store, rows: Sequence[Sample], tally: Tally) -> list[str | list[str]]:
        texts = []
        for sample in rows:
            text = read_caption(store, sample.caption, self.text) if sample.caption else sample.text
            if sample.caption and isinstance(text, str) and "\n" in text:
                tally.several_lines += [] if self.captions == "lines" else [sample.caption]
                text = _lines(text) if self.captions == "lines" else text
            if self.captions == "tags":
                text = joined(text)
            if not text:  # a file of nothing leaves its folder's word
                text = (sample.text if sample.caption else None) or ""
            tally.no_caption += [] if text else [sample.image]
            texts.append(text)
        return texts

    def _arrays(self, folder: Path, n: int) -> dict[str, np.memmap]:
        channels, height, width = self.preprocess.shape
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {"images": (self.preprocess.dtype, self.preprocess.shape)}
        shapes[FRAME] = np.int32, (6,)
        shapes |= {key: (np.uint8, (height, width)) for key in ("map", "mask") if key in self.has}
        if self.control:
            shapes["control"] = np.uint8, self.control.shape
        return {key: new_array(folder / f"{key}.npy", dtype, (n, *shape)) for key, (dtype, shape) in shapes.items()}

    def _decode(
        self, store: Store, rows: Sequence[Sample]
    ) -> Iterator[tuple[Sample, tuple[dict[str, np.ndarray] | BadImage, list[str]]]]:
        """Each sample, in order, with its arrays or with what is wrong, and what is to be noted of it."""
        from tqdm import tqdm

        chunk = max(1, min(1024, _CHUNK_BYTES // int(np.prod(self.preprocess.shape))))
        decoded = in_order(lambda sample: self._one(store, sample), rows, chunk, threads=big_files(store, rows))
        bar = tqdm(decoded, desc="decoding", total=len(rows), disable=len(rows) < _SHOW_PROGRESS, mininterval=1)
        return zip(rows, bar, strict=True)

    def _one(self, store: Store, sample: Sample) -> tuple[dict[str, np.ndarray] | BadImage, list[str]]:
        notes: list[str] = []
        try:
            content = _read(store, sample.image)
            out = {"images": self.preprocess.array(content, notes)}
            out[FRAME] = np.array(self.preprocess.frame(*shape_of(content, self.preprocess.channels)), np.int32)
            for key in [key for key in ("map", "mask") if key in self.has]:
                other = _read(store, _path(sample, key))
                values = open_map(other) if key == "map" else open_mask(other, notes)
                _check_aspect(content, values, key, self.preprocess.channels)
                out[key] = self.preprocess.resize_map(values)
            if self.control:
                control = _read(store, _path(sample, "control"))
                _check_aspect(content, control, "control", self.preprocess.channels)
                about: list[str] = []
                out["control"] = self.control.array(control, about)
                notes += [CONTROL_ON_BLACK for note in about if note.startswith(TRANSPARENT)]
            return out, notes
        except BadImage as error:
            return error, notes


def in_order(function: Callable[[T], R], items: Sequence[T], chunk: int = 1024, threads: bool = True) -> Iterator[R]:
    """`function` of each item, in order, on threads or not; no more than a chunk of results waits in memory."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), chunk):
            yield from pool.map(function, items[start : start + chunk])


def big_files(store: Store, rows: Sequence[Sample]) -> bool:
    """Whether threads pay: with files of a few kB they wait for Python's lock and are slower than none."""
    sizes = [store.entries.get(sample.image, (0, 0))[0] for sample in rows]
    return sum(sizes) > _BIG_FILE * len(sizes)


def _check_aspect(image: bytes, other: Any, key: str, channels: int) -> None:
    """What belongs to an image may be larger or smaller, but must show the same part of the world."""
    (height, width), (h, w) = shape_of(image, channels), shape_of(other)
    if not alike((height, width), (h, w)):
        raise BadImage(f"is {height}x{width} but its {key} is {h}x{w}, of another shape")


def _read(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except (KeyError, FileNotFoundError):
        raise BadImage("isn't there") from None
    except Exception as error:  # a zip's members fail in many ways
        raise BadImage(f"can't be read ({error})") from None


def _path(sample: Sample, key: str) -> str:
    path = getattr(sample, key)
    if path is None:
        raise BadImage(f"has no {key}, unlike others")
    return path


def _control(split: Split, preprocess: Preprocess) -> Preprocess:
    """Controls are 8-bit pictures of the images' size and crop, with the channels of the first."""
    store, rows = split
    first = next(row.control for row in rows if row.control is not None)
    picture = open_image(_read(store, first))
    grey = picture.ndim == 2 if isinstance(picture, np.ndarray) else picture.mode in ("1", "L", "I;16")
    _, height, width = preprocess.shape
    return Preprocess(1 if grey else 3, height, width, resize=preprocess.resize, background=[0])


def _check_labels(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    if val and all(sample.label is None for sample in val):
        raise UserError(
            f"none of the {len(val)} images for validation, such as {val[0].image}, has a label, unlike training's: "
            "sort them into folders of the same names, or take them out (data.without= names folders) and let "
            "data.val_share hold out others."
        )
    for sample in (*train, *val):
        if sample.label is None:
            raise UserError(f"{sample.image} has no label while others have; give it one, or take it out.")


def class_names(labels: Collection[str | int | None]) -> tuple[str, ...]:
    """The words in natural order (2 before 10), or the numbers up to the highest; only those that there are where most
    of these would be missing, as identifiers have it."""
    numbers = [label for label in labels if isinstance(label, int) and label >= 0]
    if len(numbers) == len(labels) and not are_sparse(numbers):
        return tuple(str(i) for i in range(max(numbers) + 1))
    return tuple(sorted({str(label) for label in labels}, key=_natural))


def are_sparse(numbers: Collection[int]) -> bool:
    """Whether labels are identifiers rather than numbers of classes, counted from zero."""
    return max(numbers, default=0) >= max(_MOST_CLASSES, _SPARSE * len(set(numbers)))


def _natural(word: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers within words by their value: by their length, then digit by digit."""
    parts = re.findall(r"[0-9]+|[^0-9]+", word)
    numbers = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
    return [(1, 0, p) if n is None else (0, len(n), n) for p, n in zip(parts, numbers, strict=True)], word


def _classes(train: Sequence[Sample], val: Sequence[Sample]) -> tuple[str, ...]:
    """The class names of training, which validation must not go beyond."""
    classes = class_names({sample.label for sample in train})
    known = set(classes)
    for sample in val:
        if str(sample.label) not in known:
            raise UserError(f"{sample.image} is of class '{sample.label}', which training doesn't have. {LEAVE}")
    return classes


def _lines(text: str) -> str | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else "".join(lines)
