"""Captions inside images: what generators, cameras and photo managers write into the file itself."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from ldm.data.sample import Sample, Seen, some
from ldm.data.store import Store
from ldm.errors import UserError
from ldm.images import check_metadata

_LOOKED_AT = 16  # images
_DESCRIPTION, _EXIF, _COMMENT, _IPTC = 0x010E, 0x8769, 0x9286, (2, 120)  # the caption's tags of Exif and IPTC
_CODES = {b"UNICODE\0": ("utf-16-be", "utf-16-le"), b"ASCII\0\0\0": ("utf-8",), b"\0" * 8: ("utf-8",)}
_XMP = re.compile(r"<dc:description>.*?<rdf:li[^>]*>(.*?)</rdf:li>", re.DOTALL)
_SETTINGS = re.compile(r"\n(Negative prompt|Steps): .*", re.DOTALL)  # what Automatic1111 writes behind the prompt
_CAMERAS = re.compile(r"[A-Z0-9 _-]*", re.ASCII)  # OLYMPUS DIGITAL CAMERA


def text_in(file: BinaryIO) -> str:
    """The caption that an image holds: a generator's prompt, Exif's ImageDescription or UserComment, IPTC's caption, or
    XMP's dc:description, the first that is there; empty if none is."""
    from PIL import Image

    try:
        check_metadata(file)
        with Image.open(file) as picture:
            return next((text for found in _texts(picture) if (text := _words(found))), "")
    except Exception:  # whatever it is, it is counted when it is decoded
        return ""


def tell_embedded(found: Sequence[Sample], store: Store, seen: Seen) -> None:
    """Notes that images without captions beside them hold some, by a few of them."""
    few = found[:: -(-len(found) // _LOOKED_AT) or 1]
    texts = {sample.image: text for sample in few if (text := _peek(store, sample.image))}
    if len({*texts.values()}) > 1 or len(texts) == len(few) == 1:
        path, text = next(iter(texts.items()))
        said = f"{len(texts)} of {len(few)} images that were looked at hold text that may be a caption"
        seen.note(f"{said} ({path}: {_cut(text)}) and isn't read: data.captions=embedded reads it")


def check_embedded(found: Sequence[Sample], store: Store) -> None:
    """Raises UserError where images are to hold their captions, and none of a few does."""
    few = found[:: -(-len(found) // _LOOKED_AT) or 1]
    if few and not any(_peek(store, sample.image) for sample in few):
        names = some([sample.image for sample in few])
        raise UserError(
            f"data.captions=embedded, but no text is in any of {len(few)} images that were looked at ({names}): put "
            "captions into NAME.txt beside NAME.png, or leave the option out."
        )


def _peek(store: Store, path: str) -> str:
    try:
        with store.open(path) as file:
            return text_in(file)
    except Exception:
        return ""


def _texts(picture: Any) -> Iterator[Any]:
    from PIL import IptcImagePlugin

    yield _SETTINGS.sub("", str(picture.info.get("parameters", "")))
    exif = picture.getexif()
    yield exif.get(_DESCRIPTION)
    yield _SETTINGS.sub("", _comment(exif.get_ifd(_EXIF).get(_COMMENT, b"")))
    yield (IptcImagePlugin.getiptcinfo(picture) or {}).get(_IPTC)
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    match = _XMP.search(xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp))
    yield html.unescape(match[1]) if match else None
    yield picture.info.get("Description")


def _comment(value: Any) -> str:
    """Exif's UserComment, whose first eight bytes say how it is written."""
    if not isinstance(value, bytes):
        return str(value)
    for code in _CODES.get(value[:8], ("utf-8",)):
        text = value[8 if value[:8] in _CODES else 0 :].decode(code, "replace")
        if "\ufffd" not in text and (text.isascii() or code != "utf-16-be" or "\0" not in text):
            return text
    return ""


def _words(found: Any) -> str:
    """Words of a person's or a generator's; a camera's name is none."""
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found or "")
    text = text.replace("\0", "").strip()
    return "" if _CAMERAS.fullmatch(text) else text


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
