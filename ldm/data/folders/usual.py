"""Folders and files by the names that people and tools usually give them, where these are hardly meant as classes."""

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from ldm.data.reading.beside import stem
from ldm.data.reading.sample import Seen, some
from ldm.data.reading.store import Store

# Where phones, computers and the programs on them keep images. Those of the second kind are classes too: logos, say.
_ALBUM = (
    "camera([-_ ]?roll|[-_ ]?uploads?)?|screen[-_ ]?(shots?|captures?|recordings?)|downloads?|whatsapp.+|telegram.+"
    "|saved[-_ ]?(pictures|photos)|my[-_ ]?(pictures|photos)|recents?|recently[-_ ](added|deleted)|favou?rites"
    "|live[-_ ]?photos|bluetooth|scans?|scanned[-_ ]documents|edited|imports?|attachments|dcim"
)
_BRAND = "whatsapp|telegram|instagram|snapchat|facebook|messenger|signal|viber|wechat|tiktok|twitter|reddit|pinterest"
_IS_ALBUM = re.compile(_ALBUM, re.IGNORECASE)
_IS_LIKE_ALBUM = re.compile(f"{_ALBUM}|{_BRAND}|pictures?|photos?|selfies?|panoramas?|videos?|movies", re.IGNORECASE)
_ASIDE = re.compile(
    r"[-_. ]*(reject(s|ed)?|discard(s|ed)?|deleted?|trash|duplicates?|dupes?|unused|not[-_ ]?used|unsorted|to[-_ ]?sort"
    r"|todo|misc(ellaneous)?|backups?|bak|te?mp|wip|exclude[ds]?|ignored?|exports?|outputs?|results?|logs?|cache"
    r"|new[-_ ]folder.*|untitled[-_ ]folder.*|copy[-_ ]of .*|.+[-_ ]copy( \d+)?)[-_. ]*",
    re.IGNORECASE,
)
_ODD = {_ASIDE: "as what has been laid aside", _IS_ALBUM: "as phones and computers name folders"}
# Folders of two images of one scene each, by which models learn to make the one of the other.
_PAIRS = frozenset(
    frozenset(pair.split())
    for pair in (
        "before after", "source target", "src tgt", "input output", "inputs outputs", "input target",
        "inputs targets", "input gt", "low high", "lq hq", "lq gt", "blur sharp", "noisy clean", "rain norain",
        "sketch photo", "sketches photos", "left right", "raw edited", "original edited", "originals edited",
    )
)  # fmt: skip
_INSTANCE = re.compile(r"(instances?|subjects?)([-_ ]?(images?|imgs?|data|pictures?|dir))?", re.IGNORECASE)
_PRIOR = re.compile(
    r"(class(es)?|reg(ular(i[sz]ation)?)?|prior)([-_ ]?(images?|imgs?|data|pictures?|dir))?", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?P<word>.*[^\W\d_])[-_. ]*\(?\d+\)?")  # cat.0, dog_12, "oak (3)", keeshond12
_NO_WORD = re.compile(
    r"im(g|ages?)?|dsc[a-z]?|pxl|mvi|vid|pano|burst|p|pict?(ures?)?|photos?|frames?|scan(ned)?|screen[-_ ]?shots?"
    r"|sample|(img|signal|whatsapp|telegram|screenshot|comfyui|untitled).*|.*[-_ ](at|on)",
    re.IGNORECASE,
)
_PREVIEW, _MODELS = ".preview", (".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".civitai.info", ".metadata.json")
_MOSTLY = 0.9  # of the files, that are named so
_MOST = 0.5  # words for each file: more are names of their own


def are_albums(names: Collection[str]) -> bool:
    """Whether folders are called as where phones and computers keep images."""
    return any(map(_IS_ALBUM.fullmatch, names)) and all(map(_IS_LIKE_ALBUM.fullmatch, names))


def previews(store: Store, images: Sequence[str]) -> dict[str, str]:
    """`NAME.preview.png` beside a model NAME, as Civitai's helpers lay them, with the reason."""
    found = {path: stem(path)[: -len(_PREVIEW)] for path in images if stem(path).endswith(_PREVIEW)}
    models = {path for path in found if any(found[path] + kind in store.entries for kind in _MODELS)}
    return dict.fromkeys(sorted(models), "previews of models beside them")


def priors(images: Sequence[str]) -> dict[str, str]:
    """Images in `class_images/` and the like, beside `instance_images/`, as Dreambooth has them, with the reason."""
    if not any(map(_INSTANCE.fullmatch, {step for path in images for step in path.split("/")[:-1]})):
        return {}
    found = [path for path in images if any(map(_PRIOR.fullmatch, path.split("/")[:-1]))]
    return dict.fromkeys(found, "Dreambooth's images for regularisation (prior_path= makes the model's own)")


def tell_classes(paths: Sequence[str], classes: Sequence[str], is_laid_away: Callable[[str], bool], seen: Seen) -> None:
    """Notes classes whose folders may be none, by their names and what they hold.

    `classes` are those of the images at `paths`; folders within for which `is_laid_away` are no kinds of one."""
    distinct = sorted({*classes})
    for pattern, what in _ODD.items():
        odd = [name for name in distinct if pattern.fullmatch(name)]
        if odd and len(odd) < len(distinct):
            said = f"{some([name + '/' for name in odd])}: named {what}, and taken for {_classes(odd)}"
            seen.note(f"{said}; data.without='[{', '.join(odd)}]' leaves {'it' if len(odd) == 1 else 'them'} out")
    if (distinct == ["A", "B"] or frozenset(map(str.lower, distinct)) in _PAIRS) and _share_names(paths, classes):
        said = (
            f"{distinct[0]}/ and {distinct[1]}/ hold files of the same names, as pairs of images do: taken for classes"
        )
        seen.note(f"{said}; metadata.jsonl can name one as the other's control, data.without= leaves one out")
    _tell_inner(paths, classes, is_laid_away, seen)


def tell_alike(classes: Iterable[str], seen: Seen) -> None:
    """Notes classes whose names differ by capitals, blanks and the like alone."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        found[re.sub(r"[-_ ]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()].append(name)
    alike = [" and ".join(f"'{name}'" for name in names) for names in found.values() if len(names) > 1]
    if alike:
        seen.note(f"classes whose names hardly differ: {some(alike)}; name them alike if they are meant as one")


def tell_named(paths: Sequence[str], seen: Seen) -> None:
    """Notes that files are named by their class and a number, as Kaggle's cat.0.jpg and dog.17.jpg."""
    matches = [match for path in paths if (match := _NUMBERED.fullmatch(stem(posixpath.basename(path))))]
    counts = Counter(match["word"] for match in matches if not _NO_WORD.fullmatch(match["word"]))
    if len(counts) < 2 or counts.total() < _MOSTLY * len(paths) or len(counts) > _MOST * counts.total():
        return
    each = ", ".join(f"{count} {word}" for word, count in counts.most_common(3)) + (", ..." if len(counts) > 3 else "")
    word = counts.most_common(1)[0][0]
    said = f"the files' names look like classes with numbers ({each}) and aren't read"
    seen.note(f"{said}: move each into a folder of its class ({word}/), or write metadata.csv with file_name and label")


def _classes(names: Sequence[str]) -> str:
    return "a class" if len(names) == 1 else "classes"


def _share_names(paths: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether of two classes most files go by the same names."""
    names: dict[str, set[str]] = defaultdict(set)
    for path, name in zip(paths, classes, strict=True):
        names[name].add(stem(posixpath.basename(path)))
    one, other = names.values()
    return 2 * len(one & other) > max(len(one), len(other))


def _tell_inner(paths: Sequence[str], classes: Sequence[str], is_laid_away: Callable[[str], bool], seen: Seen) -> None:
    """Notes folders within the classes that differ from class to class: animals/cat, animals/dog, plants/oak."""
    inner: dict[str, set[str]] = defaultdict(set)
    for path, name in zip(paths, classes, strict=True):
        steps = path.split("/")[:-1]
        within = steps[steps.index(name) + 1 :]
        if within and not is_laid_away(within[0]):
            inner[name].add(within[0])
    if not inner or max(map(len, inner.values())) < 2 or len(inner) > 1 and set.intersection(*inner.values()):
        return
    folders = [f"{name}/{step}" for name in sorted(inner) for step in sorted(inner[name])]
    said = f"folders within the classes are no classes of their own ({some(folders)})"
    seen.note(f"{said}: metadata.csv with file_name and label names classes, and data.root={folders[0].split('/')[0]} "
              "takes those of one folder")  # fmt: skip
