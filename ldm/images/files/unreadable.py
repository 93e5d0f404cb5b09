"""Messages about files that Pillow can't open: what they are, by their first bytes, and what to do."""

import re

from ldm.common.errors import UserError

_CONVERT = "convert it to .jpg or .png"
_KINDS = (  # patterns of the first bytes, and what they mean
    (rb"", "is empty"),
    (rb"....ftyp(hei|hev|hea|mif1|msf1).*", f"is HEIC, which isn't read: {_CONVERT}"),
    (rb"....ftypavi.*", f"is AVIF, which this Pillow doesn't read: update it, or {_CONVERT}"),
    (rb"....ftyp.*|\x1aE\xdf\xa3.*", "is a video: extract images from it"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL ).*", f"is JPEG XL, which isn't read: {_CONVERT}"),
    (rb"8BPS.*", f"is a Photoshop file that can't be read: {_CONVERT}"),
    (rb"v/1\x01.*", f"is OpenEXR, which isn't read: {_CONVERT}, or .npy for all its bits"),
    (rb"%PDF.*", "is a PDF: export its pages as .jpg or .png"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*-->\s*)?(<!DOCTYPE svg|<svg).*", f"is SVG, which isn't read: {_CONVERT}"),
    (rb"\s*(<!DOCTYPE html|<html).*", "is a web page with an image's name: the download has failed, repeat it"),
    (rb"version https://git-lfs.*", "is a pointer of Git LFS, not the image: get the files by git lfs pull"),
    (rb"(PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!).*", "is an archive: unpack it"),
    (rb"\0+", "is full of zeros: the download or the disk has failed"),
)
DRAWINGS = ("EPS", "WMF", "EMF")  # formats that Pillow has another program render, such as Ghostscript
HEAD = 512  # the number of first bytes that are compared


class BadImage(UserError):
    """An image that can't be used; the message says which and why."""


def kind_of(head: bytes) -> str:
    """The kind of a file that can't be read as an image, in words with a next step, by its first bytes."""
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, head, re.DOTALL | re.IGNORECASE):
            return kind
    return "isn't an image of a known kind"
