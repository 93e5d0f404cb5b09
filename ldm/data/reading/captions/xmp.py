"""Texts in XMP, which lies inside image files and in .xmp files beside them (Lightroom, digiKam, darktable)."""

import html
import re
from collections.abc import Iterator

_NAMES = ("dc:description", "exif:UserComment", "photoshop:Headline", "dc:title", "dc:subject")  # the best first
_ITEM = re.compile(r"<rdf:li(?P<about>[^>]*)>(?P<text>.*?)</rdf:li>", re.DOTALL)
_LANGUAGES = re.compile(r"\s*<rdf:Alt\b")
_DEFAULT = "x-default"


def xmp_texts(xmp: str) -> Iterator[str]:
    """Yields the description, comment, headline, title and keywords that `xmp` contains. Keywords are joined by commas.
    If a text is given in several languages, the default language is read."""
    for name in _NAMES:
        if match := re.search(rf"<{name}\b[^>/]*>(.*?)</{name}>", xmp, re.DOTALL):
            yield _text(match[1])
        elif match := re.search(rf"\s{name}=(\"[^\"]*\"|'[^']*')", xmp):
            yield html.unescape(match[1][1:-1]).strip()


def _text(content: str) -> str:
    """The text of an element, which is plain or a list of items."""
    items = [(match["about"], html.unescape(match["text"]).strip()) for match in _ITEM.finditer(content)]
    texts = [text for _, text in items if text]
    if _LANGUAGES.match(content):
        texts = [text for about, text in items if text and _DEFAULT in about] or texts
        return texts[0] if texts else ""
    return ", ".join(texts) if items or "<" in content else html.unescape(content).strip()
