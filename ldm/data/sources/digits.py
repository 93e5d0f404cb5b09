"""scikit-learn's handwritten digits: the small set for quick tests."""

from pathlib import Path

import numpy as np

from ldm.common.errors import UserError
from ldm.common.randomness import permutation
from ldm.common.registry import register
from ldm.data.augmenting.options import Variants
from ldm.data.augmenting.tables import with_variants
from ldm.data.preparing.options import check_val_share
from ldm.data.storage.cached import cached
from ldm.data.storage.table import Table, hash_of, made_so
from ldm.images import Preprocess

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_VERSION = "digits-1"


@register
class Digits:
    """The 1,797 digits that scikit-learn ships (Alpaydin and Kaynak, UCI 1998), 8x8 grey, 17 levels, ink is white.

    The table's columns are `label` and `text` ("the digit seven"). Options:

    - `size`: the side to which they are enlarged, by bicubic interpolation with clipping.
    - `val_share`: the share of the images, chosen once and for all, that is held out for validation.
    - `flip`, `variants`, `augment`: as for `Folder`.
    """

    def __init__(
        self, size: int = 16, val_share: float = 0.2, flip: str = "none", variants: int = 1, augment: float = 0.0
    ):
        if size < 8:
            raise UserError(f"data.size={size}: the digits have 8x8 pixels; use at least 8.")
        self.size, self.val_share = size, check_val_share(val_share)
        self.variants = Variants(flip, variants, augment=augment)

    @property
    def name(self) -> str:
        """The name of the data set."""
        return "digits"

    @property
    def default_condition(self) -> str:
        """The condition that a model takes unless the user gives one."""
        return "label"

    def tables(self, cache: Path) -> tuple[Table, Table]:
        """Train and validation tables, cached under `cache`."""
        key = hash_of(_VERSION, self.size, self.val_share)
        train, val = cached(Path(cache), key, lambda folder: self._make(key))
        return with_variants((made_so(train), made_so(val)), self.variants, cache)

    def _make(self, key: str) -> tuple[Table, Table]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = _enlarge(digits.images, self.size)[:, None]  # (N, 1, size, size)
        order = permutation(0, 0, len(images))
        n_val = round(self.val_share * len(images))
        train = self._table(images, digits.target, np.sort(order[n_val:]), f"{key}-train")
        val = self._table(images, digits.target, np.sort(order[:n_val]), f"{key}-val")
        return train, val

    def _table(self, images: np.ndarray, labels: np.ndarray, index: np.ndarray, key: str) -> Table:
        label = labels[index].astype(np.int64)
        return Table(
            images=images[index],
            columns={"label": label, "text": [f"the digit {_WORDS[i]}" for i in label]},
            preprocess=Preprocess(channels=1, height=self.size, width=self.size, resize="stretch", background=[0]),
            key=key,
            names=[f"{i:04d}" for i in index],
            classes=tuple(str(i) for i in range(10)),
        )


def _enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """(N, 8, 8) of 0..16 to (N, size, size) uint8."""
    from PIL import Image

    big = [
        np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
        for image in images
    ]
    return np.rint(np.stack(big).clip(0, 16) * (255 / 16)).astype(np.uint8)
