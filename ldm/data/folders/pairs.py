"""data.pairs: where the captions, maps, masks and control images of images lie, by a folder or a pattern of names.

`{control: source}`: the control image of target/1.png is source/1.png. `{mask: "*_mask.png"}`: the mask of 1.jpg is
1_mask.png beside it. `{text: captions}`: the caption of images/1.jpg is captions/1.txt.
"""

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence

from ldm.common.errors import UserError, did_you_mean
from ldm.data.folders.classes import image_of
from ldm.data.folders.excluded import name_of_image
from ldm.data.reading.findings import Findings, examples, plural
from ldm.data.reading.paths import is_image, stem
from ldm.data.reading.sample import PATHS, Sample
from ldm.data.reading.store import Store, composed

TEXT = "text"
_NOUNS = {TEXT: "caption", "map": "map", "mask": "mask", "control": "control image"}
_UNUSED = "in a folder or pattern of data.pairs, but without an image of the same name"
_Key = tuple[str, str]  # the folder around, and the image's path below it, both in lower case and without ending


def check_pairs(pairs: Mapping[str, str] | None) -> dict[str, str]:
    """The option `pairs` without slashes around its folders. Raises UserError for a column that has no files, and for
    a place that is neither a name, a path nor a pattern."""
    if pairs is not None and not isinstance(pairs, Mapping):
        raise UserError(f"data.pairs={pairs} isn't a mapping: write data.pairs='{{control: FOLDER}}'.")
    for key, place in (pairs or {}).items():
        if not isinstance(place, str) or not place.strip("/"):
            raise UserError(f"data.pairs: {key} is {place!r}; give a folder's name or path, or a pattern of names.")
        if key not in _NOUNS:
            raise UserError(f"data.pairs: '{key}' can't be paired.{did_you_mean(key, _NOUNS)} It can be "
                            f"{', '.join(_NOUNS)}.")  # fmt: skip
    return {key: place.strip("/") for key, place in (pairs or {}).items()}


def paired_images(store: Store, pairs: Mapping[str, str]) -> list[str]:
    """The images that belong to others by `pairs`, so that they aren't samples themselves."""
    return [path for path in store.entries if is_image(path) and any(_key(path, place) for place in pairs.values())]


def read_pairs(found: Sequence[Sample], store: Store, pairs: Mapping[str, str], columns: Collection[str]) -> None:
    """Gives each sample without a file of the column the one that belongs to it. Raises UserError if no sample has
    one."""
    for key in [key for key in pairs if key in columns and found]:
        files = _files(store, key, pairs[key])
        matched = {sample.image: path for sample in found if (path := _file_of(sample.image, files, pairs[key]))}
        if not matched:
            raise UserError(_message_none(key, pairs[key], found, files))
        _check_unique(key, matched)
        for sample in found:
            _give(sample, key, matched.get(sample.image))


def report_pairs(
    found: Sequence[Sample], stores: Sequence[Store], pairs: Mapping[str, str], findings: Findings
) -> None:
    """Reports what was read by `pairs`, and files of theirs that belong to no sample."""
    for key, place in pairs.items():
        paths = [sample.caption if key == TEXT else getattr(sample, key) for sample in found]
        if n := sum(bool(path and _key(path, place)) for path in paths):
            findings.remark(f"{plural(n, _NOUNS[key])} from {place}, as data.pairs says")
    used = {path for sample in found for path in (sample.caption, *(getattr(sample, key) for key in PATHS))}
    for store in stores:
        findings.leave_out([path for path in paired_images(store, pairs) if path not in used], _UNUSED)


def _give(sample: Sample, key: str, path: str | None) -> None:
    if key != TEXT:
        setattr(sample, key, getattr(sample, key) or path)
    elif path and not sample.text:
        sample.caption = path


def _files(store: Store, key: str, place: str) -> dict[_Key, str]:
    """The files of a column, by the key that each shares with its image's path."""
    found: dict[_Key, str] = {}
    spare: dict[_Key, str] = {}  # a mask named 1_mask.png may be that of 1.png
    for path in store.entries:
        if (key == TEXT or is_image(path)) and (name := _key(path, place)):
            found.setdefault(name, path)
            around, inner = name
            spare.setdefault((around, posixpath.join(posixpath.dirname(inner), name_of_image(inner))), path)
    return spare | found


def _key(path: str, place: str) -> _Key | None:
    """The key that a file shares with its image's path; None for a file that isn't at `place`."""
    place, path = composed(place).lower(), composed(path).lower()
    folder, pattern = (posixpath.split(place)) if "*" in place else (place, "*")
    around, inner = "", path
    if folder:
        at = f"/{path}".find(f"/{folder}/")
        if at < 0:
            return None
        around, inner = path[:at].rstrip("/"), path[at + len(folder) + 1 :]
    inner_folder, last = posixpath.split(inner)
    name = _starred(last, pattern) if "*" in place else stem(last)
    if name is None:
        return None
    if not folder:
        return inner_folder, name
    return around, posixpath.join(inner_folder, name)


def _starred(name: str, pattern: str) -> str | None:
    """What the first `*` of the pattern stands for in a name; a second one stands for anything, such as the ending."""
    before, _, after = pattern.partition("*")
    after, has_more, rest = after.partition("*")
    if not name.startswith(before):
        return None
    body = name[len(before) :]
    if not has_more:
        return body[: len(body) - len(after)] or None if body.endswith(after) else None
    at = body.rfind(after) if not rest else body.find(after)
    return body[:at] or None if at > 0 and body.endswith(rest) else None


def _file_of(image: str, files: Mapping[_Key, str], place: str) -> str | None:
    """An image's file among several: the one with the nearest folder around both and, if several have that, the longest
    path."""
    path = stem(composed(image).lower())
    if "*" in place and "/" not in place:
        folder, name = posixpath.split(path)
        return files.get((folder, name))
    return next((files[key] for key in _keys(path) if key in files and files[key] != image), None)


def _keys(path: str) -> Iterator[_Key]:
    steps = path.split("/")
    for depth in range(len(steps) - 1, -1, -1):
        for start in range(depth, len(steps)):
            yield "/".join(steps[:depth]), "/".join(steps[start:])


def _check_unique(key: str, matched: Mapping[str, str]) -> None:
    """Raises UserError if a file would belong to different images."""
    first: dict[str, str] = {}
    for image, path in matched.items():
        other = first.setdefault(path, image)
        if image_of(other) != image_of(image):
            message = f"data.pairs: {path} would be the {_NOUNS[key]} of both {other} and {image}"
            raise UserError(
                f"{message}: give that folder the same subfolders as the images, so that paths tell them apart."
            )


def _message_none(key: str, place: str, found: Sequence[Sample], files: Mapping[_Key, str]) -> str:
    if not files:
        kind = "file like" if "*" in place else "folder with such files named"
        return f"data.pairs: there is no {kind} '{place}' for '{key}'; give a folder's name or path, or a pattern."
    names = examples([sample.image for sample in found], 2)
    return (
        f"data.pairs: none of {plural(len(found), 'image')} ({names}) has its {_NOUNS[key]} in {place} "
        f"({examples(list(files.values()), 2)}): give the files the names of their images."
    )
