"""Names that people, phones and tools commonly give to folders and files, and that are rarely meant as classes."""

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from ldm.data.reading.captions.names import is_prose
from ldm.data.reading.findings import Findings, examples
from ldm.data.reading.paths import join, stem
from ldm.data.reading.split_folders import is_training
from ldm.data.reading.store import Store

# Where phones, computers and their programs keep images. The brands may be classes too: logos, say.
_ALBUM = (
    "camera([-_ ]?roll|[-_ ]?uploads?)?|screen[-_ ]?(shots?|captures?|recordings?)|downloads?|whatsapp.+|telegram.+"
    "|saved[-_ ]?(pictures|photos)|my[-_ ]?(pictures|photos)|recents?|recently[-_ ](added|deleted)|favou?rites"
    "|(txt2img|img2img|extras)-(images|grids)|init-images"  # Automatic1111's
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
_MAPS = re.compile(
    r"depths?([-_ ]?(maps?|images?|raw))?|disparit(y|ies)|normals|normal[-_ ]?maps?|masks|segmentations?"
    r"|optical[-_ ]?flow|ground[-_ ]?truths?|gt",
    re.IGNORECASE,
)
_ODD = {
    _ASIDE: "like folders of discarded or temporary files",
    _IS_ALBUM: "as phones and computers name folders",
    _MAPS: "as folders of maps or masks of other images",
}
# Pairs of folders that hold two images of each scene, from which models learn to turn one into the other.
_PAIRS = frozenset(
    frozenset(pair.split())
    for pair in (
        "before after", "source target", "src tgt", "input output", "inputs outputs", "input target",
        "inputs targets", "input gt", "low high", "lq hq", "lq gt", "blur sharp", "noisy clean", "rain norain",
        "sketch photo", "sketches photos", "left right", "raw edited", "original edited", "originals edited",
    )
)  # fmt: skip
# Words for versions of the same images, of which each may have a folder.
_VERSION = re.compile(
    r"raw|colou?rs?|rgb|segmented|masked|originals?|processed|preprocessed|cropped|crops|resized|rescaled|edited|edits|retouched|final|clean(ed)?"
    r"|upscaled|downscaled|enhanced|aligned|augmented|flipped|rotated|colou?ri[sz]ed|gr[ea]y(scale)?|bw|denoised"
    r"|restored|watermarked|compressed|backgrounds?[-_ ]?removed|no[-_ ]?(background|bg)|[248]x",
    re.IGNORECASE,
)
_WRITTEN = re.compile(r"samples?|checkpoints?([-_ ]?\d+)?|validation[-_ ]samples", re.IGNORECASE)  # by training
# Those of a pair that are the results; the others are what they are made from.
_RESULTS = re.compile(r"after|clean|edited|gt|high|hq|norain|outputs?|photos?|sharp|targets?|tgt", re.IGNORECASE)
_INSTANCE = re.compile(r"(instances?|subjects?)([-_ ]?(images?|imgs?|data|pictures?|dir))?", re.IGNORECASE)
_PRIOR = re.compile(
    r"(class(es)?|reg(ular(i[sz]ation)?)?|prior)([-_ ]?(images?|imgs?|data|pictures?|dir))?", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?P<word>.*[^\W\d_])[-_. ]*\(?\d+\)?")  # cat.0, dog_12, "oak (3)", keeshond12
_NOT_CLASS = re.compile(
    r"im(g|ages?)?|dsc[a-z]?|pxl|mvi|vid|pano|burst|p|pict?(ures?)?|photos?|frames?|scan(ned)?|screen[-_ ]?shots?"
    r"|.*\d.*|sample|(img|signal|whatsapp|telegram|screenshot|comfyui|untitled).*|.*[-_ ](at|on)",
    re.IGNORECASE,
)
_GRIDS = re.compile(r"(txt2img|img2img)-grids")
_GRID = re.compile(r"grid-\d{4,}")  # that Stable Diffusion's scripts write beside samples/
_PREVIEW, _MODELS = ".preview", (".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".civitai.info", ".metadata.json")
_MOSTLY = 0.9  # the share of the files that have such names
_MOST_WORDS = 0.5  # different words for each file: with more, the words aren't classes


def are_albums(names: Collection[str]) -> bool:
    """Whether folders are named as those where phones and computers keep images."""
    return any(map(_IS_ALBUM.fullmatch, names)) and all(map(_IS_LIKE_ALBUM.fullmatch, names))


def previews(store: Store, images: Sequence[str]) -> dict[str, str]:
    """`NAME.preview.png` beside a model NAME, as Civitai's helpers write them, with the reason."""
    names = {path: stem(path)[: -len(_PREVIEW)] for path in images if stem(path).endswith(_PREVIEW)}
    found = {path for path, name in names.items() if any(name + kind in store.entries for kind in _MODELS)}
    return dict.fromkeys(sorted(found), "previews of models beside them")


def grids(images: Sequence[str]) -> dict[str, str]:
    """The grids of generated images, as Automatic1111 and Stable Diffusion's own scripts write them, with the
    reason."""
    samples = {posixpath.dirname(path) for path in images}
    found = [path for path in images if any(map(_GRIDS.fullmatch, path.split("/")[:-1]))]
    for path in images:
        folder, name = posixpath.split(stem(path))
        if _GRID.fullmatch(name) and join(folder, "samples") in samples:
            found.append(path)
    return dict.fromkeys(found, "grids of generated images")


def priors(images: Sequence[str]) -> dict[str, str]:
    """Images in `class_images/` and the like, beside `instance_images/`, as DreamBooth has them, with the reason."""
    if not any(map(_INSTANCE.fullmatch, {step for path in images for step in path.split("/")[:-1]})):
        return {}
    found = [path for path in images if any(map(_PRIOR.fullmatch, path.split("/")[:-1]))]
    return dict.fromkeys(found, "DreamBooth's images for regularisation (with prior_path= the base generates them)")


def report_odd_classes(
    paths: Sequence[str], classes: Sequence[str], is_storage_folder: Callable[[str], bool], findings: Findings
) -> None:
    """Warns of classes whose folders may not be meant as classes, by their names and what they hold.

    `classes` are those of the images at `paths`. `is_storage_folder` says which folders within a class aren't classes.
    """
    distinct = sorted({*classes})
    for pattern, kind in _ODD.items():
        odd = [name for name in distinct if pattern.fullmatch(name)]
        if odd and len(odd) < len(distinct):
            read, them = ("a class", "it") if len(odd) == 1 else ("classes", "them")
            message = f"{examples([name + '/' for name in odd])}: named {kind}, and read as {read}"
            findings.warn(f"{message}; data.without='[{', '.join(odd)}]' leaves {them} out")
    _report_lone_training(distinct, findings)
    are_pairs = distinct == ["A", "B"] or frozenset(map(str.lower, distinct)) in _PAIRS
    are_versions = not are_pairs and len(distinct) > 1 and all(map(_VERSION.fullmatch, distinct))
    if are_versions and _share_names(paths, classes):
        folders = examples([f"{name}/" for name in distinct])
        message = (
            f"{folders} hold files with the same names, as versions of the same images do, but are read as classes"
        )
        findings.warn(f"{message}; data.without='[{', '.join(distinct[1:])}]' leaves all but {distinct[0]} out")
    if are_pairs and _share_names(paths, classes):
        one, other = distinct
        message = f"{one}/ and {other}/ hold files with the same names, as pairs of images do, but are read as classes"
        step = f"data.pairs='{{control: {other if _RESULTS.fullmatch(one) else one}}}'"
        findings.warn(f"{message}; {step} reads one as the other's control image, data.without= leaves one out")
    _report_inner_folders(paths, classes, is_storage_folder, findings)


def report_similar_classes(classes: Iterable[str], findings: Findings) -> None:
    """Warns of classes whose names differ only by capitals, spaces and the like."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        found[re.sub(r"[-_ ]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()].append(name)
    similar = [" and ".join(f"'{name}'" for name in names) for names in found.values() if len(names) > 1]
    if similar:
        findings.warn(f"classes with nearly the same name: {examples(similar)}; if they are one, give them one name")


def report_class_like_names(paths: Sequence[str], findings: Findings) -> None:
    """Warns that files are named by a class and a number, like Kaggle's cat.0.jpg and dog.17.jpg."""
    matches = [match for path in paths if (match := _NUMBERED.fullmatch(stem(posixpath.basename(path))))]
    words = [match["word"] for match in matches]
    counts = Counter(word for word in words if not _NOT_CLASS.fullmatch(word) and not is_prose(word))
    if len(counts) < 2 or counts.total() < _MOSTLY * len(paths) or len(counts) > _MOST_WORDS * counts.total():
        return
    each = ", ".join(f"{count} {word}" for word, count in counts.most_common(3)) + (", ..." if len(counts) > 3 else "")
    word = counts.most_common(1)[0][0]
    message = f"the files' names look like numbered classes ({each}), and aren't read as classes"
    step = f"move the files of each class into a folder ({word}/), or write metadata.csv with file_name and label"
    findings.warn(f"{message}: {step}")


def aside(names: Iterable[str]) -> list[str]:
    """Those of the folders that are named like places for discarded, temporary or generated images."""
    return sorted(name for name in names if _ASIDE.fullmatch(name) or _WRITTEN.fullmatch(name))


def _report_lone_training(classes: Sequence[str], findings: Findings) -> None:
    """Warns of a class `train` beside a single other class. Among more classes, it is more likely a vehicle."""
    others = [name for name in classes if not is_training(name)]
    if len(others) == 1 and len(classes) == 2:
        message = f"{examples([f'{name}/' for name in classes])} are read as classes"
        step = "rename it to val/ if it is for validation, or give another folder with data.val_root="
        findings.warn(f"{message}, since {others[0]} isn't a usual name for validation: {step}")


def _share_names(paths: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether most files of the classes have the same names."""
    names: dict[str, set[str]] = defaultdict(set)
    for path, name in zip(paths, classes, strict=True):
        names[name].add(stem(posixpath.basename(path)))
    return 2 * len(set.intersection(*names.values())) > max(map(len, names.values()))


def _report_inner_folders(
    paths: Sequence[str], classes: Sequence[str], is_storage_folder: Callable[[str], bool], findings: Findings
) -> None:
    """Warns of folders within the classes that differ from class to class: animals/cat, animals/dog, plants/oak."""
    inner: dict[str, set[str]] = defaultdict(set)
    for path, name in zip(paths, classes, strict=True):
        steps = path.split("/")[:-1]
        within = steps[steps.index(name) + 1 :]
        if within and not is_storage_folder(within[0]):
            inner[name].add(within[0])
    if not inner or max(map(len, inner.values())) < 2:
        return
    if len(inner) > 1 and set.intersection(*inner.values()):
        return
    folders = [f"{name}/{step}" for name in sorted(inner) for step in sorted(inner[name])]
    message = f"folders within the classes aren't read as classes ({examples(folders)})"
    levels = (
        f"data.classes=last reads each image's own folder as its class, data.classes=path the whole path ({folders[0]})"
    )
    findings.warn(f"{message}: {levels}")
