"""Captions inside image files, as generators, cameras and photo managers write them."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from ldm.common.errors import UserError
from ldm.data.reading.captions.prompts import prompt_of
from ldm.data.reading.captions.xmp import xmp_texts
from ldm.data.reading.findings import Findings, examples
from ldm.data.reading.paths import evenly_spaced
from ldm.data.reading.sample import Sample
from ldm.data.reading.store import Store
from ldm.images import check_metadata

_LOOKED_AT = 16  # images
_DESCRIPTION, _EXIF, _COMMENT = 0x010E, 0x8769, 0x9286  # Exif's tags
_MAKE, _MODEL = 0x010F, 0x0110  # where ComfyUI puts its graphs into a .webp
_WINDOWS = (0x9C9C, 0x9C9F, 0x9C9B, 0x9C9E)  # Explorer's comment, subject, title and tags
_IPTC = ((2, 120), (2, 105), (2, 5), (2, 25))  # caption, headline, title and keywords
_CODES = {b"UNICODE\0": ("utf-16-be", "utf-16-le"), b"ASCII\0\0\0": ("utf-8",), b"\0" * 8: ("utf-8",)}
_GENERATED = ("parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream")  # texts of PNGs
_WORKFLOW = "workflow"  # ComfyUI's graph as its page shows it, where `prompt` is missing
_PLAIN = ("Description", "Comment", "comment", "Title")  # texts of PNGs, and comments of JPEG and GIF
_CAMERAS = re.compile(r"[A-Z0-9 _-]*", re.ASCII)  # OLYMPUS DIGITAL CAMERA
_PROGRAMS = re.compile(
    r"(Created|Processed|Generated|Optimi[sz]ed|Compressed|Edited) ?(with|by|By|using|in) .*|CREATOR: .*|Lavc.*"
    r"|LEAD Tech.*|Intel\(R\) .*|File (written|source)\b.*|AppleMark.*|Screenshot|.*ImageMagick.*|https?://\S*|default",
    re.DOTALL,
)


def text_in(file: BinaryIO, texts_in: Callable[[Any], Iterator[Any]] | None = None) -> str:
    """The caption inside an image file, empty if there is none. It is the first of

    - a generator's prompt;
    - Exif's description and comment, and what Windows writes there;
    - caption, headline, title and keywords of IPTC, then of XMP;
    - the texts of a PNG and the comment of a JPEG or GIF.

    `texts_in` restricts it to some of these.
    """
    from PIL import Image

    try:
        check_metadata(file)
        with Image.open(file) as image:
            return next((text for found in (texts_in or _texts)(image) if (text := _words(found))), "")
    except Exception:  # whatever it is, it is counted when it is decoded
        return ""


def text_in_xmp(xmp: str) -> str:
    """The caption in XMP, empty if there is none."""
    return next((text for found in xmp_texts(xmp) if (text := _words(found))), "")


def report_embedded(found: Sequence[Sample], store: Store, findings: Findings) -> None:
    """Warns that images without captions beside them hold some inside, judged by a few of them."""
    looked_at = evenly_spaced(found, _LOOKED_AT)
    texts = {sample.image: text for sample in looked_at if (text := _peek(store, sample.image))}
    path, text = next(iter(texts.items()), ("", ""))
    # one text in all images may be a program's or a studio's, unless a generator has written it
    if len({*texts.values()}) > 1 or len(texts) == len(looked_at) == 1 or text and _peek(store, path, _prompts):
        message = f"{len(texts)} of {len(looked_at)} images that were looked at hold text that may be a caption"
        findings.warn(f"{message} ({path}: {_shortened(text)}), which isn't read: data.captions=embedded reads it")
    elif not texts and (graphs := [sample.image for sample in looked_at if _peek(store, sample.image, _workflows)]):
        message = f"{len(graphs)} of {len(looked_at)} images that were looked at hold a workflow of ComfyUI"
        findings.remark(f"{message} ({graphs[0]}) in which no prompt is found: it isn't read")


def check_embedded(found: Sequence[Sample], store: Store) -> None:
    """Raises UserError if captions are to be read from the images and a few of these, looked at first, hold none."""
    looked_at = evenly_spaced(found, _LOOKED_AT)
    if looked_at and not any(_peek(store, sample.image) for sample in looked_at):
        names = examples([sample.image for sample in looked_at])
        raise UserError(
            f"data.captions=embedded, but none of {len(looked_at)} images that were looked at holds text ({names}): "
            "write captions to NAME.txt beside NAME.png, or leave the option out."
        )


def _peek(store: Store, path: str, texts_in: Callable[[Any], Iterator[Any]] | None = None) -> str:
    try:
        with store.open(path) as file:
            return text_in(file, texts_in)
    except Exception:
        return ""


def _texts(image: Any) -> Iterator[Any]:
    from PIL import IptcImagePlugin

    yield from _prompts(image)
    exif = image.getexif()
    yield exif.get(_DESCRIPTION)
    yield _comment(exif.get_ifd(_EXIF).get(_COMMENT, b""))
    yield from (_wide(exif.get(tag)) for tag in _WINDOWS)
    iptc = IptcImagePlugin.getiptcinfo(image) or {}
    yield from (_listed(iptc.get(tag)) for tag in _IPTC)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    yield from xmp_texts(xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp))
    yield from (image.info.get(name) for name in _PLAIN)


def _prompts(image: Any) -> Iterator[Any]:
    """What a generator has written."""
    yield from (image.info.get(name) for name in _GENERATED)
    exif = image.getexif()
    for name in ("prompt:", f"{_WORKFLOW}:"):
        graphs = [value for tag in (_MODEL, _MAKE) if _is_graph(value := exif.get(tag), name)]
        yield from (value.removeprefix(name) for value in graphs)
    yield image.info.get(_WORKFLOW)


def _workflows(image: Any) -> Iterator[str]:
    """A word for each graph of ComfyUI in the image, with or without a prompt."""
    exif = image.getexif()
    found = [image.info.get(name) for name in ("prompt", _WORKFLOW)]
    for tag in (_MODEL, _MAKE):
        value = exif.get(tag)
        found += [value.removeprefix(f"{name}:") for name in ("prompt", _WORKFLOW) if _is_graph(value, f"{name}:")]
    yield from ("graph" for value in found if str(value or "").lstrip().startswith("{"))


def _is_graph(value: Any, name: str) -> bool:
    return isinstance(value, str) and value.startswith(f"{name}{{")


def _wide(value: Any) -> str:
    """The text that Windows writes into Exif: UTF-16, with tags separated by semicolons."""
    text = bytes(value).decode("utf-16-le", "replace") if isinstance(value, (bytes, tuple, list)) else str(value or "")
    return ", ".join(part.strip() for part in text.replace("\0", "").split(";") if part.strip())


def _listed(value: Any) -> Any:
    """IPTC's values as text: keywords come as a list."""
    texts = value if isinstance(value, list) else [value or b""]
    return ", ".join(part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in texts)


def _comment(value: Any) -> str:
    """Exif's UserComment, whose first eight bytes name its encoding."""
    if not isinstance(value, bytes):
        return str(value)
    for code in _CODES.get(value[:8], ("utf-8",)):
        text = value[8 if value[:8] in _CODES else 0 :].decode(code, "replace")
        if "\ufffd" not in text and (text.isascii() or code != "utf-16-be" or "\0" not in text):
            return text
    return ""


def _words(found: Any) -> str:
    """The text if a person or a generator wrote it; empty for the name of a camera or a program."""
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found or "")
    text = prompt_of(text.replace("\0", ""))
    return "" if _CAMERAS.fullmatch(text) or _PROGRAMS.fullmatch(text) else text


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
