"""Images that are there several times, byte for byte: a.jpg, "a (1).jpg", and the same in another folder."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import sha256

from ldm.data.reading.sample import Sample, Seen, plural, some
from ldm.data.reading.store import Store

MOST = 20_000  # files of one size with others that are looked into
File = tuple[Store, str]


def copies_of(files: Iterable[File], seen: Seen) -> list[list[File]]:
    """Sets of two or more files with the same content.

    Only files of one size are read, first what tells most of them apart. Where these are too many, as of uncompressed
    images, none is, and `seen` is told.
    """
    alike = _groups(list(dict.fromkeys(files)), _size)
    if (n := sum(map(len, alike))) > MOST:
        seen.aside(f"copies of one image aren't looked for, as {n} images have the size of others")
        return []
    hinted = [group for found in alike for group in _groups(found, _hint)]
    return [group for found in hinted for group in _groups(found, _digest)]


def grouped(
    store: Store, samples: Sequence[Sample], image_of: Callable[[str], str], seen: Seen
) -> Callable[[str], str]:
    """`image_of` with one name for all copies of an image, unless these are all that there is."""
    files = [(store, sample.image) for sample in samples]
    found = copies_of(files, seen)
    _tell_labels(found, samples, seen)
    name_of: dict[str, str] = {}

    def root(name: str) -> str:
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
        seen.note(f"all {len(files)} images are the same, byte for byte: validation measures memory alone")
        return image_of
    pairs = [f"{group[1][1]} of {group[0][1]}" for group in found]
    said = f"{plural(sum(map(len, found)) - len(found), 'image')} copied byte for byte ({some(pairs)})"
    seen.aside(f"{said}: copies stay on one side of the split")
    return lambda path: root(image_of(path))


def tell_copies(train: Sequence[File], val: Sequence[File], seen: Seen) -> None:
    """Notes images for validation that are trained on by another name."""
    own = set(train)
    held = {group[0]: [f for f in group if f not in own] for group in copies_of([*train, *val], seen) if own & {*group}}
    if paths := [path for group in held.values() for _, path in group]:
        said = f"{plural(len(paths), 'image')} for validation with the bytes of one for training ({some(paths)})"
        seen.note(f"{said}: validation measures memory there; take one of each away")


def _tell_labels(found: Iterable[Sequence[File]], samples: Iterable[Sample], seen: Seen) -> None:
    """Notes copies that are of different classes."""
    labels = {sample.image: str(sample.label) for sample in samples}
    torn = [group for group in found if len({labels[path] for _, path in group}) > 1]
    if torn:
        each = [" and ".join(path for _, path in group[:2]) for group in torn]
        said = f"{plural(len(torn), 'image')} in several classes, byte for byte the same ({some(each)})"
        seen.note(f"{said}: leave each in one of them")


def _groups(files: Iterable[File], key: Callable[[File], Hashable]) -> list[list[File]]:
    """The files with the same key, where there are several of one; None is no key."""
    found: dict[Hashable, list[File]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    return [group for name, group in found.items() if name is not None and len(group) > 1]


def _size(file: File) -> int | None:
    store, path = file
    return store.entries.get(path, (0, 0))[0] or None


def _hint(file: File) -> Hashable:
    return _read(lambda: file[0].hint(file[1]))


def _digest(file: File) -> bytes | None:
    return _read(lambda: sha256(file[0].read(file[1])).digest())


def _read(what: Callable[[], bytes]) -> bytes | None:
    try:
        return what()
    except Exception:  # a file that can't be read is counted when it is decoded
        return None
