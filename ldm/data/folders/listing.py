"""What a folder or a .zip of images holds: samples with their captions, labels, maps, masks and control images."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ldm.data.folders.classes import classes_of, is_storage_folder, nested_classes
from ldm.data.folders.common_names import aside, report_class_like_names, report_odd_classes
from ldm.data.folders.pairs import read_pairs
from ldm.data.folders.repeats import repeat_described, repeats_of
from ldm.data.reading.captions.files import JSON, find_captions, report_unread_captions
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.metadata_files import read_metadata
from ldm.data.reading.paths import ending, is_image
from ldm.data.reading.sample import PATHS, Sample
from ldm.data.reading.split_folders import FIRST, FolderOptions
from ldm.data.reading.store import Store


def samples(
    store: Store,
    under: str,
    columns: Mapping[str, str],
    findings: Findings | None = None,
    *,
    known: Collection[str] = (),
    options: FolderOptions = FolderOptions(),  # noqa: B008  immutable
    excluded: Mapping[str, str] | None = None,
    keep: Callable[[str], bool] = lambda path: True,
    splits: Collection[str] = (),
) -> list[Sample]:
    """The samples inside the folder `under` whose paths `keep` accepts, in the order of the metadata or of their paths.

    `columns` has the wanted columns, each with its name in the metadata. `known` are the training classes if these
    images are for validation. `excluded` are images that aren't samples unless metadata name them, with the reason.
    `splits` are the folders of training and validation.
    """
    findings = Findings() if findings is None else findings
    listing = _Listing(store=store, columns=columns, known=known, options=options, findings=findings, splits=splits)
    return listing.samples(under, excluded or {}, keep)


@dataclass
class _Listing:
    """One pass over a store: what `samples` is given, in one place."""

    store: Store
    columns: Mapping[str, str]
    known: Collection[str]
    options: FolderOptions
    findings: Findings
    splits: Collection[str]

    def samples(self, under: str, excluded: Mapping[str, str], keep: Callable[[str], bool]) -> list[Sample]:
        """The samples in the folder `under` whose paths `keep` accepts, by metadata files or, without any, by file
        names."""
        paths = [path for path in self.store.under(under) if keep(path)]
        found = read_metadata(self.store, under, self.columns, self.findings, keep=keep)
        found = self._from_metadata(found, paths) if found else self._from_files(paths, excluded)
        self._drop_empty_captions(found)
        for sample in found:
            self.findings.read |= {sample.caption, *(getattr(sample, key) for key in PATHS)}
            for key in PATHS:
                if key not in self.columns:
                    setattr(sample, key, None)
        return found

    def _from_metadata(self, found: list[Sample], paths: Sequence[str]) -> list[Sample]:
        """The samples that metadata name, with captions and classes from elsewhere where the metadata have none."""
        named = {path for sample in found for path in (sample.image, sample.map, sample.mask, sample.control)}
        unnamed = [path for path in paths if is_image(path) and path not in named]
        self.findings.leave_out(unnamed, "not in the metadata")
        found = repeat_described(found, self.options.repeats, self.findings)
        self._pair(found)
        if "text" in self.columns:
            without = [sample for sample in found if not sample.text and not sample.caption]
            find_captions(without, self.store, self.findings, self.columns["text"])
            report_unread_captions([sample for sample in found if sample.text], self.store, self.findings)
        if "label" in self.columns:
            self._report_several_labels(found)
            if all(sample.label is None for sample in found):
                self._classify_described(found)
        return found

    def _from_files(self, paths: Sequence[str], excluded: Mapping[str, str]) -> list[Sample]:
        """The samples where there are no metadata, with captions from files beside them and classes from folders."""
        findings, options = self.findings, self.options
        findings.left_out |= {path: excluded[path] for path in paths if path in excluded}
        images = [path for path in paths if is_image(path) and path not in excluded]
        repeats = {} if options.classes else repeats_of(images, options.repeats, self.known, findings)
        found = [Sample(path) for path in images if path in repeats or not repeats]
        self._pair(found)
        if "text" in self.columns:
            find_captions(
                [sample for sample in found if not sample.caption], self.store, findings, self.columns["text"]
            )
        self._report_unknown_columns(found)
        if repeats:
            for sample in found:
                sample.repeats, name = repeats[sample.image]
                self._name_by_folder(sample, name)
        elif "label" in self.columns:
            self._classify(found)
        if "label" in self.columns and _have_neither(found):
            report_class_like_names([sample.image for sample in found], findings)
        # img2dataset writes its counts for each folder, and a table of what the images' own files hold
        folders = {sample.image.rpartition("/")[0] for sample in found}
        written = [folder + suffix for folder in folders for suffix in ("_stats.json", ".parquet")]
        findings.mark_unread([path for path in written if path in self.store.entries], "img2dataset's own files")
        return found

    def _pair(self, found: Sequence[Sample]) -> None:
        read_pairs(found, self.store, self.options.pairs, self.columns)

    def _folder_classes(self, found: Sequence[Sample], findings: Findings) -> list[str | None]:
        images = [sample.image for sample in found]
        if self.options.level == FIRST:
            return classes_of(images, self.options.classes, self.known, findings)
        return nested_classes(images, self.options.level, self.known, findings, splits=self.splits)

    def _report_unknown_columns(self, found: Sequence[Sample]) -> None:
        """Warns of columns that the user has renamed where there are no metadata and no NAME.json with such names."""
        has_json = any(ending(sample.caption or "") == JSON for sample in found)
        names = [name for key, name in self.columns.items() if name != key and not (key == "text" and has_json)]
        if found and names:
            self.findings.warn(
                f"data.columns names {examples(names)}, but no metadata.jsonl, metadata.csv or NAME.json has it"
            )

    def _classify(self, found: Sequence[Sample]) -> None:
        """Labels by folders, if every image lies in one."""
        images = [sample.image for sample in found]
        classes = self._folder_classes(found, self.findings)
        strays = [image for image, name in zip(images, classes, strict=True) if name is None]
        if not strays:
            for sample, name in zip(found, classes, strict=True):
                sample.label = name
            if not self.options.classes and not self.known and found:
                report_odd_classes(images, [str(name) for name in classes], is_storage_folder, self.findings)
        elif len(strays) < len(found):
            distinct = sorted({name for name in classes if name is not None})
            message = f"the folders {examples(distinct)} aren't read as classes, since not every image lies in one"
            count = f"{plural(len(strays), 'image')}, such as {strays[0]}"
            step = "move these into folders, or out of the data"
            if odd := aside(distinct):
                step = f"{step}; data.without='[{', '.join(odd)}]' leaves out folders that aren't meant as data"
            self.findings.warn(f"{message} ({count}): {step}")

    def _classify_described(self, found: Sequence[Sample]) -> None:
        """Labels by folders where metadata have none: if classes are wanted, or no captions. Otherwise a remark that
        the folders may be classes."""
        if self.options.classes or "text" not in self.columns:
            self._classify(found)
            return
        names = self._folder_classes(found, Findings())
        distinct = sorted({name for name in names if name is not None})
        if None not in names and 1 < len(distinct) <= len(found) // 2:
            message = (
                f"the folders {examples(distinct)} aren't read as classes, since there are metadata without labels"
            )
            self.findings.remark(f"{message}: data.classes=true reads them")

    def _report_several_labels(self, found: Sequence[Sample]) -> None:
        """Warns of images with several labels: a sample has one."""
        labels: dict[str, set[str]] = {}
        for sample in found:
            labels.setdefault(sample.image, set()).add(str(sample.label))
        if several := [f"{image}: {', '.join(sorted(names))}" for image, names in labels.items() if len(names) > 1]:
            count = plural(len(several), "image") + (" has" if len(several) == 1 else " have")
            message = (
                f"{count} several labels in the metadata, and is one sample for each label ({examples(several, 2)})"
            )
            self.findings.warn(message if len(several) == 1 else message.replace("and is a", "and each is a"))

    def _name_by_folder(self, sample: Sample, name: str) -> None:
        """The folder's name as the caption, or as the class where captions aren't wanted."""
        if "text" in self.columns:
            sample.text = name
        elif "label" in self.columns:
            sample.label = name

    def _drop_empty_captions(self, found: Sequence[Sample]) -> None:
        """If all captions are empty, removes them: the data then have none."""
        if any(sample.text == "" for sample in found) and not any(sample.text or sample.caption for sample in found):
            self.findings.warn("every caption is empty, so the images count as images without captions")
            for sample in found:
                sample.text = None


def _have_neither(found: Sequence[Sample]) -> bool:
    """Whether no sample has a caption or a label."""
    return all(sample.text is sample.caption is sample.label is None for sample in found)
