"""torchvision's labelled data sets by name."""

import hashlib
import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.common.errors import UserError, did_you_mean
from ldm.common.randomness import permutation
from ldm.common.registry import register
from ldm.data.augmenting.options import Variants
from ldm.data.augmenting.tables import with_variants
from ldm.data.preparing.options import as_shape, check_val_share
from ldm.data.storage.cached import cached
from ldm.data.storage.table import Table, hash_of, made_so, new_array
from ldm.images import READER, BadImage, Notes, Preprocess, shape_of

_VERSION = "torchvision-1"
_log = logging.getLogger("ldm")


@register
class TorchVision:
    """A labelled data set of torchvision by its class's name: MNIST, FashionMNIST, CIFAR10, SVHN, Flowers102 ...

    The table has one column, `label`, with class names. Options:

    - `dataset`: the name of the class.
    - `root`: the folder of the data set; what isn't there is downloaded.
    - `size`: one number or [height, width]; by default the images' own.
    - `channels`: 1 or 3; by default those of the images.
    - `val_share`: the share of the images held out for validation if the data set has no test split.
    - `resize`: see Preprocess.
    - `options`: further arguments of the class, such as EMNIST's `{"split": "balanced"}`.
    - `flip`, `variants`, `augment`: as for `Folder`.
    """

    def __init__(
        self,
        dataset: str = "MNIST",
        root: str | None = None,
        size: int | list[int] | None = None,
        channels: int | None = None,
        val_share: float = 0.1,
        resize: str = "cover",
        options: Mapping[str, Any] | None = None,
        flip: str = "none",
        variants: int = 1,
        augment: float = 0.0,
    ):
        height, width = as_shape(size) or (1, 1)  # refuses wrong options before anything is downloaded
        Preprocess(3 if channels is None else channels, height, width, resize=resize)
        self.dataset, self.root = dataset, Path(root or "data")
        self.size, self.channels, self.resize = size, channels, resize
        self.val_share = check_val_share(val_share)
        self.options = dict(options or {})
        self.variants = Variants(flip, variants, augment=augment)

    @property
    def name(self) -> str:
        """The data set's name in lower case."""
        return self.dataset.lower()

    @property
    def default_condition(self) -> str:
        """The condition that a model takes unless the user gives one."""
        return "label"

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, cached under `cache`."""
        train, val = self._datasets()
        about = [self.size, self.channels, self.resize, None if val else self.val_share]
        key = hash_of(_VERSION, self.dataset, self.options, about, _fingerprint(train), val and _fingerprint(val))
        pair = cached(Path(cache), key, lambda folder: self._make(train, val, key, folder))
        return with_variants(pair, self.variants, cache)

    def _datasets(self) -> tuple[Any, Any]:
        """Both splits, or the whole data set and None. Raises UserError."""
        import torchvision.datasets

        cls = getattr(torchvision.datasets, self.dataset, None)
        if not inspect.isclass(cls):
            raise UserError(
                f"data.dataset={self.dataset}: torchvision has no such data set."
                f"{did_you_mean(self.dataset, torchvision.datasets.__all__)}"
            )
        known = _parameters(cls)
        if "train" in known:
            return self._open(cls, known, train=True), self._open(cls, known, train=False)
        if "split" in known and "split" not in self.options:
            train = self._open(cls, known, split="train")
            for split in ("test", "val", "valid"):
                try:
                    return train, self._open(cls, known, split=split)
                except ValueError:  # no such split
                    continue
            return train, None
        return self._open(cls, known), None

    def _open(self, cls: type, known: set[str], **split: Any) -> Any:
        arguments = {"root": str(self.root), **self.options, **split}
        try:
            return cls(**arguments, **({"download": False} if "download" in known else {}))
        except (RuntimeError, FileNotFoundError) as error:
            if "download" not in known:
                raise UserError(f"{self.dataset} can't be opened in {self.root}: {error}") from None
        except TypeError as error:
            raise UserError(f"{self.dataset} can't be opened: {error}; see data.options.") from None
        _log.info("%s isn't in %s: downloading it", self.dataset, self.root)
        try:
            return cls(**arguments, download=True)
        except (RuntimeError, OSError) as error:  # URLError is an OSError
            raise UserError(
                f"{self.dataset} isn't in data.root={self.root} and can't be downloaded ({error}); "
                "name the folder that holds it, or try again with a network connection."
            ) from None

    def _make(self, train: Any, val: Any, key: str, folder: Path) -> tuple[Table, Table]:
        if val is None:
            val, (rows, val_rows) = train, _split(len(train), self.val_share)
        else:
            rows, val_rows = np.arange(len(train)), np.arange(len(val))
        preprocess = self._preprocess(train[0][0])
        classes = tuple(str(name) for name in getattr(train, "classes", ()))  # SVHN has none
        tables = (
            self._table(train, rows, preprocess, classes=classes, key=f"{key}-train", folder=folder / "train"),
            self._table(val, val_rows, preprocess, classes=classes, key=f"{key}-val", folder=folder / "val"),
        )
        if not classes:
            highest = max(int(np.max(table.columns["label"])) for table in tables)
            for table in tables:
                table.classes = tuple(str(i) for i in range(highest + 1))
        return tables

    def _preprocess(self, image: Any) -> Preprocess:
        height, width = as_shape(self.size) or shape_of(image)
        channels = self.channels or (1 if image.mode in ("L", "1") else 3)
        resize = "none" if self.size is None else self.resize
        return Preprocess(channels=channels, height=height, width=width, resize=resize)

    def _table(
        self, data: Any, index: Any, preprocess: Preprocess, *, classes: tuple[str, ...], key: str, folder: Path
    ) -> Table:
        frames = None
        if arrays := _in_memory(data, preprocess):
            images, labels = (array[index] for array in arrays)
        else:
            images, labels, frames = self._decode(data, index, preprocess, folder)
        table = Table(
            images=images,
            columns={"label": labels},
            preprocess=preprocess,
            key=key,
            names=[f"{i:06d}" for i in index],
            classes=classes,
            frames=frames,
        )
        return made_so(table) if frames is None else table

    def _decode(
        self, data: Any, index: Any, preprocess: Preprocess, folder: Path
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images `index`, their labels and their frames, one by one. Raises UserError."""
        images = new_array(folder / "images.npy", preprocess.dtype, (len(index), *preprocess.shape))
        labels, frames = np.empty(len(index), np.int64), np.empty((len(index), 6), np.int32)
        notes: Notes = []
        for row, i in enumerate(index.tolist()):
            image, label = data[i]
            try:
                images[row], labels[row] = preprocess.array(image, notes), int(label)
                frames[row] = preprocess.frame(*shape_of(image))
            except BadImage as error:
                raise UserError(f"{self.dataset}, image {i}: {error}; set data.size or data.channels.") from None
            except (TypeError, ValueError, RuntimeError):
                raise UserError(f"{self.dataset} doesn't have one class for each image; choose another.") from None
        for note, count in Counter(notes).items():
            _log.warning("%d of %d images: %s", count, len(index), note)
        return images, labels, frames


def _parameters(cls: type) -> set[str]:
    """The constructor's arguments, with those of the base classes where it passes unknown ones on (EMNIST)."""
    known: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            known |= {p.name for p in parameters}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return known


def _fingerprint(data: Any) -> str:
    """A name for the content of a data set: of all pixels if they are in memory, otherwise of some images."""
    digest = hashlib.sha256(str(len(data)).encode())
    if hasattr(data, "data") and hasattr(data.data, "__array__"):
        digest.update(np.ascontiguousarray(data.data).data)
        digest.update(str(np.asarray(getattr(data, "targets", getattr(data, "labels", 0))).tolist()).encode())
    else:
        digest.update(f"read {READER}".encode())  # not for pixels in memory, which aren't read from files
        for i in np.linspace(0, len(data) - 1, 64).astype(int).tolist():
            image, label = data[i]
            digest.update(image.tobytes() + str(label).encode())
    return digest.hexdigest()


def _in_memory(data: Any, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray] | None:
    """All images and labels at once, if the data set has them in memory in our form, which is much faster than one by
    one."""
    labels = np.asarray(getattr(data, "targets", getattr(data, "labels", None)))
    pixels = np.asarray(getattr(data, "data", None))
    if pixels.dtype != np.uint8 or labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        return None
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1:] != preprocess.shape:
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.shape[1:] != preprocess.shape:
        return None
    image, label = data[0]  # a class may do more than return its arrays
    is_same = (pixels[0] == preprocess.array(image)).all() and label == labels[0]
    return (pixels, labels.astype(np.int64)) if is_same else None


def _split(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    order = permutation(0, 0, n)
    n_val = max(1, round(share * n))
    return np.sort(order[n_val:]), np.sort(order[:n_val])
