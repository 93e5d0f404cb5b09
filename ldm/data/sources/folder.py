"""Your own images: a folder or a .zip, decoded once into memory-mapped arrays."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.data.augmenting.options import Variants
from ldm.data.folders.candidates import Candidates, check_without, shared_with_val_root
from ldm.data.folders.classes import image_of, level_of, report_inner_folders
from ldm.data.folders.edits import with_edits_as_one
from ldm.data.folders.layouts.groups import check_group, column_of, grouped, report_series, report_shared_groups
from ldm.data.folders.listing import samples
from ldm.data.folders.pairs import check_pairs, report_pairs
from ldm.data.folders.repeats import check_option, check_repeats, set_repeats
from ldm.data.preparing.decode import Split
from ldm.data.preparing.duplicates import report_duplicates, with_duplicates_as_one
from ldm.data.preparing.encoded_source import EncodedSource
from ldm.data.preparing.holdout import GROUP, IMAGE, reasons_in, split_off
from ldm.data.preparing.labels import are_sparse
from ldm.data.preparing.options import WHOLE, step_of_buckets
from ldm.data.preparing.other_captions import read_other_captions
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.metadata_files import report_missing_images
from ldm.data.reading.paths import inside
from ldm.data.reading.sample import PATHS, Sample
from ldm.data.reading.split_column import by_column
from ldm.data.reading.split_folders import FIRST, FolderOptions, Layout
from ldm.data.reading.store import Store, open_store
from ldm.data.reading.unread import report_disguised, report_unreachable, report_unread
from ldm.data.reading.unread_tables import report_tables
from ldm.data.storage.table import hash_of

_VERSION = "folder-3"


@register
class Folder(EncodedSource):
    """A folder or .zip of images, with captions, classes, maps, masks and control images.

    Captions and the rest come from

    - `metadata.jsonl` as in Hugging Face's image folders: a line of JSON for each image, with `file_name` and any of
      `text` (a caption, or a list of alternatives), `label`, and the paths `map`, `mask` and `control`; or
      `metadata.csv` with columns of these names;
    - otherwise from NAME.txt, NAME.caption or NAME.cap beside NAME.png, which is one caption, or from the caption in
      NAME.json; and from one subfolder for each class, in natural order (2 before 10);
    - or from folders named `10_name`, as kohya's tools have them: an epoch visits their images 10 times, and `name` is
      the caption of images without a caption file.

    Options:

    - `root`: the folder or .zip.
    - `size`: a number or [height, width]; by default the images' own size, if all have the same.
    - `channels`, `bits` (8 or 16): by default those of the images.
    - `val_share`: the share of the images, chosen at random, that is held out for validation. It is used unless there
      are folders for both splits, `train/` and `val/` or common variants (training, valid, test, val2017), also inside
      the folders of classes.
    - `group`: which images belong together, as the slices of a patient or the frames of a clip do, so that one side of
      the split has all of them: those in one `folder`; those of one `name` but for the last number; those with the
      same value in a column of the metadata (patient_id); or a regular expression whose group (named `group`, or the
      first) matches the same in their paths ("(patient\\d+)").
    - `val_root`: a folder or .zip of validation images, which are never trained on.
    - `resize`, `background`, `low`, `high`: see Preprocess.
    - `columns`: a list restricts which columns are read ([text]); a mapping gives their names in the metadata
      ({text: caption}).
    - `max_bad_share`: images that can't be read are left out and counted; a larger share of them stops the run.
    - `buckets`: images keep their aspect approximately. Each goes to the nearest of several shapes that have the area
      of a square of `size`, and a batch has images of one shape. The sides are multiples of `bucket_step` (by default
      an eighth of `size`, at least 8), and each shape has at least `bucket_least` images.
    - `captions`: `whole` (default): a caption file is one caption; `lines`: each of its lines is an alternative;
      `embedded`: captions are read from inside the images; `names`: an image's name is its caption; `tags`: a list in
      the metadata is one caption, joined by commas, instead of alternatives (columns named tags or keywords are read so
      anyway).
    - `repeats`: whether folders `10_name` are repeats, by default if they look like it; or how often an epoch visits
      the images of each folder, by name or path ({dog: 10}).
    - `classes`: whether subfolders are classes; by default they are, unless they are named by dates, as cameras and
      other tools name folders, or hold masks and the like of the images beside them. Of folders within folders,
      `first` (also true) is the outermost, `last` the one that holds the image, `path` all of them (animals/cat);
      `none` is false.
    - `pairs`: where the files of columns lie that have the names of their images: a folder ({control: source}) or a
      pattern of names ({mask: "*_mask.png", text: "*.prompt"}).
    - `without`: names or paths of folders, and patterns of files (`*_mask.*`), that are left out.
    - `flip` (horizontal, both), `variants`, `zoom`, `augment`: further versions of training images, made once: see
      docs/howto-augmentation.md.
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
        repeats: bool | Mapping[str, int] | None = None,
        classes: bool | str | None = None,
        without: Sequence[str] = (),
        pairs: Mapping[str, str] | None = None,
        group: str | None = None,
        flip: str = "none",
        variants: int = 1,
        zoom: float = 1.0,
        augment: float = 0.0,
    ):
        wanted, level = level_of(classes)
        check_option(repeats, classes if wanted else None)
        super().__init__(
            size=size,
            channels=channels,
            bits=bits,
            val_share=val_share,
            columns=columns,
            max_bad_share=max_bad_share,
            options={"resize": resize, "background": background, "low": low, "high": high},
            bucket_step=step_of_buckets(bucket_step, size) if buckets else None,
            bucket_least=bucket_least,
            captions=captions,
            variants=Variants(flip, variants, zoom, augment),
        )
        self.root, self.val_root, self.repeats, self.group = root, val_root, repeats, check_group(group)
        self.findings.group_column = column_of(self.group)
        by_name = repeats if isinstance(repeats, bool) else None
        self.folder_options = FolderOptions(
            wanted, by_name, [name.strip("/") for name in without], level, pairs=check_pairs(pairs)
        )

    @property
    def name(self) -> str:
        """The name of the folder or file."""
        path = Path(self.root).expanduser().resolve()
        return path.name if path.is_dir() else path.stem

    def _key(self) -> str:
        """A name for files, options, and the samples that the listing made of them. If a later version of the code
        makes other samples of the same files, the key changes."""
        stores = {store.where: store for store, _ in self._splits}
        entries = [list(store.entries.items()) for store in stores.values()]
        listed = [[list(vars(sample).values()) for sample in samples] for _, samples in self._splits]
        numbers = [s.label for _, samples in self._splits for s in samples if isinstance(s.label, int)]
        # earlier versions made a class of every number up to the highest, also where labels are identifiers
        sparse = ["sparse labels"] if are_sparse(numbers) else []
        return hash_of(_VERSION, entries, listed, self.captions, self._shaping_options(), *sparse)

    def _split_described(self) -> str:
        if self.val_root is not None:
            return f"data.val_root={self.val_root}"
        if self.findings.splits and not self._layout.val:
            return self.findings.split_column
        return examples([f"{folder}/" for folder in self._layout.val]) or super()._split_described() + (
            f" groups by data.group={self.group}" if self.group else ""
        )

    @cached_property
    def _store(self) -> Store:
        return open_store(self.root)

    @cached_property
    def _val_store(self) -> Store | None:
        """The store of `val_root`, if it is given."""
        return None if self.val_root is None else open_store(self.val_root)

    @cached_property
    def _candidates(self) -> Candidates:
        """The images of the root that may be samples, without those of `val_root`."""
        stores = [self._store] if self._val_store is None else [self._store, self._val_store]
        for store in stores:
            report_unreachable(store, self.findings)
        check_without(self._store, self.folder_options.without)
        validated: list[str] = []
        if self._val_store is not None:
            validated = shared_with_val_root(self._store, self._val_store, self.folder_options)
        self.findings.leave_out(validated, f"for validation, since they are in data.val_root={self.val_root}")
        return Candidates.of(self._store, self.folder_options, (), self.findings, validated=validated)

    @cached_property
    def _layout(self) -> Layout:
        return self._candidates.layout(self.val_root is not None, self.findings)

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        layout = self._layout
        train = self._listed(self._candidates, layout.train, layout.trains)
        if self.repeats is True:
            check_repeats(train)
        elif self.repeats:
            set_repeats(train, self.repeats, self.findings)
        if self.val_root is None and not layout.val:
            if self.findings.splits:
                train, val = by_column(train, self.findings)
                return self._checked((self._store, train), (self._store, val))
            return self._random_splits(train)
        known = {str(sample.label) for sample in train if sample.label is not None}
        if self._val_store is None:
            val_split = self._store, self._listed(self._candidates, layout.val, layout.validates, known)
        else:
            val_split = self._val_store, self._of_val_root(self._val_store, known)
        if self.findings.splits:
            reason = "data.val_root is given" if self.val_root is not None else f"there is {examples(layout.val)}/"
            self.findings.warn(f"{self.findings.split_column} isn't read as the split, since {reason}")
        return self._checked((self._store, train), val_split)

    def _random_splits(self, found: list[Sample]) -> tuple[Split, Split]:
        """A random part of the samples for validation."""
        self._report_files(found, [self._store])
        paths = [sample.image for sample in found]
        if self.group:
            name_of, unit = grouped(paths, self.group, self.findings.groups), GROUP
        else:
            report_series(paths, any(sample.label is not None for sample in found), self.findings)
            name_of, unit = with_edits_as_one(found, image_of, self.findings), IMAGE
        image_name = with_duplicates_as_one(self._store, found, name_of, self.findings)
        train, val = split_off(self._store, found, self.val_share, self.findings, image_of=image_name, unit=unit)
        _report_columns(train[1], val[1], self.findings)
        return train, val

    def _checked(self, train_split: Split, val_split: Split) -> tuple[Split, Split]:
        """Both splits, after reporting on them. Raises UserError if one is empty."""
        (store, train), (val_store, val) = train_split, val_split
        self._report_files([*train, *val], list(dict.fromkeys((store, val_store))))
        for (source, found), purpose in ((train_split, "training"), (val_split, "validation")):
            if not found:
                raise UserError(f"{source.where} holds no images for {purpose}.{reasons_in(self.findings)}")
        both = {sample.image for sample in train} & {sample.image for sample in val}
        if both and val_store.where == store.where:
            count = plural(len(both), "image") + (" is" if len(both) == 1 else " are")
            self.findings.warn(f"{count} both for training and for validation: {examples(sorted(both))}")
        if self.group:
            report_shared_groups([s.image for s in train], [s.image for s in val], self.group, self.findings)
        _report_columns(train, val, self.findings)
        labelled = [sample.image for sample in train if sample.label is not None]
        if self.folder_options.level == FIRST:
            report_inner_folders(labelled, self._layout.train, self.findings)
        report_duplicates([(store, s.image) for s in train], [(val_store, s.image) for s in val], self.findings)
        return train_split, val_split

    def _of_val_root(self, store: Store, known: Collection[str]) -> list[Sample]:
        """The samples of `val_root`, or of its own folder for validation if it has one."""
        candidates = Candidates.of(store, self.folder_options, known, self.findings)
        folders = candidates.layout(False, Findings()).val or ("",)
        return self._listed(candidates, folders, lambda path: inside(path, folders), known)

    def _report_files(self, found: Sequence[Sample], stores: Sequence[Store]) -> None:
        """Reports the files that weren't read, and no longer counts maps, masks and control images of samples as left
        out."""
        report_missing_images(found, self.findings)
        report_pairs(found, stores, self.folder_options.pairs, self.findings)
        for store in stores:
            paths = [path for path in store.entries if path not in self.findings.read]
            report_disguised(store, paths, self.findings)
            report_tables(store, paths, self.findings)
            report_unread([path for path in paths if path not in self.findings.left_out], self.findings)
        for sample in found:
            for path in (sample.map, sample.mask, sample.control):
                self.findings.left_out.pop(path or "", None)

    def _listed(
        self, candidates: Candidates, folders: Sequence[str], keep: Callable[[str], bool], known: Collection[str] = ()
    ) -> list[Sample]:
        """The samples among the candidates that lie in `folders` and that `keep` accepts by their paths."""
        found = samples(
            candidates.store,
            folders[0] if len(folders) == 1 else "",
            self.columns,
            self.findings,
            known=known,
            options=self.folder_options,
            excluded=candidates.excluded,
            keep=lambda path: keep(path) and path not in candidates.removed,
            splits=(*self._layout.train, *self._layout.val),
        )
        if "text" in self.columns:
            read_other_captions(found, candidates.store, self.captions, self.findings)
        return found


def _report_columns(train: Sequence[Sample], val: Sequence[Sample], findings: Findings) -> None:
    """Warns of columns that only validation images have, which can't be used."""
    kinds = {"captions": ("text", "caption"), "labels": ("label",)} | {f"{key}s": (key,) for key in PATHS}
    for kind, keys in kinds.items():
        if _has_any(val, keys) and not _has_any(train, keys):
            findings.warn(f"the validation images have {kind} that the training images lack, so they aren't read")


def _has_any(found: Sequence[Sample], keys: Sequence[str]) -> bool:
    return any(getattr(sample, key) is not None for sample in found for key in keys)
