"""Data sets of Hugging Face's `datasets` (the `hf` extra): by name, a folder, or parquet files."""

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.common.registry import register
from ldm.data.augmenting.options import Variants
from ldm.data.preparing.decode import Split
from ldm.data.preparing.duplicates import report_duplicates, with_duplicates_as_one
from ldm.data.preparing.encoded_source import EncodedSource
from ldm.data.preparing.holdout import split_off
from ldm.data.reading.findings import examples, plural
from ldm.data.reading.sample import PATHS, Sample, Text, text_of
from ldm.data.reading.store import Store
from ldm.data.storage.table import hash_of

_VERSION = "huggingface-3"
_VALIDATION = ("validation", "val", "valid", "test", "dev")
_NAMES = {  # usual names of our columns; the first that exists is read
    "image": ("image", "img", "png", "jpg", "jpeg", "webp", "picture", "pixel_values"),
    "text": ("text", "caption", "captions", "prompt", "txt"),
    "label": ("label", "labels", "cls", "fine_label", "class"),
}


@register
class HuggingFace(EncodedSource):
    """A data set of Hugging Face's `datasets`: its name on the hub, a folder (of parquet or image files, or one that
    `save_to_disk` wrote), or a parquet file or pattern (`data/train-*.parquet`).

    A caption may be a list of alternatives. Options:

    - `dataset`: the name, folder, file or pattern.
    - `config`: the subset of a data set that has several; `revision`: its version on the hub.
    - `split`: the part to train on; `val_split`: the part to validate on, by default one named validation, val, valid,
      test or dev. If there is none, `val_share` of `split` is held out at random.
    - `image`: the column of images; by default one with a usual name.
    - `columns`: a list restricts which columns are read ([text]); a mapping gives their names in the data set
      ({text: en, label: breed}). By default columns with usual names are read.
    - `size`, `channels`, `bits`, `resize`, `background`, `low`, `high`, `max_bad_share`, `flip`, `variants`, `zoom`,
      `augment`: as for `Folder`.
    - `cache_dir`: where `datasets` keeps its files, by default its own place.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        val_share: float = 0.05,
        image: str | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        bits: int | None = None,
        resize: str = "cover",
        max_bad_share: float = 0.01,
        background: Sequence[float] | None = None,
        low: float | None = None,
        high: float | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        flip: str = "none",
        variants: int = 1,
        zoom: float = 1.0,
        augment: float = 0.0,
    ):
        super().__init__(
            size=size,
            channels=channels,
            bits=bits,
            val_share=val_share,
            columns=columns,
            max_bad_share=max_bad_share,
            options={"resize": resize, "background": background, "low": low, "high": high},
            variants=Variants(flip, variants, zoom, augment),
        )
        self.dataset, self.config, self.split, self.val_split = dataset, config, split, val_split
        self.image, self.revision, self.cache_dir = image, revision, cache_dir
        self.renamed = dict(columns) if isinstance(columns, Mapping) else {}

    @property
    def name(self) -> str:
        """The data set's name without a path, pattern and ending."""
        named = Path(self.dataset).name.split("*")[0] or Path(self.dataset).parent.name
        return named.removesuffix(".parquet").rstrip("-_.")

    def _key(self) -> str:
        fingerprints = [store and store.fingerprint for store in self._rows]
        return hash_of(_VERSION, fingerprints, self.image, self._shaping_options())

    def _classes(self) -> Sequence[str]:
        return self._rows[0].classes

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        train, val = self._rows
        for store in (train, val):
            if store and store.samples and store.gaps:
                captions = (
                    f"{plural(len(store.gaps), 'caption')} of {store.where}, or alternatives in them, aren't text"
                )
                kinds = "(null, not-a-number, true, a mapping) and count as missing"
                self.findings.warn(f"{captions} {kinds}: {examples(store.gaps)}")
        if val is None:
            image_name = with_duplicates_as_one(train, train.samples, _row, self.findings)
            return split_off(
                train,
                train.samples,
                self.val_share,
                self.findings,
                image_of=image_name,
                classes=self._classes(),
            )
        report_duplicates(
            [(train, s.image) for s in train.samples], [(val, s.image) for s in val.samples], self.findings
        )
        return (train, train.samples), (val, val.samples)

    def _split_described(self) -> str:
        return self._rows[1].where if self._rows[1] else super()._split_described()

    @cached_property
    def _rows(self) -> "tuple[DatasetStore, DatasetStore | None]":
        parts = self._open()
        if self.split not in parts:
            raise UserError(f"data.split={self.split}: {self.dataset} has {', '.join(parts)}.")
        if self.val_split and self.val_split not in parts:
            raise UserError(f"data.val_split={self.val_split}: {self.dataset} has {', '.join(parts)}.")
        others = [name for name in _VALIDATION if name in parts and name != self.split]
        val = self.val_split or next(iter(others), None)
        columns = self._columns(parts[self.split])
        train = DatasetStore(f"{self.dataset} ({self.split})", parts[self.split], columns)
        return train, DatasetStore(f"{self.dataset} ({val})", parts[val], columns) if val else None

    def _open(self) -> Mapping[str, Any]:
        """The parts of the data set by name. Raises UserError."""
        datasets = _datasets()
        path, options = Path(self.dataset).expanduser(), {"cache_dir": self.cache_dir, "revision": self.revision}
        try:
            if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                opened = datasets.load_from_disk(str(path))
                return opened if isinstance(opened, datasets.DatasetDict) else {self.split: opened}
            if path.is_dir():
                return datasets.load_dataset(str(path), self.config, **options)
            if path.suffix == ".parquet":
                return datasets.load_dataset("parquet", data_files={"train": str(path)}, **options)
            return datasets.load_dataset(self.dataset, self.config, **options)
        except Exception as error:  # its errors are of many kinds
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"data.dataset={self.dataset} can't be opened by Hugging Face's datasets ({reason}); give a data set, "
                "a folder or a .parquet file."
            ) from None

    def _columns(self, data: Any) -> dict[str, str]:
        """The data set's own name of the image column and of each wanted column. Raises UserError."""
        present = list(data.column_names)
        images = [name for name, kind in data.features.items() if type(kind).__name__ == "Image"]
        wanted = {key: name for key, name in self.columns.items() if key in self.renamed}
        for name in (self.image, *wanted.values()):
            if name is not None and name not in present:
                raise UserError(f"data.columns: {self.dataset} has no column '{name}'.{did_you_mean(name, present)}")
        image = self.image or next((n for n in (*_NAMES["image"], *images) if n in present), None)
        if image is None:
            raise UserError(
                f"{self.dataset} has no column of images among {', '.join(present)}: name it with data.image=."
            )
        found = {"image": image}
        for key in self.columns:
            names = (wanted[key],) if key in wanted else _NAMES.get(key, (key,))
            if name := next((n for n in names if n in present and n != image), None):
                found[key] = name
        return found


class DatasetStore(Store):
    """The rows of a data set as files: `00000012/image` is the encoded image of row 12."""

    def __init__(self, where: str, data: Any, columns: Mapping[str, str]):
        self.where, self.columns = where, dict(columns)
        datasets, fingerprint = _datasets(), data._fingerprint
        for key in ("image", *PATHS):
            if (name := columns.get(key)) and isinstance(data.features[name], datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        self.data, self.fingerprint, self.gaps = data, fingerprint, list[str]()
        kind = data.features[columns["label"]] if "label" in columns else None
        self.classes: tuple[str, ...] = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else ()

    @cached_property
    def samples(self) -> list[Sample]:
        """A sample for each row."""
        texts, labels = self._values("text"), self._values("label")
        found = [
            Sample(f"{i:08d}/image", text=self._caption(i, text), label=self._label(label), **self._paths(i))
            for i, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
        sizes = self._sizes()
        if not sizes:  # the average of a few
            few = [len(self.read(sample.image)) for sample in found[:: max(1, len(found) // 8)]]
            sizes = [sum(few) // len(few)] * len(found)
        self.entries = {sample.image: (size, 0) for sample, size in zip(found, sizes, strict=True)}
        return found

    def _sizes(self) -> list[int]:
        """The bytes of each row's encoded image, from the table's offsets; 0 for an image in its own file. Empty where
        images are arrays."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self.data.data.column(self.columns["image"])
        if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
            return []
        sizes = pc.binary_length(pc.struct_field(column, "bytes"))
        rows = self.data._indices
        return [size or 0 for size in (sizes if rows is None else sizes.take(rows.column(0))).to_pylist()]

    def _paths(self, row: int) -> dict[str, Any]:
        return {key: f"{row:08d}/{key}" for key in PATHS if key in self.columns}

    def open(self, path: str) -> BinaryIO:
        """The encoded image at ROW/KEY."""
        row, key = path.split("/")
        return io.BytesIO(_encoded(self.data[int(row)][self.columns[key]]))

    def _values(self, key: str) -> Sequence[Any]:
        return self.data[self.columns[key]][:] if key in self.columns else [None] * len(self.data)

    def _caption(self, row: int, value: Any) -> Text:
        """A row's caption, or alternatives without empty ones. Records rows with values that aren't text."""
        value = [text for text in value if text != ""] if isinstance(value, (list, tuple)) else value
        text, whole = text_of(value)
        if not whole:
            self.gaps.append(f"row {row}")
        return text

    def _label(self, value: Any) -> str | int | None:
        if self.classes and isinstance(value, int):
            return self.classes[value] if value >= 0 else None
        return value


def _row(path: str) -> str:
    """The name of a row's image."""
    return path.split("/")[0]


def _encoded(value: Any) -> bytes:
    """A cell's image as the bytes of a file."""
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return Path(value).read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, _smallest(np.asarray(value)))
    return buffer.getvalue()


def _smallest(array: np.ndarray) -> np.ndarray:
    """Whole numbers as uint8 or uint16 if they fit: `datasets` gives nested lists as int64."""
    if array.dtype.kind == "i" and array.size and array.min() >= 0 and array.max() < 2**16:
        return array.astype(np.uint8 if array.max() < 256 else np.uint16)
    return array


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("Hugging Face's data sets need the package datasets: pip install 'ldm[hf]'.") from None
    return datasets
