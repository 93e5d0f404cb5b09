"""Your own images: a folder or a .zip, decoded once into memory-mapped arrays."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ldm.data.decode import Split
from ldm.data.listing import open_store, samples
from ldm.data.stored import Stored, split_off
from ldm.data.table import hash_of
from ldm.errors import UserError
from ldm.registry import register

_VERSION = "folder-1"
_VALIDATION = ("val", "valid", "validation", "test")


@register
class Folder(Stored):
    """A folder or .zip of images, with what it says about them.

    - `metadata.jsonl` as the Hugging Face image folder has it: one line of JSON an image, with `file_name` and any of
      `text` (a caption, or a list of alternatives), `label`, and the paths `map`, `mask`, `control`; or `metadata.csv`
      with columns of these names;
    - or NAME.txt beside NAME.png, one caption a line; and one subfolder for each class.

    Splits: `train/` and `val/` (`valid/`, `validation/`, `test/`) where there are both; otherwise `val_root`, or a
    fixed random `val_share`. `columns` takes only some columns ([text]) or gives their names in the metadata
    ({text: caption}). `size` is a number or [height, width] and defaults to the images' own where all agree; `channels`
    and `bits` default to what the images hold. `resize`, `background`, `low` and `high`: see Preprocess. What can't be
    read is left out and counted; more than `max_bad_share` of it stops the run.

    With `buckets` images keep about their aspect: each goes to the nearest of several shapes that have the area of a
    square of `size`, sides that are multiples of `bucket_step` (an eighth of `size`, at least 8) and `bucket_least`
    images. A batch is of one shape.
    """

    def __init__(
        self,
        root: str,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        bits: int | None = None,
        val_share: float = 0.05,
        val_root: str | None = None,
        resize: str = "cover",
        columns: Sequence[str] | Mapping[str, str] | None = None,
        max_bad_share: float = 0.01,
        background: Sequence[float] | None = None,
        low: float | None = None,
        high: float | None = None,
        buckets: bool = False,
        bucket_step: int | None = None,
        bucket_least: int = 16,
    ):
        options = {"resize": resize, "background": background, "low": low, "high": high}
        if buckets and not isinstance(size, int):
            raise UserError("data.buckets=true needs data.size=NUMBER, the side of a square of the area of all shapes.")
        step = (bucket_step or max(8, int(str(size)) // 8)) if buckets else None
        super().__init__(size, channels, bits, val_share, columns, max_bad_share, options, step, bucket_least)
        self.root, self.val_root = root, val_root

    @property
    def name(self) -> str:
        path = Path(self.root).expanduser().resolve()
        return path.name if path.is_dir() else path.stem

    def _key(self) -> str:
        stores = {store.where: store for store, _ in self._splits}
        entries = [list(store.entries.items()) for store in stores.values()]
        return hash_of(_VERSION, self.val_root is None, entries, self._about())

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        store = open_store(self.root)
        folder = next((name for name in _VALIDATION if name in store.tops), "")
        inner = "train" if "train" in store.tops and (folder or self.val_root or len(store.tops) == 1) else ""
        train = samples(store, inner, self.columns)
        if self.val_root is not None:
            other = open_store(self.val_root)
            within = next((name for name in _VALIDATION if name in other.tops and "train" in other.tops), "")
            val = other, samples(other, within, self.columns)
        elif inner and folder:
            val = store, samples(store, folder, self.columns)
        else:
            return split_off(store, train, self.val_share)
        for source, found in ((store, train), val):
            if not found:
                raise UserError(f"{source.where} holds no images for {'training' if found is train else 'validation'}.")
        return (store, train), val
