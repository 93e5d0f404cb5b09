"""Your own images: a folder or a .zip, decoded once into memory-mapped arrays."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.data.folders.candidates import Part, check_names, held_out
from ldm.data.folders.classes import image_of, tell_inner
from ldm.data.folders.listing import samples
from ldm.data.folders.repeats import check_repeats
from ldm.data.preparing.copies import grouped, tell_copies
from ldm.data.preparing.decode import Split, are_sparse
from ldm.data.preparing.holdout import split_off, told
from ldm.data.preparing.stored import EMBEDDED, WHOLE, Stored
from ldm.data.reading.beside import tell_disguised, tell_passed, tell_unread
from ldm.data.reading.embedded import check_embedded, tell_embedded
from ldm.data.reading.layout import Layout, Meant, inside
from ldm.data.reading.metadata_files import tell_outside
from ldm.data.reading.sample import PATHS, Sample, Seen, plural, some
from ldm.data.reading.split_column import by_column
from ldm.data.reading.store import Store, open_store
from ldm.data.reading.tables import tell_tables
from ldm.data.storage.table import hash_of

_VERSION = "folder-3"


@register
class Folder(Stored):
    """A folder or .zip of images, with what it says about them.

    - `metadata.jsonl` as the Hugging Face image folder has it: one line of JSON an image, with `file_name` and any of
      `text` (a caption, or a list of alternatives), `label`, and the paths `map`, `mask`, `control`; or `metadata.csv`
      with columns of these names;
    - or NAME.txt or NAME.caption beside NAME.png, one caption (with `captions=lines` one a line), or NAME.json with a
      caption among what it says, or, with `captions=embedded`, what is inside of the image; and one subfolder for each
      class, in natural order (2 before 10);
    - or kohya's folders `10_name`: an epoch visits their images 10 times, and `name` is the caption of those without a
      file. `repeats` says whether such folders are meant, by default if they look like it.

    `captions=tags` makes a list of tags one caption; a list is of alternatives otherwise, but in columns named so.

    `classes` says whether subfolders are classes, by default unless they are named as masks of the images beside them,
    by dates, or as cameras and other tools name them. `without` names folders, by name or path, that are left out, and
    files by patterns (`*_mask.*`).

    Splits: `train/` and `val/` where there are both, or as people spell them (training, valid, test, val2017), also
    below the classes; otherwise `val_root`, whose images are never trained on, or a fixed random `val_share` of the
    images. `columns` takes only some columns ([text]) or gives their names in the metadata ({text: caption}). `size` is
    a number or [height, width] and defaults to the images' own where all agree; `channels` and `bits` default to what
    the images hold. `resize`, `background`, `low` and `high`: see Preprocess. What can't be read is left out and
    counted; more than `max_bad_share` of it stops the run.

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
        captions: str = WHOLE,
        repeats: bool | None = None,
        classes: bool | None = None,
        without: Sequence[str] = (),
    ):
        options = {"resize": resize, "background": background, "low": low, "high": high}
        if buckets and not isinstance(size, int):
            raise UserError("data.buckets=true needs data.size=NUMBER, the side of a square of the area of all shapes.")
        step = (bucket_step or max(8, int(str(size)) // 8)) if buckets else None
        super().__init__(size, channels, bits, val_share, columns, max_bad_share, options, step, bucket_least, captions)
        if classes and repeats:
            raise UserError("data.classes=true and data.repeats=true: a folder is a class or says repeats; say one.")
        self.root, self.val_root, self.repeats = root, val_root, repeats
        self.meant = Meant(classes, repeats, [name.strip("/") for name in without])

    @property
    def name(self) -> str:
        path = Path(self.root).expanduser().resolve()
        return path.name if path.is_dir() else path.stem

    def _key(self) -> str:
        """Names files and options, and what the listing made of them: another version that makes other samples of the
        same files has another key."""
        stores = {store.where: store for store, _ in self._splits}
        entries = [list(store.entries.items()) for store in stores.values()]
        listed = [[list(vars(sample).values()) for sample in samples] for _, samples in self._splits]
        numbers = [s.label for _, samples in self._splits for s in samples if isinstance(s.label, int)]
        # only the classes that there are: otherwise than before, of labels that are identifiers
        sparse = ["sparse labels"] if are_sparse(numbers) else []
        return hash_of(_VERSION, entries, listed, self.captions, self._about(), *sparse)

    def _split_said(self) -> str:
        if self.val_root is not None:
            return f"data.val_root={self.val_root}"
        if self.seen.splits and not self._layout.val:
            return self.seen.split_column
        return some([f"{folder}/" for folder in self._layout.val]) or super()._split_said()

    @cached_property
    def _store(self) -> Store:
        return open_store(self.root)

    @cached_property
    def _other(self) -> Store | None:
        return None if self.val_root is None else open_store(self.val_root)

    @cached_property
    def _part(self) -> Part:
        """What of the root may be trained on."""
        store = self._store
        for source in [store] if self._other is None else [store, self._other]:
            tell_passed(source, self.seen)
        check_names(store, self.meant.without)
        held = held_out(store, self._other, self.meant) if self._other else []
        reason = f"of data.val_root={self.val_root}, to validate on"
        self.seen.leave(held, reason)
        return Part.of(store, self.meant, (), self.seen, {*held})

    @cached_property
    def _layout(self) -> Layout:
        return self._part.layout(self.val_root is not None, self.seen)

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        store, layout = self._store, self._layout
        train = self._listed(self._part, layout.train, layout.trains)
        if self.repeats:
            check_repeats(train)
        if self.val_root is None and not layout.val:
            if self.seen.splits:
                train, val = by_column(train, self.seen)
                return self._checked(store, train, store, val)
            self._tell(train, store)
            pair = split_off(store, train, self.val_share, self.seen, grouped(store, train, image_of, self.seen))
            _tell_columns(pair[0][1], pair[1][1], self.seen)
            return pair
        known = {str(sample.label) for sample in train if sample.label is not None}
        if self._other is None:
            other, val = store, self._listed(self._part, layout.val, layout.validates, known)
        else:
            other, val = self._other, self._validation(self._other, known)
        if self.seen.splits:
            said = "data.val_root is given" if self.val_root is not None else f"{some(layout.val)}/ is there"
            self.seen.note(f"{self.seen.split_column} isn't read as the split, as {said}")
        return self._checked(store, train, other, val)

    def _checked(self, store: Store, train: list[Sample], other: Store, val: list[Sample]) -> tuple[Split, Split]:
        """Both splits, and what is to be said of them. Raises UserError where one is empty."""
        self._tell([*train, *val], *dict.fromkeys((store, other)))
        for source, found in ((store, train), (other, val)):
            if not found:
                what = "training" if found is train else "validation"
                raise UserError(f"{source.where} holds no images for {what}.{told(self.seen)}")
        if both := {s.image for s in train} & {s.image for s in val} if other.where == store.where else set():
            count = plural(len(both), "image") + (" is" if len(both) == 1 else " are")
            self.seen.note(f"{count} both for training and for validation: {some(sorted(both))}")
        _tell_columns(train, val, self.seen)
        tell_inner([s.image for s in train if s.label is not None], self._layout.train, self.seen)
        tell_copies([(store, s.image) for s in train], [(other, s.image) for s in val], self.seen)
        return (store, train), (other, val)

    def _validation(self, store: Store, known: Collection[str]) -> list[Sample]:
        """The samples of `val_root`: of its own part for validation, if it has one."""
        part = Part.of(store, self.meant, known, self.seen)
        folders = part.layout(False, Seen()).val or ("",)
        return self._listed(part, folders, lambda path: inside(path, folders), known)

    def _tell(self, found: Sequence[Sample], *stores: Store) -> None:
        """What wasn't read, but for what the samples name."""
        tell_outside(found, self.seen)
        for store in stores:
            paths = [path for path in store.entries if path not in self.seen.read]
            tell_disguised(store, paths, self.seen)
            tell_tables(store, paths, self.seen)
            tell_unread([path for path in paths if path not in self.seen.left_out], self.seen)
        for path in [path for s in found for path in (s.map, s.mask, s.control) if path]:
            self.seen.left_out.pop(path, None)

    def _listed(
        self, part: Part, folders: Sequence[str], keep: Callable[[str], bool], known: Collection[str] = ()
    ) -> list[Sample]:
        found = samples(
            part.store,
            folders[0] if len(folders) == 1 else "",
            self.columns,
            self.seen,
            known=known,
            meant=self.meant,
            left=part.left,
            keep=lambda path: keep(path) and path not in part.gone,
        )
        if "text" in self.columns:
            self._look_inside(found, part.store)
        return found

    def _look_inside(self, found: Sequence[Sample], store: Store) -> None:
        """Takes captions out of the images that have no others, if that is wanted; else it is said that there are."""
        bare = [sample for sample in found if not sample.text and not sample.caption]
        if self.captions == EMBEDDED:
            check_embedded(bare, store)
            for sample in bare:
                sample.caption = sample.image
        elif len(bare) == len(found):
            tell_embedded(bare, store, self.seen)


def _tell_columns(train: Sequence[Sample], val: Sequence[Sample], seen: Seen) -> None:
    """Notes what validation's images have and training's don't, which is then of no use."""
    for what, keys in (("captions", ("text", "caption")), ("labels", ("label",)), *((f"{k}s", (k,)) for k in PATHS)):
        has = [any(getattr(sample, key) is not None for sample in of for key in keys) for of in (train, val)]
        if has == [False, True]:
            seen.note(f"validation's images have {what} and training's don't: they aren't read")
