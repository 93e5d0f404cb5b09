"""From listed samples to a table: decoding on threads, in chunks, into memory-mapped arrays."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ldm.common.errors import UserError, printable
from ldm.data.preparing.labels import check_labels, classes_of_labels
from ldm.data.reading.captions.files import read_caption
from ldm.data.reading.captions.json_files import OURS
from ldm.data.reading.findings import plural
from ldm.data.reading.sample import Sample, join_tags
from ldm.data.reading.store import Store
from ldm.data.storage.table import FRAME, REPEATS, Column, Table, new_array
from ldm.images import TRANSPARENT, BadImage, Preprocess, alike, open_image, open_map, open_mask, shape_of

CONTROL_ON_BLACK = (
    "transparency of its control image blended with black: save white lines on black, without transparency"
)
_CHUNK_BYTES = 2**25
_BIG_FILE = 2**14  # bytes on average, from which on threads pay
_SHOW_PROGRESS = 2000  # images from which on a bar is shown
_OTHERS = " Fix them, or remove them so that other images are chosen for validation."
_AT_ONCE = 10  # with more bad images than this the run may stop before all are decoded
Split = tuple[Store, list[Sample]]
T = TypeVar("T")
R = TypeVar("R")


class TooManyBad(UserError):
    """More images than `max_bad_share` can't be used."""


class Tally:
    """Counts images that can't be used, and stops the run if they are more than `max_share` of `total`.

    `notes` counts what was done to images that are used, in words: a converted colour profile, for example.
    `no_caption` are the images without a caption, `several_lines` the caption files of several lines.
    """

    def __init__(self, total: int, max_share: float):
        self.total, self.max_share = total, max_share
        self.bad: dict[str, str] = {}
        self.notes: Counter[str] = Counter()
        self.no_caption: list[str] = []
        self.several_lines: list[str] = []

    def add(self, path: str, reason: str) -> None:
        """Records an image that can't be used. Raises UserError as soon as there are clearly too many."""
        self.bad[path] = reason
        if len(self.bad) > max(_AT_ONCE, self.max_share * self.total):
            self.check()

    def check(self) -> None:
        """Raises UserError above the threshold."""
        if len(self.bad) > self.max_share * self.total:
            first = "; ".join(f"{printable(path)}: {reason}" for path, reason in list(self.bad.items())[:3])
            more = " ..." if len(self.bad) > 3 else ""
            raise TooManyBad(
                f"{len(self.bad)} of {self.total} images can't be used ({first}{more}). "
                f"Fix them, or allow more than data.max_bad_share={self.max_share}."
            )


@dataclass
class Decoder:
    """What both splits share: the preprocessing, the columns of each image, and the classes.

    `has` are the columns of the training split. With `captions` "lines" each line of a caption file is a caption, with
    "tags" a list is one caption. `text` is the key of captions in NAME.json.
    """

    preprocess: Preprocess
    control: Preprocess | None
    has: tuple[str, ...]
    classes: tuple[str, ...]
    captions: str = ""
    text: str = OURS

    @classmethod
    def of(
        cls,
        train: Split,
        val: Split,
        preprocess: Preprocess,
        *,
        classes: Sequence[str] = (),
        captions: str = "",
        text: str = OURS,
    ) -> "Decoder":
        """A decoder with the columns of the training split, to which the validation split must conform.

        `classes` are the names of the labels 0, 1, ...; without them the labels give the names. Raises UserError.
        """
        rows = train[1]
        has = [key for key in ("label", "map", "mask", "control") if any(getattr(row, key) is not None for row in rows)]
        if any(row.text is not None or row.caption is not None for row in rows):
            has.append("text")
        if "label" in has:
            check_labels(rows, val[1])
            classes = tuple(classes) or classes_of_labels(rows, val[1])
        control = _control(train, preprocess) if "control" in has else None
        return cls(
            preprocess=preprocess,
            control=control,
            has=tuple(has),
            classes=tuple(classes) if "label" in has else (),
            captions=captions,
            text=text,
        )

    def table(self, split: Split, folder: Path, *, key: str, tally: Tally, purpose: str = "") -> Table:
        """Decodes a split into `folder`; bad images are left out and counted.

        `purpose`, such as "for training", is for messages. Raises UserError if no image can be used.
        """
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
            images = f"{plural(len(rows), 'image')} {purpose}".rstrip()
            first = rows[0].image
            raise UserError(
                f"none of the {images} in {store.where} can be used ({first}: {tally.bad[first]}).{_OTHERS}"
            )
        apart = ("images", FRAME)
        columns: dict[str, Column] = {name: array[: len(kept)] for name, array in arrays.items() if name not in apart}
        if "label" in self.has:
            numbers = {name: i for i, name in enumerate(self.classes)}
            columns["label"] = np.array([numbers[str(sample.label)] for sample in kept], np.int64)
        if "text" in self.has:
            columns["text"] = self._texts(store, kept, tally)
        if any(sample.repeats > 1 for sample in rows):
            columns[REPEATS] = np.array([sample.repeats for sample in kept], np.int64)
        return Table(
            images=arrays["images"][: len(kept)],
            columns=columns,
            preprocess=self.preprocess,
            key=key,
            names=[sample.image for sample in kept],
            classes=self.classes,
            frames=arrays[FRAME][: len(kept)],
        )

    def _texts(self, store: Store, rows: Sequence[Sample], tally: Tally) -> list[str | list[str]]:
        texts = []
        for sample in rows:
            text = read_caption(store, sample.caption, self.text) if sample.caption else sample.text
            if sample.caption and isinstance(text, str) and "\n" in text:
                if self.captions == "lines":
                    text = _lines(text)
                else:
                    tally.several_lines.append(sample.caption)
            if self.captions == "tags":
                text = join_tags(text)
            if not text:  # in place of an empty file the folder's name, where that is a caption
                text = (sample.text if sample.caption else None) or ""
            if not text:
                tally.no_caption.append(sample.image)
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
        """Yields each sample, in order, with its arrays or what is wrong with it, and with notes."""
        from tqdm import tqdm

        chunk = max(1, min(1024, _CHUNK_BYTES // int(np.prod(self.preprocess.shape))))
        decoded = in_order(lambda sample: self.one(store, sample), rows, chunk, threads=big_files(store, rows))
        bar = tqdm(decoded, desc="decoding", total=len(rows), disable=len(rows) < _SHOW_PROGRESS, mininterval=1)
        return zip(rows, bar, strict=True)

    def cropped(self, zoom: float, across: float, down: float) -> "Decoder":
        """A decoder that crops images, maps, masks and control images to the same part: see `Preprocess.cropped`."""
        control = self.control and self.control.cropped(zoom, across, down)
        return replace(self, preprocess=self.preprocess.cropped(zoom, across, down), control=control)

    def one(self, store: Store, sample: Sample) -> tuple[dict[str, np.ndarray] | BadImage, list[str]]:
        """The arrays of a sample, or what is wrong with it, and notes about it."""
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
    """Yields function(item) for each item, in order; on threads if `threads`. At most `chunk` results are kept in
    memory."""
    if not threads:
        yield from map(function, items)
        return
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), chunk):
            yield from pool.map(function, items[start : start + chunk])


def big_files(store: Store, rows: Sequence[Sample]) -> bool:
    """Whether threads make decoding faster. With files of a few kB they wait for Python's lock, and make it slower."""
    sizes = [store.entries.get(sample.image, (0, 0))[0] for sample in rows]
    return sum(sizes) > _BIG_FILE * len(sizes)


def _check_aspect(image: bytes, other: Any, key: str, channels: int) -> None:
    """Raises BadImage if a map, mask or control image has another aspect than its image; its size may differ."""
    (height, width), (h, w) = shape_of(image, channels), shape_of(other)
    if not alike((height, width), (h, w)):
        raise BadImage(f"is {height}x{width} but its {key} is {h}x{w}, of another shape")


def _read(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except (KeyError, FileNotFoundError):
        is_link = path in store.entries
        raise BadImage("is a link to a missing file" if is_link else "doesn't exist") from None
    except Exception as error:  # a zip's members fail in many ways
        raise BadImage(f"can't be read ({error})") from None


def _path(sample: Sample, key: str) -> str:
    path = getattr(sample, key)
    if path is None:
        raise BadImage(f"has no {key}, unlike others")
    return path


def _control(split: Split, preprocess: Preprocess) -> Preprocess:
    """The preprocessing of control images: 8 bits, the images' size and crop, and the channels of the first one."""
    store, rows = split
    first = next(row.control for row in rows if row.control is not None)
    image = open_image(_read(store, first))
    grey = image.ndim == 2 if isinstance(image, np.ndarray) else image.mode in ("1", "L", "I;16")
    _, height, width = preprocess.shape
    return Preprocess(1 if grey else 3, height, width, resize=preprocess.resize, background=[0])


def _lines(text: str) -> str | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else "".join(lines)
