"""What a file that Pillow can't open is by its first bytes, so that its user knows what to do about it."""

import re

from ldm.common.errors import UserError

_CONVERT = "convert it to .jpg or .png"
_KINDS = (  # the first bytes, what they mean
    (rb"", "is empty"),
    (rb"....ftyp(hei|hev|hea|mif1|msf1).*", f"is HEIC, which isn't read: {_CONVERT}"),
    (rb"....ftypavi.*", f"is AVIF, which this Pillow doesn't read: update it, or {_CONVERT}"),
    (rb"....ftyp.*|\x1aE\xdf\xa3.*", "is a film: take images out of it"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL ).*", f"is JPEG XL, which isn't read: {_CONVERT}"),
    (rb"8BPS.*", f"is a Photoshop file that can't be read: {_CONVERT}"),
    (rb"v/1\x01.*", f"is OpenEXR, which isn't read: {_CONVERT}, or .npy for all its bits"),
    (rb"%PDF.*", "is a PDF: export its pages as .jpg or .png"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*-->\s*)?(<!DOCTYPE svg|<svg).*", f"is SVG, which isn't read: {_CONVERT}"),
    (rb"\s*(<!DOCTYPE html|<html).*", "is a web page under an image's name: the download has failed, do it again"),
    (rb"version https://git-lfs.*", "is a pointer of Git LFS, not the image: get the files by git lfs pull"),
    (rb"(PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!).*", "is an archive: unpack it"),
    (rb"\0+", "is full of zeros: the download or the disk has failed"),
)
DRAWINGS = ("EPS", "WMF", "EMF")  # formats that Pillow opens and has another program draw, Ghostscript say
HEAD = 512  # bytes that are looked at


class BadImage(UserError):
    """A file that isn't a picture that can be taken: its path and why."""


def what_it_is(head: bytes) -> str:
    """The kind of a file that isn't an image we read, by its first bytes."""
    for pattern, kind in _KINDS:
        if re.fullmatch(pattern, head, re.DOTALL | re.IGNORECASE):
            return kind
    return "isn't an image of a known kind"
