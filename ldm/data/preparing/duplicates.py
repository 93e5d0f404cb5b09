"""Images that occur several times, byte for byte: a.jpg, "a (1).jpg", and the same in another folder."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import sha256

from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store

MOST = 20_000  # files of the same size as others that are compared
File = tuple[Store, str]


def duplicates_of(files: Iterable[File], findings: Findings) -> list[list[File]]:
    """Sets of two or more files with the same content.

    Only files of equal size are compared: first by a few bytes that differ in most files (`Store.hint`), then by the
    whole content. If too many files have the same size, as uncompressed images do, none is read, and a remark goes into
    `findings`.
    """
    same_size = _groups(list(dict.fromkeys(files)), _size)
    if (n := sum(map(len, same_size))) > MOST:
        findings.remark(f"copies of images aren't looked for, since {n} images have a file size that others have too")
        return []
    same_hint = [group for files_of_size in same_size for group in _groups(files_of_size, _hint)]
    return [group for files_of_hint in same_hint for group in _groups(files_of_hint, _digest)]


def with_duplicates_as_one(
    store: Store, samples: Sequence[Sample], image_of: Callable[[str], str], findings: Findings
) -> Callable[[str], str]:
    """`image_of`, but with one name for all copies of an image, unless all images are copies of one."""
    files = [(store, sample.image) for sample in samples]
    found = duplicates_of(files, findings)
    _report_labels(found, samples, findings)
    name_of: dict[str, str] = {}

    def root(name: str) -> str:
        """The first of the names that stand for the same image."""
        while name in name_of:
            name = name_of[name]
        return name

    for group in found:
        first = root(image_of(group[0][1]))
        for _, path in group[1:]:
            if (name := root(image_of(path))) != first:
                name_of[name] = first
    if not name_of:
        return image_of
    if len({root(image_of(path)) for _, path in files}) < 2:
        if len(found) > 1 or sum(map(len, found)) < len(files):
            pairs = [f"{group[1][1]} of {group[0][1]}" for group in found]
            message = f"copies byte for byte link all groups of images ({examples(pairs)})"
            findings.warn(f"{message}, so copies may be on both sides of the split: remove one of each")
            return image_of
        findings.warn(f"all {len(files)} images are the same, byte for byte: validation only measures memorization")
        return image_of
    pairs = [f"{group[1][1]} of {group[0][1]}" for group in found]
    message = f"{plural(sum(map(len, found)) - len(found), 'image')} copied byte for byte ({examples(pairs)})"
    findings.remark(f"{message}: copies stay on one side of the split")
    return lambda path: root(image_of(path))


def report_duplicates(train: Sequence[File], val: Sequence[File], findings: Findings) -> None:
    """Warns of validation images that are trained on under another name."""
    own = set(train)
    paths = []
    for group in duplicates_of([*train, *val], findings):
        if own & {*group}:
            paths += [file[1] for file in group if file not in own]
    if paths:
        images = "1 validation image is a copy" if len(paths) == 1 else f"{len(paths)} validation images are copies"
        message = f"{images} of training images, byte for byte ({examples(paths)})"
        findings.warn(f"{message}, where validation only measures memorization: remove one of each")


def _report_labels(found: Iterable[Sequence[File]], samples: Iterable[Sample], findings: Findings) -> None:
    """Warns of copies in different classes."""
    labels = {sample.image: str(sample.label) for sample in samples}
    differing = [group for group in found if len({labels[path] for _, path in group}) > 1]
    if differing:
        each = [" and ".join(path for _, path in group[:2]) for group in differing]
        message = f"{plural(len(differing), 'image')} with byte-for-byte copies in several classes ({examples(each)})"
        findings.warn(f"{message}: keep each in one class")


def _groups(files: Iterable[File], key: Callable[[File], Hashable]) -> list[list[File]]:
    """Groups of two or more files with the same key; files with the key None are in no group."""
    found: dict[Hashable, list[File]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    return [group for name, group in found.items() if name is not None and len(group) > 1]


def _size(file: File) -> int | None:
    store, path = file
    return store.entries.get(path, (0, 0))[0] or None


def _hint(file: File) -> bytes | None:
    store, path = file
    try:
        return store.hint(path)
    except Exception:  # a file that can't be read is counted when it is decoded
        return None


def _digest(file: File) -> bytes | None:
    store, path = file
    try:
        return sha256(store.read(path)).digest()
    except Exception:  # as above
        return None
