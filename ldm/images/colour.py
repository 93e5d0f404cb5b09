"""Colours as they are meant: what an embedded profile says of an image's values is turned into sRGB.

A model, a cache and a screen all take numbers for sRGB's, so a phone's Display P3 or a camera's Adobe RGB, taken as
they are stored, lose their saturation. Whatever couldn't be converted is read as sRGB and noted, never refused.
"""

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Notes = list[str]
CONVERTED = "colour profile converted to sRGB"
SRGB_GAMMA = 0.45455
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue as PNG's cHRM has them
_SAME = 2  # 8-bit levels within which a profile is sRGB by another name
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC's signature -> Pillow's mode
_EXIF, _INTEROP, _INDEX = 0x8769, 0xA005, 1  # Exif's tags; the index R03 says Adobe RGB (DCF 2.0), R98 sRGB
CICP = "ldm_cicp"  # under which a picture's info has what `cicp` gives
_PNG, _CICP_SRGB = b"\x89PNG\r\n\x1a\n", (1, 13)


class Conversion(NamedTuple):
    """From a profile's values to sRGB's: `transform`; None where they are the same, or can't be had for the `fault`."""

    name: str
    transform: Any = None
    fault: str = ""


def in_srgb(picture: "Image", notes: Notes) -> "Image":
    """The picture with sRGB's values and without its profile; what was converted or couldn't be goes to `notes`."""
    profile = picture.info.pop("icc_profile", None)
    if not isinstance(profile, bytes):  # (a PNG's text of that name is words)
        notes += unembedded(picture)
        return picture
    if picture.mode[0] in "IF":
        notes += unconverted(profile, "L")
        return picture
    plain = _plain(picture)
    base = plain.mode.removesuffix("A")
    found = conversion(profile, base)
    if found.fault:
        notes.append(found.fault)
    if found.transform is None:
        return picture
    notes.append(f"{CONVERTED}: {found.name}")
    return _applied(found.transform, plain, base)


def unconverted(profile: bytes | None, mode: str) -> Notes:
    """What to say of the profile of an image of more than 8 bits, which Pillow's colour management doesn't take."""
    found = conversion(profile, mode) if profile else None
    if found is None or (found.transform is None and not found.fault):
        return []
    return [found.fault or f"colour profile of more than 8 bits isn't converted, read as sRGB: {found.name}"]


def unembedded(picture: "Image") -> Notes:
    """What a picture without a profile says of its colours in another way, if that isn't sRGB."""
    if picture.info.get(CICP, _CICP_SRGB) != _CICP_SRGB:
        return ["PNG's cICP says another colour space, read as sRGB"]
    if not _is_srgb(picture.info):
        return ["PNG's gAMA or cHRM says another colour space, read as sRGB"]
    if _says_adobe(picture):
        return ["Exif says Adobe RGB without a profile, read as sRGB"]
    return []


def cicp(content: bytes) -> tuple[int, int] | None:
    """Primaries and transfer function (ITU-T H.273) of a PNG's cICP chunk, which Pillow doesn't read."""
    at = len(_PNG)
    while content.startswith(_PNG) and at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind in (b"cICP", b"IDAT"):
            return (content[at + 8], content[at + 9]) if kind == b"cICP" else None
        at += 12 + length
    return None


@lru_cache(maxsize=32)
def conversion(profile: bytes, mode: str) -> Conversion:
    """What turns values of `mode` (L, RGB or CMYK) into sRGB by an ICC profile."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if _SPACES.get(space) != mode:
            return Conversion("", fault=f"colour profile is of {space}, not of the image's colours, read as sRGB")
        name = ImageCms.getProfileDescription(source).strip() or "without a name"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return Conversion(name, None if _changes_nothing(transform, mode) else transform)
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError):
        return Conversion("", fault="colour profile is broken, read as sRGB")


def _plain(picture: "Image") -> "Image":
    """The picture as L, LA, RGB, RGBA or CMYK."""
    if picture.mode == "CMYK":
        return picture
    grey = picture.mode in ("1", "L", "LA", "La")
    alpha = "A" if picture.has_transparency_data else ""
    return picture.convert(("L" if grey else "RGB") + alpha)


def _applied(transform: Any, picture: "Image", base: str) -> "Image":
    from PIL import ImageCms

    colours = picture if picture.mode == base else picture.convert(base)
    made: Any = ImageCms.applyTransform(colours, transform)
    if base == "L":
        made = made.convert("L")
    if picture.mode.endswith("A"):
        made.putalpha(picture.getchannel("A"))
    made.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return made


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Whether sRGB's colours, of which nine levels a channel are tried, stay as they are."""
    from PIL import Image, ImageCms

    if mode == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    tried = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    made = np.asarray(ImageCms.applyTransform(Image.fromarray(tried), transform)).astype(int)
    return bool(abs(made - (tried if mode == "RGB" else tried[:, :, None])).max() <= _SAME)


def _says_adobe(picture: "Image") -> bool:
    """Whether a camera's Exif says so, which of two it is: sRGB or Adobe RGB."""
    try:
        exif = picture.getexif()
        return _EXIF in exif and _INTEROP in exif.get_ifd(_EXIF) and exif.get_ifd(_INTEROP).get(_INDEX) == "R03"
    except Exception:  # damaged Exif raises anything, and is no reason to lose the picture
        return False


def _is_srgb(info: dict[Any, Any]) -> bool:
    """What a PNG's sRGB, gAMA and cHRM chunks say; texts of these names are words."""
    if isinstance(info.get("srgb"), int):
        return True
    primaries, gamma = info.get("chromaticity"), info.get("gamma")
    if isinstance(gamma, float) and abs(gamma - SRGB_GAMMA) >= 5e-3:
        return False
    pairs = zip(primaries, SRGB_PRIMARIES, strict=True) if isinstance(primaries, tuple) else ()
    return all(abs(a - b) < 2e-3 for a, b in pairs)
